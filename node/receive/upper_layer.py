"""pynetdicom's upper layer and negotiation, made to survive what peers send.

In: pynetdicom's hooks.  Out: whatever a peer does, its association ends, alone, with its socket and threads.
pynetdicom raises at values that a peer chose in places where that ends a thread and leaves the others waiting
on a socket that nobody closes.
"""

from __future__ import annotations

import queue
from contextlib import suppress
from functools import partial
from typing import Any

import structlog
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_RQ

from node.receive.negotiation import understood

log = structlog.get_logger("node.receive.upper_layer")

IDLE, AWAITING_REQUEST, DATA_TRANSFER, AWAITING_CLOSE = "Sta1", "Sta2", "Sta6", "Sta13"
CONNECTION_CLOSED, INVALID_PDU = "Evt17", "Evt19"
_A_ASSOCIATE_RQ = b"\x01"
#: A-ABORT by the service provider, no reason given (PS3.8 9.3.8)
_ABORT_SOURCE, _ABORT_REASON = 0x02, 0x00


class GuardedDul(DULServiceProvider):  # type: ignore[misc]
    """pynetdicom's upper layer of one accepted connection."""

    def run_reactor(self) -> None:
        """The thread: however it ends, it leaves no socket open and nobody waiting."""
        try:
            super().run_reactor()
        except Exception as error:  # a thread's boundary
            log.warning("upper_layer_failed", error=type(error).__name__)
            abort = A_ABORT_RQ()
            abort.source, abort.reason_diagnostic = _ABORT_SOURCE, _ABORT_REASON
            self.socket.send(abort.encode())
        finally:
            self.socket.close()
            self.to_user_queue.put(None)

    def _process_recv_primitive(self) -> bool:
        """There may be something to send."""
        if self.state_machine.current_state in (IDLE, AWAITING_CLOSE):
            with suppress(queue.Empty):  # nobody is there to take it
                self.to_provider_queue.get(block=False)
            return False
        return bool(super()._process_recv_primitive())

    def _decode_pdu(self, bytestream: bytearray) -> tuple[Any, str]:
        """A PDU that isn't P-DATA-TF came."""
        if bytestream[:1] == _A_ASSOCIATE_RQ:
            bytestream = bytearray(understood(bytes(bytestream)))
        pdu, event = super()._decode_pdu(bytestream)
        if isinstance(pdu, A_ASSOCIATE_RQ):
            pdu.protocol_version &= 0x0001  # only bit 0 is to be tested (PS3.8 9.3.2)
            if not pdu.protocol_version:
                self.to_user_queue.put(None)  # it is rejected here: the association's thread may end
        return pdu, event

    def _read_pdu_data(self) -> None:
        """There is something to read."""
        awaiting_request = self.state_machine.current_state == AWAITING_REQUEST
        super()._read_pdu_data()
        if awaiting_request and not {CONNECTION_CLOSED, INVALID_PDU}.isdisjoint(self.event_queue.queue):
            # the association's thread would wait for its request until the ARTIM timer ends, and count as
            # an association all the time
            self.to_user_queue.put(None)


def guard_negotiation(association: Any) -> None:
    """Abort where pynetdicom's negotiation raises."""
    association.acse.negotiate_association = partial(_negotiate, association)


def _negotiate(association: Any) -> None:
    try:
        association.acse._negotiate_as_acceptor()
    except Exception as error:  # a thread's boundary
        log.warning("negotiation_failed", error=type(error).__name__, peer=association.requestor.address)
        association.abort()
