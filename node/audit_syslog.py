"""Sends the audit trail to a collector: syslog over TLS (PS3.15 A.6; RFC 5424 and 5425).

In: the trail's files, which are the buffer while the collector is away.  Out: each message at least once, in
order. Syslog has no answers: a message counts as arrived when the collector's machine has acknowledged its
bytes (TCP). What it held and didn't read when it died is lost; what wasn't acknowledged is sent again.
"""

from __future__ import annotations

import fcntl
import random
import re
import socket
import ssl
import struct
import termios
import threading
import time
from contextlib import suppress
from pathlib import Path

import structlog

from node.audit_reader import TrailReader
from node.backoff import Backoff
from node.config import SyslogConfig
from node.errors import DeliveryError
from node.metrics import AuditMetrics
from node.tls import TLS_HINT, TlsContext, reason_of, syslog_context

log = structlog.get_logger("node.audit")

#: facility 10 (security/authorization) and severity 5 (normal but significant) or 4 (warning), PS3.15 A.6
_FACILITY, _NOTICE, _WARNING = 10, 5, 4
_MESSAGE_ID = "DICOM+RFC3881"
_BOM = b"\xef\xbb\xbf"  # RFC 5424 6.4: what follows is UTF-8
_EVENT = re.compile(rb'EventDateTime="([^"]+)" EventOutcomeIndicator="(\d+)"')

_LOOK_SECONDS = 1.0
_BACKOFF = Backoff(1.0, 60.0)
#: what is left when the node stops may take so long
_LAST_SECONDS = 3.0


def syslog_message(line: bytes, process: str, host: str) -> bytes:
    """One message of the trail as RFC 5424's SYSLOG-MSG in RFC 5425's frame."""
    event = _EVENT.search(line)
    when, outcome = (event[1].decode("ascii"), int(event[2])) if event else ("-", 0)
    priority = _FACILITY * 8 + (_WARNING if outcome else _NOTICE)
    header = f"<{priority}>1 {when} {host} pacsnode {process} {_MESSAGE_ID} - ".encode("ascii")
    message = header + _BOM + line
    return f"{len(message)} ".encode("ascii") + message


def host_name() -> str:
    """RFC 5424's HOSTNAME of this machine."""
    return "".join(c for c in socket.gethostname() if "!" <= c <= "~")[:255] or "-"


def check_collector(config: SyslogConfig) -> None:
    """Raises DeliveryError unless it takes a connection and we trust each other."""
    connection = _Connection.open(config, syslog_context(config))
    try:
        connection.check(patience_seconds=0.2)
    finally:
        connection.close()


class SyslogForwarder:
    """One trail's, in a thread of its own. Only ``start`` raises."""

    def __init__(
        self, config: SyslogConfig, path: Path, max_files: int, process: str, metrics: AuditMetrics
    ) -> None:
        """path: the trail's newest file. Raises ConfigError for TLS files that can't be used."""
        self._config = config
        self._tls = syslog_context(config, metrics.tls())
        self._reader = TrailReader(path, max_files)
        self._process = process
        self._metrics = metrics
        self._host = host_name()
        self._connection: _Connection | None = None
        self._failures = 0
        self._gaps = 0
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit-syslog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There is something to send."""
        self._wake.set()

    def stop(self) -> None:
        """Send what is there, if that can be done soon. Harmless when it wasn't started."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_LAST_SECONDS)

    def _run(self) -> None:
        while True:
            last = self._stopping.is_set()
            self._wake.clear()
            self._turn()
            if last:
                break
            if self._failures:
                longest = _BACKOFF.longest(self._failures)
                self._stopping.wait(random.uniform(longest / 2, longest))  # noqa: S311 - no secret
            else:
                self._wake.wait(_LOOK_SECONDS)
        self._disconnect()
        self._reader.close()

    def _turn(self) -> None:
        """Send all there is."""
        try:
            self._send_all()
        except (DeliveryError, OSError) as error:
            self._disconnect()
            self._reader.again()
            if not self._failures:
                hint = getattr(error, "hint", "") or "messages wait in the trail's files"
                log.error("audit_collector_fails", collector=self._name, reason=str(error), hint=hint)
            self._failures += 1
        self._metrics.unsent_bytes.set(self._reader.waiting_bytes())

    def _send_all(self) -> None:
        if self._connection is not None:
            self._connection.check()  # RFC 5425 4.4: it may have closed, and what is sent then is lost
        while lines := self._reader.read():
            if self._reader.gaps > self._gaps:
                self._gaps = self._reader.gaps
                self._metrics.messages.labels(outcome="lost").inc()
                log.error(
                    "audit_messages_not_sent",
                    reason="files of the trail were removed before the collector had them",
                    hint="raise audit.max_files",
                )
            if self._connection is None:
                self._connection = _Connection.open(self._config, self._tls)
            self._connection.send(b"".join(syslog_message(one, self._process, self._host) for one in lines))
            self._reader.accept()
            self._metrics.messages.labels(outcome="sent").inc(len(lines))
            if self._failures:
                log.info("audit_collector_back", collector=self._name)
                self._failures = 0

    @property
    def _name(self) -> str:
        return f"{self._config.host}:{self._config.port}"

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Connection:
    """To a collector. Every method but ``close`` raises DeliveryError."""

    def __init__(self, tls: ssl.SSLSocket, timeout_seconds: float) -> None:
        self._tls = tls
        self._timeout_seconds = timeout_seconds

    @classmethod
    def open(cls, config: SyslogConfig, context: TlsContext) -> _Connection:
        where = f"collector {config.host}:{config.port}"
        try:
            plain = socket.create_connection((config.host, config.port), config.timeout_seconds)
        except OSError as error:
            raise DeliveryError(
                f"{where} can't be reached: {reason_of(error)}",
                hint="is it running, and do audit.syslog.host and port name it?",
            ) from error
        try:
            name = config.tls.server_name or config.host
            return cls(context.current().wrap_socket(plain, server_hostname=name), config.timeout_seconds)
        except OSError as error:
            plain.close()
            raise DeliveryError(f"{where}: {reason_of(error)}", hint=TLS_HINT) from error

    def check(self, patience_seconds: float = 0.0) -> None:
        """A collector says nothing; what there is to read is its end, or why it refuses our certificate."""
        self._tls.settimeout(patience_seconds)
        try:
            while self._tls.recv(4096):
                pass
        except (ssl.SSLWantReadError, BlockingIOError, TimeoutError):
            self._tls.settimeout(self._timeout_seconds)
        except OSError as error:
            raise DeliveryError(f"the collector closed: {reason_of(error)}", hint=TLS_HINT) from error
        else:
            raise DeliveryError("the collector closed the connection", hint=TLS_HINT)

    def send(self, data: bytes) -> None:
        """Until the collector's machine has acknowledged all of it."""
        deadline = time.monotonic() + self._timeout_seconds
        try:
            self._tls.settimeout(self._timeout_seconds)
            self._tls.sendall(data)
            while struct.unpack("i", fcntl.ioctl(self._tls.fileno(), termios.TIOCOUTQ, bytes(4)))[0]:
                if time.monotonic() > deadline:
                    raise DeliveryError(
                        f"the collector took nothing for {self._timeout_seconds:g} s",
                        hint="is it overloaded?",
                    )
                time.sleep(0.001)
        except OSError as error:
            raise DeliveryError(
                f"the collector can't be sent to: {reason_of(error)}", hint=TLS_HINT
            ) from error
        self.check()

    def close(self) -> None:
        with suppress(OSError):
            self._tls.unwrap()
        self._tls.close()
