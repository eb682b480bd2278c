"""A process that runs pipelines: one JSON request a line on stdin, JSON events on stdout.

``python -m pipelines.worker``. A process of its own, because a codec or a renderer that crashes must not
take the listener along, and because pixels must not compete with it for the interpreter lock. Events:

    {"event": "ready"}                                              what a study needs is warm, without --cold
    {"event": "progress", "stage": …, "done": n, "total": n}        done == total == 0: the stage begins
    {"event": "request", "model": …, "seconds": s, "code": …}       to Triton, ended; code: "" or the error's
    {"event": "done", "summary": {…}}
    {"event": "failed", "code": …, "message": …, "hint": …, "retryable": …}

It ends when stdin closes, so it never outlives the node by more than the job that it holds.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from pipelines.errors import PipelineError
from pipelines.process import process
from pipelines.request import COLD, Access, decode_request
from pipelines.triton import InferenceClient
from pipelines.warm_up import warm_up

Emit = Callable[[dict[str, Any]], None]
#: how long a thread keeps the interpreter from another that waits for it: the one that draws asks for it
#: after each call of VTK, and would wait Python's 5 ms for it each time
SWITCH_SECONDS = 0.0002


def _claim_stdout() -> Emit:
    """Keep stdout for events alone: what native libraries print there goes to stderr instead."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it is a TextIOWrapper
    whole_line = threading.Lock()  # stages report from several threads

    def emit(event: dict[str, Any]) -> None:
        with whole_line:
            events.write(json.dumps(event) + "\n")
            events.flush()

    return emit


def _run(line: str, emit: Emit) -> None:
    try:
        message = json.loads(line)
        with InferenceClient(
            message["triton_url"],
            timeout_seconds=message["timeout_seconds"],
            access=Access(**message["access"]),
            on_request=lambda model, seconds, code: emit(
                {"event": "request", "model": model, "seconds": round(seconds, 4), "code": code}
            ),
        ) as client:
            summary = process(
                decode_request(message),
                client,
                lambda stage, done, total: emit(
                    {"event": "progress", "stage": stage, "done": done, "total": total}
                ),
            )
    except PipelineError as error:
        failure = {
            "code": error.code,
            "message": str(error),
            "hint": error.hint,
            "retryable": error.retryable,
        }
        emit({"event": "failed", **failure})
    except OSError as error:
        failure = {
            "code": "io_error",
            "message": f"the results can't be written, or the series read: {error.strerror or 'I/O error'}",
            "hint": "is the disk full or read-only, or was a file removed?",
            "retryable": True,
        }
        emit({"event": "failed", **failure})
    except Exception as error:  # the worker's boundary: whatever happened is recorded with the job
        traceback.print_tb(error.__traceback__)  # frames only: the message may quote patient data
        failure = {"code": "internal", "message": f"unexpected {type(error).__name__}", "retryable": False}
        emit({"event": "failed", **failure, "hint": "a defect of ours: the log has the traceback"})
    else:
        emit({"event": "done", "summary": summary})


def _read_requests(requests: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)  # the node is gone; whatever runs will be run again after its restart


def _warm_up() -> None:
    """Do now what the first study would wait for."""
    try:
        warm_up()
    except Exception as error:  # the worker's boundary: a study that fails likewise is recorded with its job
        traceback.print_tb(error.__traceback__)
    gc.collect()
    gc.freeze()  # modules stay: no collection during a study need look at them
    _give_back_memory()


def _give_back_memory() -> None:
    """What is free goes back to the system, which glibc alone does for the end of a heap only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def main() -> None:
    sys.setswitchinterval(SWITCH_SECONDS)
    emit = _claim_stdout()
    requests: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    if COLD not in sys.argv[1:]:
        _warm_up()
    emit({"event": "ready"})
    while True:
        _run(requests.get(), emit)
        _give_back_memory()


if __name__ == "__main__":
    main()
