"""Processes that run pipelines: a job's request in, its summary or a typed error out.

Each worker is ``python -m pipelines.worker``, kept warm between jobs and replaced when it crashes or
overruns its time. Workers end by themselves when the node does (their stdin closes).
"""

from __future__ import annotations

import heapq
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import structlog

from node.errors import NodeError, WorkerCrashed
from pipelines.request import COLD, PLAIN, Access, Request, encode_request

log = structlog.get_logger(__name__)

#: code of the WorkerCrashed that is our own doing: the job is to be continued after the next start
NODE_STOPPING = "node_stopping"
#: called with (stage, done, total); total 0 announces the start of a stage
OnProgress = Callable[[str, int, int], None]
#: called with (model, seconds, "" or the error's code) of a request to Triton that has ended
OnRequest = Callable[[str, float, str], object]
#: glibc's malloc: a worker's threads share two heaps; with more, 150 MB of a study of 600 slices lie idle.
#: OpenBLAS: no matrix here is worth a second thread, which would spin for 50 ms after each small product.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}
#: what Mesa draws with on a processor: threads of several workers would wait for one another
_DRAWING_THREADS = "LP_NUM_THREADS"


class PipelineFailed(NodeError):
    """A pipeline ended with a typed failure; ``code``, ``hint`` and ``retryable`` are the pipeline's."""

    code = "pipeline_failed"


class _Worker:
    """One process and the line protocol with it."""

    def __init__(self, *options: str, drawing_threads: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.worker", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={_DRAWING_THREADS: str(drawing_threads), **os.environ, **ENVIRONMENT},
        )
        self._events: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="worker-events", daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - Popen was given PIPE
        for line in self._process.stdout:
            self._events.put(line)
        self._events.put(None)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def run(
        self, line: str, on_progress: OnProgress, on_request: OnRequest, *, timeout_seconds: float
    ) -> dict[str, Any]:
        """Send a request and follow it to its end; whatever else than its own answer ends it kills it."""
        try:
            return self._run(line, on_progress, on_request, timeout_seconds)
        except PipelineFailed:
            raise
        except BaseException:
            self.kill()  # an answer that comes later must not be taken for the next request's
            raise

    def _run(
        self, line: str, on_progress: OnProgress, on_request: OnRequest, timeout_seconds: float
    ) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_seconds
        assert self._process.stdin is not None  # noqa: S101 - Popen was given PIPE
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise WorkerCrashed(f"worker {self.pid} is gone") from error
        while True:
            try:
                event = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise WorkerCrashed(
                    f"the pipeline took longer than {timeout_seconds:.0f} s",
                    code="step_timeout",
                    hint="raise run.step_timeout_seconds, or see which stage hangs in the log",
                ) from None
            if event is None:
                raise WorkerCrashed(f"worker {self.pid} ended with code {self._process.wait()}")
            message = json.loads(event)
            match message["event"]:
                case "progress":
                    on_progress(message["stage"], message["done"], message["total"])
                case "request":
                    on_request(message["model"], message["seconds"], message["code"])
                case "done":
                    summary: dict[str, Any] = message["summary"]
                    return summary
                case "failed":
                    raise PipelineFailed(
                        message["message"],
                        hint=message["hint"],
                        code=message["code"],
                        retryable=message["retryable"],
                    )

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class WorkerPool:
    """At most ``size`` pipelines at once; ``run`` blocks until one is free."""

    def __init__(self, size: int, *, nice: int = 0, warm: bool = True) -> None:
        """nice: how much the processes stand back for others of this machine, 0 to 19. warm: whether they
        warm up, which is for those that run several studies."""
        self._nice = nice
        self._options = () if warm else (COLD,)
        self._drawing_threads = max(1, len(os.sched_getaffinity(0)) // max(1, size))
        self._idle: list[_Worker | None] = [None] * size  # the last one used is used next: it is warm
        self._waiting: list[tuple[int, int]] = []  # a heap of (priority, ticket)
        self._tickets = count()
        self._changed = threading.Condition()
        self._started: list[_Worker] = []
        self._lock = threading.Lock()
        self._stopped = False

    def start(self) -> None:
        """Start all idle workers before the first study comes: loading what they need takes seconds."""
        with self._changed:
            idle = list(self._idle)
            self._idle.clear()
        for worker in idle:
            self._give_back(self._alive(worker))

    def run(
        self,
        request: Request,
        on_progress: OnProgress,
        *,
        triton_url: str,
        request_timeout_seconds: float,
        step_timeout_seconds: float,
        access: Access = PLAIN,
        priority: int = 100,
        on_request: OnRequest = lambda _model, _seconds, _code: None,
    ) -> dict[str, Any]:
        """Run one request to its end and return its summary. Of those that wait, smaller priorities go first.

        Raises PipelineFailed with the pipeline's own code, or WorkerCrashed.
        """
        line = encode_request(
            request, triton_url=triton_url, timeout_seconds=request_timeout_seconds, access=access
        )
        worker = self._take(priority)
        try:
            worker = self._alive(worker)
            return worker.run(line, on_progress, on_request, timeout_seconds=step_timeout_seconds)
        except WorkerCrashed as error:
            if self._stopped:
                raise WorkerCrashed("the node is stopping", code=NODE_STOPPING) from error
            raise
        finally:
            self._give_back(worker if worker is not None and worker.alive else None)

    def _take(self, priority: int) -> _Worker | None:
        """The place of a worker, by priority and then in turn; None when its process isn't started."""
        ours = (priority, next(self._tickets))
        with self._changed:
            heapq.heappush(self._waiting, ours)
            self._changed.wait_for(lambda: self._idle and self._waiting[0] == ours)
            heapq.heappop(self._waiting)
            worker = self._idle.pop()
            self._changed.notify_all()
            return worker

    def _give_back(self, worker: _Worker | None) -> None:
        with self._changed:
            self._idle.append(worker)
            self._changed.notify_all()

    def _alive(self, worker: _Worker | None) -> _Worker:
        if worker is not None and worker.alive:
            return worker
        with self._lock:
            if self._stopped:
                raise WorkerCrashed("the node is stopping")
            worker = _Worker(*self._options, drawing_threads=self._drawing_threads)
            if self._nice:
                os.setpriority(os.PRIO_PROCESS, worker.pid, self._nice)
            self._started = [w for w in self._started if w.alive] + [worker]
        log.info("worker_started", pid=worker.pid)
        return worker

    def stop(self) -> None:
        """Kill all workers: what they were doing is done again after the next start."""
        with self._lock:
            self._stopped = True
            for worker in self._started:
                if worker.alive:
                    worker.kill()
