"""What every association that we request has in common: its timeouts, TLS, and no waiting for ever.

Used by deliveries, queries and Storage Commitment reports.

In: whom to associate with, and what is to be negotiated.  Out: an established association, or why there is
none.
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Any

from pynetdicom import AE, Association, evt
from pynetdicom.pdu_primitives import A_ASSOCIATE

from node.config import ClientTls
from node.tcp import acknowledge_at_once, send_at_once
from node.tls import ClientHandshake, reason_of

#: how long a thread that is ready may have to wait for its turn, at most; and how often to look
_REACTOR_SECONDS, _LOOK_SECONDS = 5.0, 0.0005
#: of an association (PS3.8 9.3.4: there is no 0 in a rejection) and of a context (PS3.8 9.3.3.2)
_ACCEPTED = 0x00


class Missing(StrEnum):
    """Why an association that was requested isn't there."""

    CONNECTION = "connection"
    TLS = "tls"
    ANSWER = "answer"
    REJECTED = "rejected"
    NONE_ACCEPTED = "none accepted"
    ENDED = "ended"


class NotAssociated(Exception):
    """The message is for people, and doesn't name the peer."""

    def __init__(self, missing: Missing, message: str) -> None:
        super().__init__(message)
        self.missing = missing


def request_association(
    ae: AE,
    peer: tuple[str, int],
    *,
    ae_title: str,
    timeout_seconds: float,
    tls: ClientTls | None,
    handshake: ClientHandshake | None,
    **more: Any,
) -> Association:
    """An established association. Raises NotAssociated.

    peer: host and port.  ae_title: the called one.  handshake: None for plain TCP.
    more: of ``AE.associate``.
    """
    host, port = peer
    ae.connection_timeout = timeout_seconds
    ae.network_timeout = ae.dimse_timeout = ae.acse_timeout = timeout_seconds
    server_name = (tls.server_name if tls is not None else None) or host
    opened: list[evt.Event] = []
    handlers = [
        (evt.EVT_CONN_OPEN, _set_up, [timeout_seconds]),
        (evt.EVT_CONN_OPEN, opened.append),
        *more.pop("evt_handlers", ()),
    ]
    association = ae.associate(
        host,
        port,
        ae_title=ae_title,
        evt_handlers=handlers,
        tls_args=None if handshake is None else (handshake, server_name),
        **more,
    )
    if association.is_established:
        return association
    if handshake is not None and handshake.error is not None:
        raise NotAssociated(Missing.TLS, f"TLS failed: {reason_of(handshake.error)}")
    if not opened:
        raise NotAssociated(Missing.CONNECTION, "no connection")
    raise _why_not(_answer(association))


def _answer(association: Association) -> A_ASSOCIATE | None:
    """The peer's, A-ASSOCIATE-AC or -RJ.

    pynetdicom looks whether there is a connection before it looks for an answer. A peer that rejects closes
    the connection at once, so on a busy machine its answer is left in the queue.
    """
    taken: A_ASSOCIATE | None = association.acceptor.primitive
    if taken is not None:
        return taken
    left = association.dul.receive_pdu()
    return left if isinstance(left, A_ASSOCIATE) else None


def _why_not(answer: A_ASSOCIATE | None) -> NotAssociated:
    if answer is None:
        return NotAssociated(Missing.ANSWER, "the peer took the connection and accepted no association")
    if answer.result != _ACCEPTED:
        why = f"association rejected: {answer.result_str}, {answer.reason_str}"
        return NotAssociated(Missing.REJECTED, why)
    if all(context.result != _ACCEPTED for context in answer.presentation_context_definition_results_list):
        return NotAssociated(Missing.NONE_ACCEPTED, "the peer accepts none of our presentation contexts")
    return NotAssociated(Missing.ENDED, "the association ended at once")


def wait_for_reactor(association: Association) -> None:
    """Before another request over the same association: return once pynetdicom's reactor goes on.

    It is paused while a request waits for its answer. On a busy machine it may not have gone on when the next
    request is made, which takes it for paused still: then it takes the answer for a request of the peer's,
    and whoever waits for that gets none (pynetdicom issue 875).
    """
    deadline = time.monotonic() + _REACTOR_SECONDS
    while association._is_paused and association.is_established and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)


def release(association: Association) -> None:
    """A-RELEASE, if it is established still, and once the reactor goes on: else that might take the answer
    to it as well."""
    if association.is_established:
        wait_for_reactor(association)
        association.release()


def send_and_acknowledge_at_once(event: evt.Event) -> None:
    """On EVT_CONN_OPEN: for an association's connection, what ``node.tcp`` is for. The answer to a C-STORE
    comes 40 ms earlier from DCMTK's SCPs and Orthanc; without the first of both, each C-STORE takes as much
    longer."""
    transport = event.assoc.dul.socket
    connection, read = transport.socket, transport.recv
    send_at_once(connection)

    def recv(nr_bytes: int) -> bytearray:
        data: bytearray = read(nr_bytes)
        acknowledge_at_once(connection)
        return data

    transport.recv = recv  # pynetdicom reads a PDU's first six bytes, then the others


def _set_up(event: evt.Event, timeout_seconds: float) -> None:
    send_and_acknowledge_at_once(event)
    # pynetdicom has taken the timeout away: a peer that stops within a PDU would hold us for ever
    event.assoc.dul.socket.socket.settimeout(timeout_seconds)
