"""The node's side of the receiver process (``node/receive/__main__.py``): start it, keep it, hear from it.

In: the configuration.  Out: ``on_complete`` for every complete series version, again until it returns.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import structlog

from node.config import NodeConfig
from node.errors import NodeError, SpoolError
from node.failpoints import failpoint

log = structlog.get_logger("node.receive.process")

RESTART_SECONDS = 1.0
HANDOVER_RETRY_SECONDS = 10.0
METRICS_SECONDS = 2.0
STOP_SECONDS = 30.0

#: glibc keeps a heap for every few threads, and what associations free in each of them stays there
ALLOCATOR = {"MALLOC_ARENA_MAX": "2"}
#: (series, version)
Key = tuple[str, int]


class ListenerStartError(NodeError):
    """The receiver can't start."""

    code = "listener_start_failed"


class ReceiverProcess:
    """One receiver, started again when it dies."""

    def __init__(self, config: NodeConfig, on_complete: Callable[[str, int], object]) -> None:
        """``on_complete`` is called from one thread; when it raises, it is called again later."""
        self._config = config
        self._on_complete = on_complete
        self._process: subprocess.Popen[str] | None = None
        self._ready = threading.Event()
        self._failed: dict[str, Any] | None = None
        self._first = threading.Event()
        self._stopping = threading.Event()
        self._complete: queue.SimpleQueue[Key | None] = queue.SimpleQueue()
        self._metrics: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._tokens = itertools.count()
        self._orders: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._ask = threading.Lock()
        self._keeper = threading.Thread(target=self._keep, name="receiver", daemon=True)
        self._router = threading.Thread(target=self._hand_over, name="hand-over", daemon=True)

    def start(self) -> None:
        """Return once associations are accepted. Raises ListenerStartError."""
        self._router.start()
        self._keeper.start()
        self._first.wait()
        if self._failed is not None:
            raise ListenerStartError(self._failed["message"], hint=self._failed["hint"])

    def why_not_ready(self) -> str | None:
        """A readiness check: None, or the reason."""
        return None if self._ready.is_set() else "the DICOM listener is down"

    def metrics(self) -> bytes:
        """The receiver's metrics in Prometheus' text format; nothing while it is down."""
        with self._ask:
            process = self._process
            if process is None or process.stdin is None or not self._ready.is_set():
                return b""
            while not self._metrics.empty():  # the answer to a question that wasn't waited for
                self._metrics.get()
            try:
                process.stdin.write("metrics\n")
                process.stdin.flush()
                return self._metrics.get(timeout=METRICS_SECONDS).encode()
            except (OSError, ValueError, queue.Empty):
                return b""

    def obey(self, order: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
        """Have an order carried out (``Taking.obey``). Raises SpoolError when that can't be told: what it was
        to take may be kept, or not, and does no harm when it comes again."""
        token, answer = next(self._tokens), queue.SimpleQueue[dict[str, Any]]()
        self._orders[token] = answer
        try:
            with self._ask:
                process = self._process
                if process is None or process.stdin is None or not self._ready.is_set():
                    raise SpoolError("the receiver is down", hint="send it again in a moment")
                process.stdin.write(json.dumps({**order, "token": token}) + "\n")
                process.stdin.flush()
            obeyed = answer.get(timeout=seconds)
        except (OSError, ValueError, queue.Empty) as error:
            raise SpoolError("the receiver didn't answer", hint="send it again in a moment") from error
        finally:
            self._orders.pop(token, None)
        if "taken" not in obeyed:
            raise SpoolError(f"the receiver failed: {obeyed['error']}", hint="send it again in a moment")
        taken: list[dict[str, Any]] = obeyed["taken"]
        return taken

    def stop(self) -> None:
        """Let running associations finish, within the receiver's grace."""
        self._stopping.set()
        process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        self._keeper.join()
        self._complete.put(None)
        self._router.join()

    def _keep(self) -> None:
        while not self._stopping.is_set():
            code = self._run()
            self._ready.clear()
            for waiting in list(self._orders.values()):
                waiting.put({"error": "it died"})
            if not self._first.is_set():
                self._failed = self._failed or {
                    "message": f"the receiver ended with code {code}",
                    "hint": "its last lines are above",
                }
                self._first.set()
                return
            if not self._stopping.is_set():
                log.error("receiver_died", code=code, hint="its last lines are above; restarting it")
                self._stopping.wait(RESTART_SECONDS)

    def _run(self) -> int:
        """One receiver from its start to its end; returns its exit code."""
        with subprocess.Popen(
            [sys.executable, "-m", "node.receive"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=os.environ | ALLOCATOR,
        ) as process:
            self._process = process
            assert process.stdin is not None and process.stdout is not None  # noqa: S101 - Popen was given PIPE
            try:
                process.stdin.write(self._config.model_dump_json() + "\n")
                process.stdin.flush()
            except OSError:
                return process.wait()
            if self._stopping.is_set():
                process.terminate()
            for line in process.stdout:
                self._heard(json.loads(line))
            return process.wait()

    def _heard(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "ready":
                self._ready.set()
                self._first.set()
            case "failed":
                self._failed = event
                log.error("listener_start_failed", reason=event["message"], hint=event["hint"])
            case "complete":
                self._complete.put((event["series_instance_uid"], int(event["version"])))
            case "metrics":
                self._metrics.put(event["text"])
            case "obeyed":
                waiting = self._orders.get(event["token"])
                if waiting is not None:  # else who asked has given up
                    waiting.put(event)

    def _hand_over(self) -> None:
        later: dict[Key, float] = {}
        while True:
            try:
                key = self._complete.get(timeout=1.0 if later else None)
            except queue.Empty:
                now = time.monotonic()
                due = [key for key, at in later.items() if at <= now]
            else:
                if key is None:
                    return
                due = [key]
            for series_instance_uid, version in due:
                later.pop((series_instance_uid, version), None)
                failpoint("handover.heard")
                try:
                    self._on_complete(series_instance_uid, version)
                except Exception:  # worker boundary: one series that can't be routed must not stop the others
                    log.error(
                        "series_handover_failed",
                        series_instance_uid=series_instance_uid,
                        version=version,
                        retry_seconds=HANDOVER_RETRY_SECONDS,
                        exc_info=True,
                    )
                    later[series_instance_uid, version] = time.monotonic() + HANDOVER_RETRY_SECONDS
