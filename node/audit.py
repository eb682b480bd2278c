"""The audit trail (PS3.15 A.5): who was refused, what was transferred, when the node ran.

In: what the listener and the destinations report.  Out: files apart from the log, a message a line
(``audit_message``); from them, where there is one, a collector (``audit_syslog``).

One thread writes. What is written outlives the process at once, and a power cut after a second. Files rotate
at a size, and a flood of alerts is counted instead of written, so the trail can't fill the disk.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import structlog

from node.audit_message import (
    MINOR_FAILURE,
    SERIOUS_FAILURE,
    Peer,
    Source,
    Transfer,
    application_activity,
    begin_transferring,
    instances_accessed,
    instances_transferred,
    node_authentication,
    user_authentication,
)
from node.audit_syslog import SyslogForwarder
from node.config import AuditConfig
from node.files import fsync_folder
from node.metrics import AuditMetrics

log = structlog.get_logger("node.audit")

#: alerts of one kind and host that are written in full within ALERT_SECONDS; further ones are counted
ALERTS_IN_FULL = 5
ALERT_SECONDS = 60.0
#: kinds and hosts that are told apart within ALERT_SECONDS; further ones are counted together
ALERT_KEYS = 64
SYNC_SECONDS = 1.0
#: messages that may wait to be written; further ones are lost, and counted
QUEUE_LENGTH = 10_000

_Key = tuple[str, str]


class AlertLimit:
    """Which alerts of a flood are written, and how many weren't. Counts within windows of ALERT_SECONDS."""

    def __init__(self) -> None:
        self._seen: Counter[_Key] = Counter()
        self._window_ends = 0.0
        self._lock = threading.Lock()

    def admit(self, kind: str, address: str, now: float) -> bool:
        """Whether to write this one."""
        with self._lock:
            key = (kind, address)
            if key not in self._seen and len(self._seen) >= ALERT_KEYS:
                key = (kind, "several hosts")
            if not self._seen:
                self._window_ends = now + ALERT_SECONDS
            self._seen[key] += 1
            return self._seen[key] <= ALERTS_IN_FULL

    def suppressed(self, now: float) -> dict[_Key, int]:
        """What was counted in a window that is over, once: (kind, address) -> how many."""
        with self._lock:
            if not self._seen or now < self._window_ends:
                return {}
            seen, self._seen = self._seen, Counter()
        return {key: count - ALERTS_IN_FULL for key, count in seen.items() if count > ALERTS_IN_FULL}


