"""The receiver: listener, spool, journal and series tracker in a process of their own.

``python -m node.receive``, started by ``node/receive/process.py``. Apart from the rest of the node, because
pipelines, workflows and web pages must not compete with it for the interpreter lock, nor for memory.

In, on stdin: the node's configuration as one line of JSON; then ``metrics`` whenever these are wanted, and
orders as lines of JSON, each with a token (``Taking.obey``). The end of stdin is the end of the node: the
receiver ends at once, as if killed.
Out, on stdout: lines of JSON.

    {"event": "ready", "port": …}
    {"event": "failed", "message": …, "hint": …}                         it can't start
    {"event": "complete", "series_instance_uid": …, "version": …}        to be routed; at least once
    {"event": "metrics", "text": …}
    {"event": "obeyed", "token": …, "taken": […]}                        or "error" instead of "taken"
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from pydicom.config import IGNORE, settings
from pynetdicom import _config as pynetdicom_config

from node.config import NodeConfig
from node.errors import NodeError
from node.failpoints import failpoint
from node.log import configure_logging
from node.receive.inquiry import keep_fetched_in
from node.receive.places import INCOMING
from node.receive.receiver import Receiver
from node.receive.taking import Taking
from node.stopping import wait_until

#: running associations may go on for so long after SIGTERM
STOP_GRACE_SECONDS = 10.0
ORDERS_AT_ONCE = 4

log = structlog.get_logger("node.receive")

Emit = Callable[[dict[str, Any]], None]


def _claim_stdout() -> Emit:
    """Keep stdout for events alone."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    lock = threading.Lock()

    def emit(event: dict[str, Any]) -> None:
        with lock:
            try:
                events.write(json.dumps(event) + "\n")
                events.flush()
            except BrokenPipeError:  # the node is gone
                os._exit(1)

    return emit


def _answer(receiver: Receiver, emit: Emit) -> None:
    """Until the node ends. Orders take their time, so they have threads."""
    with ThreadPoolExecutor(ORDERS_AT_ONCE, thread_name_prefix="taking") as threads:
        for line in sys.stdin:
            if line.strip() == "metrics":
                emit({"event": "metrics", "text": receiver.metrics.expose().decode()})
            elif line.strip():
                threads.submit(_obey, receiver.taking, json.loads(line), emit)
        os._exit(1)


def _obey(taking: Taking, order: dict[str, Any], emit: Emit) -> None:
    answer: dict[str, Any] = {"event": "obeyed", "token": order["token"]}
    try:
        answer["taken"] = taking.obey(order)
    except Exception as error:  # a thread's boundary: who waits for the answer has to hear of it
        log.error("order_failed", order=order["order"], exc_info=True)
        answer["error"] = type(error).__name__
    emit(answer)


def _leave_out() -> None:
    """What libraries would do for each association and we use nothing of: text of each PDU for a debug log,
    a traceback for each garbage that anyone sends, and a look at each UID whether it is well formed."""
    pynetdicom_config.LOG_HANDLER_LEVEL = "none"
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # what matters of it we log ourselves
    settings.reading_validation_mode = IGNORE


def main() -> None:
    emit = _claim_stdout()
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the node, which tells us
    config = NodeConfig.model_validate_json(sys.stdin.readline())
    configure_logging(config.log)
    _leave_out()
    keep_fetched_in(config.own_dir / INCOMING)  # emptied at each start

    def complete(series_instance_uid: str, version: int) -> None:
        failpoint("series.complete")
        emit({"event": "complete", "series_instance_uid": series_instance_uid, "version": version})
        failpoint("series.told")

    receiver = Receiver(config, complete)
    try:
        receiver.start()
    except OSError as error:
        receive = config.receive
        emit(
            {
                "event": "failed",
                "message": f"receive {receive.host}:{receive.port}: {error.strerror or error}",
                "hint": "is the port in use, and may we write to data_dir?",
            }
        )
        sys.exit(1)
    except NodeError as error:
        emit({"event": "failed", "message": str(error), "hint": error.hint})
        sys.exit(1)
    emit({"event": "ready", "port": receiver.listener.port})
    threading.Thread(target=_answer, args=(receiver, emit), name="answers", daemon=True).start()
    wait_until(stopping)
    receiver.stop(STOP_GRACE_SECONDS)
    sys.stderr.flush()
    os._exit(0)  # threads of libraries must not hold the process back


if __name__ == "__main__":
    main()
