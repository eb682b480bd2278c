"""The receiver: listener, spool, journal and series tracker in a process of their own.

``python -m node.receive``, started by ``node/receive/process.py``. Apart from the rest of the node, because
pipelines, workflows and web pages must not compete with it for the interpreter lock, nor for memory.

In, on stdin: the node's configuration as one line of JSON; then ``metrics`` whenever these are wanted. The
end of stdin is the end of the node: the receiver ends at once, as if killed.
Out, on stdout: lines of JSON.

    {"event": "ready", "port": …}
    {"event": "failed", "message": …, "hint": …}                         it can't start
    {"event": "complete", "series_instance_uid": …, "version": …}        to be routed; at least once
    {"event": "metrics", "text": …}
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from node.audit import AuditTrail
from node.audit_message import Source
from node.config import NodeConfig
from node.database import open_database
from node.errors import ConfigError
from node.files import lock
from node.log import configure_logging
from node.metrics import ReceiveMetrics
from node.receive.commitment import CommitmentService
from node.receive.header_reader import HeaderReader
from node.receive.inquiry import FetchTarget, Inquiries, keep_fetched_in
from node.receive.listener import Listener
from node.receive.movers import Movers
from node.receive.reconcile import reconcile
from node.receive.series import SeriesTracker
from node.receive.spool import Spool

#: running associations may go on for so long after SIGTERM
STOP_GRACE_SECONDS = 10.0
#: a receiver of a node that was killed needs a moment to notice
LOCK_SECONDS = 15.0

Emit = Callable[[dict[str, Any]], None]


def _claim_stdout() -> Emit:
    """Keep stdout for events alone."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    lock = threading.Lock()

    def emit(event: dict[str, Any]) -> None:
        with lock:
            events.write(json.dumps(event) + "\n")
            events.flush()

    return emit


def _start_movers(config: NodeConfig, stack: ExitStack) -> Movers | None:
    """Before any thread is started: they are forked."""
    config.data_dir.mkdir(parents=True, exist_ok=True)
    # two would reconcile each other's running transfers away
    lock(config.data_dir / "receive.lock", stack, wait_seconds=LOCK_SECONDS)
    receive = config.receive
    return Movers(config, receive.movers) if receive.movers and receive.tls is None else None


def _start(
    config: NodeConfig, metrics: ReceiveMetrics, movers: Movers | None, emit: Emit, stack: ExitStack
) -> Listener:
    """Start everything; ``stack`` stops it in reverse."""
    engine = open_database(config.data_dir)
    stack.callback(engine.dispose)

    def complete(series_instance_uid: str, version: int) -> None:
        emit({"event": "complete", "series_instance_uid": series_instance_uid, "version": version})

    headers = HeaderReader(engine, config.data_dir)
    stack.callback(headers.stop)
    inquiries = Inquiries(engine, config.query, metrics, ae_title=config.receive.ae_title)
    stack.callback(inquiries.stop)
    tracker = SeriesTracker(engine, config.series, complete, metrics, headers=headers, inquiries=inquiries)
    spool = Spool(
        config.data_dir,
        engine,
        tracker,
        free_disk_floor_bytes=config.receive.free_disk_floor_bytes,
        journal_bytes=0 if movers else config.receive.journal_bytes,
    )
    reconcile(spool, engine)
    spool.journal.start()
    if movers is not None:
        movers.begin(spool)
        stack.callback(movers.stop)
        spool.file_all = movers.file_all
    tracker.file_all = spool.file_all
    inquiries.target = FetchTarget(spool, tracker)
    keep_fetched_in(spool.incoming)  # emptied at each start
    tracker.start()
    stack.callback(tracker.stop)
    stack.callback(spool.journal.stop)
    audit = AuditTrail(
        config.audit,
        config.data_dir / "audit",
        Source(config.receive.ae_title, "receive", config.audit.enterprise_site_id),
        metrics.audit_messages,
    )
    audit.start()
    stack.callback(audit.stop)
    commitment = CommitmentService(config.receive, engine, spool, metrics)
    commitment.start()
    stack.callback(commitment.stop)
    listener = Listener(config.receive, spool, tracker, metrics, audit, commitment=commitment, movers=movers)
    listener.start()
    stack.callback(listener.stop, STOP_GRACE_SECONDS)
    return listener


def _answer(metrics: ReceiveMetrics, emit: Emit) -> None:
    for line in sys.stdin:
        if line.strip() == "metrics":
            emit({"event": "metrics", "text": metrics.expose().decode()})
    os._exit(1)


def main() -> None:
    emit = _claim_stdout()
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the node, which tells us
    config = NodeConfig.model_validate_json(sys.stdin.readline())
    configure_logging(config.log)
    with ExitStack() as stack:
        try:
            movers = _start_movers(config, stack)
            metrics = ReceiveMetrics()
            listener = _start(config, metrics, movers, emit, stack)
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
        except ConfigError as error:
            emit({"event": "failed", "message": str(error), "hint": error.hint})
            sys.exit(1)
        emit({"event": "ready", "port": listener.port})
        threading.Thread(target=_answer, args=(metrics, emit), name="answers", daemon=True).start()
        stopping.wait()
    sys.stderr.flush()
    os._exit(0)  # threads of libraries must not hold the process back


if __name__ == "__main__":
    main()
