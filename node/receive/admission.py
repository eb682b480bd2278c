"""Who gets an association: hosts, AE titles, limits, space; and what becomes of those who don't.

In: connections as they are accepted, then their A-ASSOCIATE-RQs.  Out: associations that count, or an
A-ASSOCIATE-RJ (PS3.8 9.3.4) with a metric, a log line, a row for the page and an entry of the audit trail.
"""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

import structlog

from node.audit import AuditTrail
from node.audit_message import MINOR_FAILURE, SERIOUS_FAILURE, Peer
from node.config import ReceiveConfig
from node.reasons import WORDS, Kind, worded
from node.receive.metrics import ReceiveMetrics
from node.receive.part10 import printable
from node.receive.refusals import Refused
from node.tls import reason_of

log = structlog.get_logger("node.receive.admission")

#: Connections that may wait before their association: in the TLS handshake, or without an A-ASSOCIATE-RQ.
#: With more, the oldest of the host that has most of them is dropped, which isn't one that gets on with it.
MAX_WAITING = 64

_PERMANENT, _TRANSIENT = 1, 2
_SERVICE_USER, _PRESENTATION = 1, 3


@dataclass(frozen=True)
class Rejection:
    """result, source, diagnostic: of the A-ASSOCIATE-RJ.  reason: its code."""

    result: int
    source: int
    diagnostic: int
    reason: str

    @property
    def why(self) -> str:
        """For people."""
        return WORDS[Kind.REJECTED][self.reason]

    @property
    def outcome(self) -> int:
        """For the audit trail."""
        return SERIOUS_FAILURE if self.result == _PERMANENT else MINOR_FAILURE


#: PS3.8 table 9-21. The host's has no code of its own.
REJECTIONS = {
    rejection.reason: rejection
    for rejection in (
        Rejection(_PERMANENT, _SERVICE_USER, 1, "host"),
        Rejection(_PERMANENT, _SERVICE_USER, 3, "calling_ae_title"),
        Rejection(_PERMANENT, _SERVICE_USER, 7, "called_ae_title"),
        Rejection(_TRANSIENT, _PRESENTATION, 1, "no_space"),
        Rejection(_TRANSIENT, _PRESENTATION, 2, "too_many_associations"),
        Rejection(_TRANSIENT, _PRESENTATION, 2, "too_many_of_peer"),
    )
}


def host_of(address: Any) -> str:
    """The IP address of a socket's address; IPv4's own form where IPv6 wraps it."""
    return str(address[0]).removeprefix("::ffff:")


class Admission:
    """Safe to use from the server's thread and those of the associations."""

    def __init__(
        self,
        config: ReceiveConfig,
        has_space: Callable[[], bool],
        audit: AuditTrail,
        metrics: ReceiveMetrics,
        refused: Refused = lambda *_: None,
    ) -> None:
        self._config = config
        self._refused = refused
        self._networks = [ip_network(network) for network in config.allowed_hosts]
        self._has_space = has_space
        self._audit = audit
        self._metrics = metrics
        self._lock = threading.Lock()
        self._waiting: dict[socket.socket, str] = {}  # in the order of their coming; -> host
        self._admitted: dict[Any, str] = {}  # pynetdicom Association -> host

    def connected(self, connection: socket.socket, host: str) -> None:
        """A connection was accepted. It waits until ``admit``, or until it is closed."""
        with self._lock:
            self._waiting = {one: its for one, its in self._waiting.items() if one.fileno() >= 0}
            self._waiting[connection] = host
            if len(self._waiting) <= MAX_WAITING:
                return
            ((crowd, _count),) = Counter(self._waiting.values()).most_common(1)
            victim = next(one for one, its in self._waiting.items() if its == crowd)
            del self._waiting[victim]
        self._metrics.connections_dropped.labels(reason="too_many").inc()
        hang_up(victim)

    def handshake_failed(self, host: str, error: OSError) -> None:
        """A connection didn't get through TLS."""
        self._metrics.connections_dropped.labels(reason="tls").inc()
        reason = reason_of(error)
        if self._audit.refused(Peer("", host), "tls", f"TLS handshake failed: {reason}"):
            log.warning("tls_handshake_failed", peer=host, reason=reason)

    def admit(self, association: Any) -> bool:
        """Whether an association that is asked for may be; otherwise it was rejected."""
        request = association.requestor.primitive
        host = host_of((association.requestor.address,))
        rejection = self._objection(host, str(request.calling_ae_title), str(request.called_ae_title))
        if rejection is None:
            rejection = self._take_place(association, host)
        if rejection is None:
            return True
        self._metrics.associations_rejected.labels(reason=rejection.reason).inc()
        calling = printable(str(request.calling_ae_title)).strip()
        called = printable(str(request.called_ae_title)).strip()
        detail = self._detail(rejection.reason, host, calling, called)
        why = worded(Kind.REJECTED, rejection.reason, detail)
        self._refused(Kind.REJECTED, why.code, detail, Peer(calling, host))
        if self._audit.refused(
            Peer(calling, host),
            rejection.reason,
            f"association rejected: {why.sentence}",
            outcome=rejection.outcome,
        ):
            log.warning(
                "association_rejected",
                code=why.code,
                reason=why.sentence,
                calling_ae_title=calling,
                called_ae_title=called,
                peer=host,
            )
        association.acse.send_reject(rejection.result, rejection.source, rejection.diagnostic)
        association.kill()
        return False

    def leave(self, association: Any) -> None:
        """It ended: its place is free. What ends otherwise frees its place with its threads."""
        with self._lock:
            self._admitted.pop(association, None)

    def _detail(self, code: str, host: str, calling: str, called: str) -> str:
        """What is particular of a rejection."""
        config = self._config
        return {
            "host": host,
            "calling_ae_title": f"{calling!r} isn't in receive.allowed_calling_ae_titles",
            "called_ae_title": f"{called!r} isn't receive.ae_title, {config.ae_title!r}",
            "no_space": f"{config.free_disk_floor_bytes} bytes have to be free",
            "too_many_associations": f"{config.max_associations}",
            "too_many_of_peer": f"{config.max_associations_per_peer} from {host}",
        }[code]

    def _objection(self, host: str, calling: str, called: str) -> Rejection | None:
        config = self._config
        if self._networks and not any(ip_address(host) in network for network in self._networks):
            return REJECTIONS["host"]
        if config.require_called_ae_title and called.strip() != config.ae_title:
            return REJECTIONS["called_ae_title"]
        allowed = config.allow_any_calling_ae_title or calling.strip() in config.allowed_calling_ae_titles
        if not allowed:
            return REJECTIONS["calling_ae_title"]
        if not self._has_space():
            return REJECTIONS["no_space"]
        return None

    def _take_place(self, association: Any, host: str) -> Rejection | None:
        connection = association.dul.socket.socket
        with self._lock:
            self._admitted = {one: its for one, its in self._admitted.items() if one.is_alive()}
            if len(self._admitted) >= self._config.max_associations:
                return REJECTIONS["too_many_associations"]
            of_peer = sum(its == host for its in self._admitted.values())
            if of_peer >= self._config.max_associations_per_peer:
                return REJECTIONS["too_many_of_peer"]
            self._admitted[association] = host
            self._waiting.pop(connection, None)
        return None


def hang_up(connection: socket.socket) -> None:
    """End a connection that another thread may be using: its next read or write fails.

    Not by SSLSocket's own shutdown: that would let the thread go on without TLS.
    """
    with suppress(OSError):  # closed already
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
