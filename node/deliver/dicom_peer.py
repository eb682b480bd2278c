"""An association with a destination, over TLS where that is configured, or a DeliveryError that says why not.

In: what is to be negotiated.  Out: an established association, released at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pynetdicom import AE, Association

from node.audit import AuditTrail
from node.audit_message import Peer
from node.config import CStoreDestination
from node.errors import DeliveryError
from node.scu import Missing, NotAssociated, release, request_association
from node.tls import TLS_HINT, ClientHandshake, TlsContext

MAX_PDU_BYTES = 131072


@dataclass(frozen=True)
class DicomPeer:
    """Whom to associate with. config: of the destination; its address and titles may be replaced for a peer
    that does something else for it."""

    name: str
    config: CStoreDestination
    calling_ae_title: str
    tls: TlsContext | None = None
    audit: AuditTrail | None = None

    def __str__(self) -> str:
        config = self.config
        return f"destination {self.name} ({config.ae_title} at {config.host}:{config.port})"

    @property
    def address(self) -> Peer:
        return Peer(self.config.ae_title, self.config.host)

    @contextmanager
    def associated(
        self, ae: AE, none_accepted: Callable[[], DeliveryError], **more: Any
    ) -> Iterator[Association]:
        """Associate, and release at the end. Raises DeliveryError.

        ae: with its requested contexts.  none_accepted: what to raise when the peer accepts none of them.
        more: of ``AE.associate``.
        """
        config = self.config
        ae.ae_title = self.calling_ae_title
        ae.maximum_pdu_size = MAX_PDU_BYTES
        handshake = ClientHandshake(self.tls.current()) if self.tls is not None else None
        try:
            association = request_association(
                ae,
                (config.host, config.port),
                ae_title=config.ae_title,
                timeout_seconds=config.timeout_seconds,
                tls=config.tls,
                handshake=handshake,
                max_pdu=MAX_PDU_BYTES,
                **more,
            )
        except NotAssociated as why:
            if why.missing is Missing.NONE_ACCEPTED:
                raise none_accepted() from why
            raise self._error(why) from why
        try:
            yield association
        finally:
            release(association)

    def _error(self, why: NotAssociated) -> DeliveryError:
        code, hint = "destination_down", "is it up, and does it know us?"
        if why.missing is Missing.REJECTED:
            code = "destination_refused"
        if why.missing is Missing.TLS:
            code, hint = "tls_failed", TLS_HINT
            if self.audit is not None:
                self.audit.refused(self.address, "tls", f"{self}: {why}")
        return DeliveryError(f"{self}: {why}", hint=hint, code=code)
