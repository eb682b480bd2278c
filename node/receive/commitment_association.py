"""N-EVENT-REPORT over an association, at any time and from any thread (PS3.7 10.1.1 and 10.3.1).

In: reports.  Out: the peer's answers to them; and the peer's N-ACTIONs, to whom they are for.

pynetdicom's ``send_n_event_report`` takes the next message that comes for its answer, whatever it is. On an
association that the peer goes on using, it may be a C-ECHO or another N-ACTION. Here answers are matched by
Message ID where pynetdicom's reactor hands each message on, and nothing is held up meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from pynetdicom import AE, build_context, build_role
from pynetdicom.dimse_messages import N_EVENT_REPORT_RQ
from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from node.config import CommitmentPeer
from node.scu import Missing, NotAssociated, release, request_association
from node.tls import ClientHandshake

#: ours first, then what every AE has to support (PS3.5 10.1)
TRANSFER_SYNTAXES = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
_IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
#: how long an answer may take to be noticed to come no more: the association ended
_LOOK_SECONDS = 0.1


class NotReported(Exception):
    """The peer didn't take a report. The message is for people.

    final: it wouldn't the next time either.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class ReportingAssociation:
    """An established or just requested association of pynetdicom's, in either role."""

    def __init__(
        self,
        association: Any,
        on_action: Callable[[ReportingAssociation, N_ACTION, PresentationContext], None] | None = None,
        on_event: Callable[[ReportingAssociation, N_EVENT_REPORT, PresentationContext], None] | None = None,
    ) -> None:
        """on_action, on_event: answer an N-ACTION-RQ or an N-EVENT-REPORT-RQ by ``respond``; called in the
        association's thread."""
        self._association = association
        self._on_action = on_action
        self._on_event = on_event
        self._serve_others = association._serve_request
        association._serve_request = self._message
        self._reporting = threading.Lock()
        self._message_id = 0
        self._answered = threading.Event()
        self._status: int | None = None

    @property
    def calling_ae_title(self) -> str:
        return str(self._association.requestor.primitive.calling_ae_title).strip()

    @property
    def is_open(self) -> bool:
        association = self._association
        return bool(association.is_established and association.is_alive() and not association._sent_release)

    @property
    def quiet_seconds(self) -> float:
        """Since the peer last began to send something; of an association with the listener."""
        quiet: float = self._association.dul.socket.quiet_seconds
        return quiet

    def respond(self, response: N_ACTION | N_EVENT_REPORT, context: PresentationContext) -> None:
        """Send an N-ACTION-RSP or N-EVENT-REPORT-RSP."""
        self._association.dimse.send_msg(response, context.context_id)

    def report(
        self, context: PresentationContext, event_type: int, information: bytes, *, timeout_seconds: float
    ) -> None:
        """Send one N-EVENT-REPORT-RQ and wait for its answer. Raises NotReported."""
        with self._reporting:  # one notification at a time, as there is no asynchronous operations window
            self._message_id = self._message_id % 65535 + 1
            self._answered.clear()
            self._status = None
            self._send(context, event_type, information)
            deadline = time.monotonic() + timeout_seconds
            while not self._answered.wait(_LOOK_SECONDS):
                if not self.is_open:
                    raise NotReported("the association ended before the report was answered")
                if time.monotonic() > deadline:
                    raise NotReported(f"the report wasn't answered within {timeout_seconds} s")
            _check(self._status)

    def _send(self, context: PresentationContext, event_type: int, information: bytes) -> None:
        request = N_EVENT_REPORT()
        request.MessageID = self._message_id
        request.AffectedSOPClassUID = StorageCommitmentPushModel
        request.AffectedSOPInstanceUID = StorageCommitmentPushModelInstance
        request.EventTypeID = event_type
        request.EventInformation = BytesIO(information)
        message = N_EVENT_REPORT_RQ()
        message.primitive_to_message(request)
        fragments = list(message.encode_msg(context.context_id, self._association.dimse.maximum_pdu_size))
        outgoing = self._association.dul.to_provider_queue
        with outgoing.mutex:  # all at once: no fragment of another message may come between them (PS3.8 E.2)
            outgoing.queue.extend(fragments)

    def _message(self, message: Any, context_id: int) -> None:
        """pynetdicom's hook: a DIMSE message that isn't C-STORE; runs in the association's thread."""
        if isinstance(message, N_EVENT_REPORT) and message.MessageIDBeingRespondedTo is not None:
            if message.MessageIDBeingRespondedTo == self._message_id:
                self._status = message.Status
                self._answered.set()
        elif isinstance(message, N_ACTION) and self._on_action is not None and message.MessageID is not None:
            self._on_action(self, message, self._association._accepted_cx[context_id])
        elif isinstance(message, N_EVENT_REPORT) and self._on_event is not None and message.is_valid_request:
            self._on_event(self, message, self._association._accepted_cx[context_id])
        else:
            self._serve_others(message, context_id)


#: PS3.7 annex C: the peer won't understand the same report better the next time
_FINAL = frozenset((0x0112, 0x0113, 0x0114, 0x0115, 0x0117, 0x0118, 0x0119, 0x0124, 0x0211, 0x0212))
_WARNINGS = frozenset((0x0001, 0x0107, 0x0116))


def _check(status: int | None) -> None:
    if status is None:
        raise NotReported("the report's answer has no status")
    if status == 0x0000 or status in _WARNINGS or status >> 12 == 0xB:
        return
    raise NotReported(f"the peer answered the report with status {status:#06x}", final=status in _FINAL)


@dataclass(frozen=True)
class Requestor:
    """Who asked for commitment, as the acceptor of our association. handshake: None for plain TCP."""

    ae_title: str
    address: CommitmentPeer
    handshake: ClientHandshake | None


@contextmanager
def own_association(
    requestor: Requestor, *, calling_ae_title: str, timeout_seconds: float
) -> Iterator[tuple[ReportingAssociation, PresentationContext]]:
    """An association that we request, to report to the AE that asked for commitment (PS3.4 J.3.3).

    Raises NotReported when there is none to be had.
    """
    ae = AE(ae_title=calling_ae_title)
    peer = requestor.address
    try:
        association = request_association(
            ae,
            (peer.host, peer.port),
            ae_title=requestor.ae_title,
            timeout_seconds=timeout_seconds,
            tls=peer.tls,
            handshake=requestor.handshake,
            contexts=[build_context(StorageCommitmentPushModel, list(TRANSFER_SYNTAXES))],
            # the requestor of this association is the SCP of the service (PS3.7 D.3.3.4)
            ext_neg=[build_role(StorageCommitmentPushModel, scu_role=False, scp_role=True)],
        )
    except NotAssociated as error:
        why = str(error)
        if error.missing is Missing.NONE_ACCEPTED:
            why = "the peer doesn't accept Storage Commitment with us as SCP"
        raise NotReported(f"{peer.host}:{peer.port}: {why}") from error
    try:
        yield ReportingAssociation(association), association.accepted_contexts[0]
    finally:
        release(association)


def is_implicit_vr(context: PresentationContext) -> bool:
    """Of an accepted context's transfer syntax."""
    return str(context.transfer_syntax[0]) == _IMPLICIT_VR_LITTLE_ENDIAN
