"""C-STORE as destination: one association a result set, each instance's status judged (PS3.4 B.2.3).

In: the files of a result set.  Out: them stored at the peer, over TLS where that is configured, and what was
sent in the audit trail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydicom import dcmread
from pydicom.uid import UID
from pynetdicom import AE, Association
from pynetdicom.sop_class import Verification

from node.audit import AuditTrail
from node.audit_message import Peer, Transfer
from node.config import CStoreDestination
from node.errors import DeliveryError
from node.scu import request_association
from node.tls import ClientHandshake, TlsContext, reason_of

log = structlog.get_logger(__name__)

MAX_PDU_BYTES = 131072


class CStoreDeliverer:
    """Sends to one storage SCP."""

    def __init__(
        self,
        name: str,
        config: CStoreDestination,
        *,
        calling_ae_title: str,
        tls: TlsContext | None = None,
        audit: AuditTrail | None = None,
    ) -> None:
        self._name = name
        self._config = config
        self._calling_ae_title = calling_ae_title
        self._tls = tls
        self._audit = audit

    def deliver(self, files: Sequence[Path]) -> None:
        """See ``Deliverer``.

        Not retryable: a SOP class that the peer doesn't accept in our transfer syntax, and the permanent
        failures 0xA8xx, 0xA9xx, 0xCxxx. Warnings (0xB000, 0xB006, 0xB007) count as stored.
        """
        headers = [_Header.read(file) for file in files]
        kinds = sorted({(header.sop_class, header.transfer_syntax) for header in headers})
        with self._association(kinds) as association:
            accepted = {(c.abstract_syntax, c.transfer_syntax[0]) for c in association.accepted_contexts}
            for kind in kinds:
                if kind not in accepted:
                    raise self._not_accepted(kind)
            with self._audited(headers) as sent:
                for file, header in zip(files, headers, strict=True):
                    self._send(association, file)
                    sent.append(header)

    def check(self) -> None:
        """C-ECHO."""
        with self._association([(str(Verification), "1.2.840.10008.1.2")]) as association:
            status = association.send_c_echo()
            if status.get("Status") != 0x0000:
                raise DeliveryError(f"{self._peer()}: C-ECHO was not answered with success")

    @contextmanager
    def _audited(self, headers: Sequence[_Header]) -> Iterator[list[_Header]]:
        """Tell the audit trail what is about to be sent, and then what was: the yielded list."""
        sent: list[_Header] = []
        if self._audit is None:
            yield sent
            return
        for transfer in self._transfers(headers):
            self._audit.begin(transfer)
        failure = "the delivery failed half-way"
        try:
            yield sent
            failure = ""
        finally:
            for transfer in self._transfers(sent, failure):
                self._audit.transferred(transfer)

    def _transfers(self, headers: Sequence[_Header], failure: str = "") -> list[Transfer]:
        """One a study."""
        peer = Peer(self._config.ae_title, self._config.host)
        return [
            Transfer(
                peer,
                "sent",
                study,
                Counter(header.sop_class for header in headers if header.study == study),
                failure,
            )
            for study in sorted({header.study for header in headers})
        ]

    @contextmanager
    def _association(self, kinds: Sequence[tuple[str, str]]) -> Iterator[Association]:
        config = self._config
        ae = AE(ae_title=self._calling_ae_title)
        ae.maximum_pdu_size = MAX_PDU_BYTES
        for sop_class, syntax in kinds:
            ae.add_requested_context(sop_class, syntax)
        handshake = ClientHandshake(self._tls.current()) if self._tls is not None else None
        association = request_association(
            ae,
            (config.host, config.port),
            ae_title=config.ae_title,
            timeout_seconds=config.timeout_seconds,
            tls=config.tls,
            handshake=handshake,
            max_pdu=MAX_PDU_BYTES,
        )
        if not association.is_established:
            if handshake is not None and handshake.error is not None:
                raise self._tls_failed(handshake.error)
            raise self._why_not(association, kinds)
        try:
            yield association
        finally:
            if association.is_established:
                association.release()

    def _send(self, association: Association, file: Path) -> None:
        dataset = dcmread(file)
        uid = str(dataset.SOPInstanceUID)
        if not association.is_established:
            raise DeliveryError(f"{self._peer()}: the association ended before {uid}")
        status = association.send_c_store(dataset).get("Status")
        if status is None:
            raise DeliveryError(f"{self._peer()}: no answer to C-STORE of {uid}")
        if status == 0x0000:
            return
        if status in (0xB000, 0xB006, 0xB007):
            log.warning(
                "c_store_warning", destination=self._name, sop_instance_uid=uid, status=f"{status:#06x}"
            )
            return
        raise DeliveryError(
            f"{self._peer()}: C-STORE of {uid} failed with status {status:#06x}",
            hint="see the destination's log",
            code="c_store_failed",
            retryable=status >> 8 not in (0xA8, 0xA9) and status >> 12 != 0xC,
        )

    def _peer(self) -> str:
        config = self._config
        return f"destination {self._name} ({config.ae_title} at {config.host}:{config.port})"

    def _why_not(self, association: Association, kinds: Sequence[tuple[str, str]]) -> DeliveryError:
        answer = association.acceptor.primitive
        if association.is_rejected:
            why = f"association rejected: {answer.result_str}, {answer.reason_str}"
        elif answer is None:
            why = "no connection"
        elif not association.accepted_contexts:
            return self._not_accepted(kinds[0])
        else:
            why = "the association ended at once"
        return DeliveryError(f"{self._peer()}: {why}", hint="is it up, and does it know us?")

    def _tls_failed(self, error: OSError) -> DeliveryError:
        why = f"TLS failed: {reason_of(error)}"
        if self._audit is not None:
            self._audit.refused(
                Peer(self._config.ae_title, self._config.host), "tls", f"{self._peer()}: {why}"
            )
        return DeliveryError(
            f"{self._peer()}: {why}",
            hint="do its certificate, our ca and server_name, and our certificate and its CA fit together?",
            code="tls_failed",
        )

    def _not_accepted(self, kind: tuple[str, str]) -> DeliveryError:
        sop_class, syntax = (UID(uid).name for uid in kind)
        return DeliveryError(
            f"{self._peer()} doesn't accept SOP class {sop_class} in {syntax}",
            hint="allow it at the destination",
            code="sop_class_not_accepted",
            retryable=False,
        )


@dataclass(frozen=True)
class _Header:
    """What is to be known of an object before it is sent."""

    sop_class: str
    transfer_syntax: str
    study: str

    @classmethod
    def read(cls, file: Path) -> _Header:
        header = dcmread(file, specific_tags=["SOPClassUID", "StudyInstanceUID"], stop_before_pixels=True)
        syntax = header.file_meta.TransferSyntaxUID
        return cls(str(header.SOPClassUID), str(syntax), str(header.StudyInstanceUID))