class AuditTrail:
    """The trail of one process. Only ``start`` and ``stop`` raise or wait for the disk."""

    def __init__(self, config: AuditConfig, folder: Path, source: Source, metrics: AuditMetrics) -> None:
        """folder: where the files go when ``config`` names none.

        Raises ConfigError for TLS files that can't be used.
        """
        self._enabled = config.enabled
        self._source = source
        self._messages = metrics.messages
        path = (config.folder or folder) / f"audit-{source.process}.log"
        self._file = RotatingFile(path, config.max_file_bytes, config.max_files)
        self._limit = AlertLimit()
        self._queue: queue.Queue[bytes | None] = queue.Queue(QUEUE_LENGTH)
        self._failing = False
        self._thread = threading.Thread(target=self._write, name="audit", daemon=True)
        self._forwarder = (
            SyslogForwarder(config.syslog, path, config.max_files, source.process, metrics)
            if config.enabled and config.syslog is not None
            else None
        )

    def start(self) -> None:
        """Raises OSError when the file can't be written."""
        if self._enabled:
            self._file.open()
            self._thread.start()
            if self._forwarder is not None:
                self._forwarder.start()
            self._put(application_activity(self._source, started=True))

    def stop(self) -> None:
        """Write what waits. Harmless when it wasn't started."""
        if self._thread.is_alive():
            self._put_suppressed(float("inf"))
            self._put(application_activity(self._source, started=False))
            self._queue.put(None)
            self._thread.join()
            if self._forwarder is not None:
                self._forwarder.stop()

    def refused(self, peer: Peer, kind: str, why: str, *, outcome: int = SERIOUS_FAILURE) -> bool:
        """A node may not connect. kind: one of few.

        Returns whether it was written, or would be; otherwise it is one of a flood, and counted.
        """
        if not self._limit.admit(kind, peer.address, time.monotonic()):
            self._messages.labels(outcome="suppressed").inc()
            return False
        self._put(node_authentication(self._source, peer, why, outcome))
        return True

    def authenticated(self, user: str, address: str, what: Literal["login", "logout"], right: bool) -> None:
        """A user of the web pages logged in or out, or failed to."""
        if right or self._limit.admit("login", address, time.monotonic()):
            self._put(user_authentication(self._source, user, address, what, right=right))
        else:
            self._messages.labels(outcome="suppressed").inc()

    def accessed(self, user: str, address: str, study_instance_uid: str) -> None:
        """A user of the web pages was shown who the patient of a study is."""
        self._put(instances_accessed(self._source, user, address, study_instance_uid))

    def begin(self, transfer: Transfer) -> None:
        """Instances are about to be sent."""
        self._put(begin_transferring(self._source, transfer))

    def transferred(self, transfer: Transfer) -> None:
        """Instances were received or sent."""
        self._put(instances_transferred(self._source, transfer))

    def _put_suppressed(self, now: float) -> None:
        for (kind, address), count in self._limit.suppressed(now).items():
            why = f"{kind}: {count} more within {ALERT_SECONDS:.0f} s"
            self._put(node_authentication(self._source, Peer("", address), why, MINOR_FAILURE))

    def _put(self, line: bytes) -> None:
        if not self._enabled:
            return
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self._messages.labels(outcome="lost").inc()

    def _write(self) -> None:
        line: bytes | None = b""
        next_sync = 0.0
        while line is not None:
            try:
                line = self._queue.get(timeout=SYNC_SECONDS)
            except queue.Empty:
                line = b""
            if line:
                self._try(self._file.append, line)
                if self._forwarder is not None and self._queue.empty():
                    self._forwarder.wake()
            if line is None or time.monotonic() >= next_sync:
                self._put_suppressed(time.monotonic())
                self._try(self._file.sync)
                next_sync = time.monotonic() + SYNC_SECONDS
        self._file.close()

    def _try(self, action: Callable[..., None], *line: bytes) -> None:
        try:
            action(*line)
        except OSError as error:
            if not self._failing:
                log.error("audit_trail_failed", reason=str(error), hint="is the disk full?")
            self._failing = True
            self._messages.labels(outcome="lost").inc(len(line))
        else:
            self._failing = self._failing and not line
            self._messages.labels(outcome="written").inc(len(line))


class RotatingFile:
    """Lines in ``path``; full files are named ``path``.1 (the newest), .2 … and the oldest goes."""

    def __init__(self, path: Path, max_bytes: int, max_files: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._file = -1
        self._size = 0
        self._unsynced = False

    def open(self) -> None:
        """Go on where a former process ended."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(self._path, flags, 0o640)
        fsync_folder(self._path.parent)
        self._size = os.fstat(self._file).st_size
        if self._size and os.pread(self._file, 1, self._size - 1) != b"\n":
            self._size += os.write(self._file, b"\n")  # its last line is cut short

    def append(self, line: bytes) -> None:
        """Raises OSError; then nothing is left of the line."""
        if self._file < 0 or self._size + len(line) > self._max_bytes:
            self._rotate()
        written = os.write(self._file, line)
        if written < len(line):
            os.ftruncate(self._file, self._size)
            raise OSError(f"{self._path}: {written} of {len(line)} bytes could be written")
        self._size += written
        self._unsynced = True

    def sync(self) -> None:
        """Make the lines so far durable."""
        if self._unsynced:
            os.fdatasync(self._file)
            self._unsynced = False

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _rotate(self) -> None:
        if self._file >= 0:
            self.sync()
            self.close()
            for number in range(self._max_files - 1, 0, -1):
                with suppress(FileNotFoundError):
                    self._numbered(number - 1).replace(self._numbered(number))
        self.open()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path
