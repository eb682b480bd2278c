"""Associations that we request: why there is none is told however late we look, and a peer that stops in
the middle of a PDU can't hold them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import CTImageStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind, Verification

from node.config import CStoreDestination, QueryPeer
from node.deliver import dicom_peer, make_destination
from node.errors import DeliveryError, QueryError
from node.receive.query import QueryScu, SeriesKey
from node.scu import Missing, NotAssociated, request_association
from node.triton_server import free_port
from tests.unit.node.deliver.conftest import write_object
from tests.unit.node.deliver.peer import PEER, Peer

#: a P-DATA-TF PDU of 4096 bytes, of which only a few come
PIECE = b"\x04\x00\x00\x00\x10\x00" + bytes(10)
#: A-ASSOCIATE-RJ: permanent, by the service user, calling AE title not recognised (PS3.8 9.3.4)
REJECTION = b"\x03\x00\x00\x00\x00\x04\x00\x01\x01\x03"
#: A-ABORT by the service provider, reason not specified (PS3.8 9.3.8)
ABORT = b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x00"


@contextmanager
def answering(answer: bytes | None) -> Iterator[int]:
    """The port of a peer that answers a request for an association so, and closes the connection at once.
    None: it closes nothing, either."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        over = threading.Event()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                if answer is None:
                    over.wait(20)
                else:
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield int(server.getsockname()[1])
        over.set()
        thread.join()


def none_at(port: int, *, late: bool) -> NotAssociated:
    """Why there is none. late: whoever asked has its next turn when all is over, as on a busy machine."""
    ae = AE()
    ae.add_requested_context(Verification)
    handlers = [(evt.EVT_REQUESTED, lambda event: time.sleep(0.3))] if late else []
    with pytest.raises(NotAssociated) as raised:
        request_association(
            ae,
            ("127.0.0.1", port),
            ae_title="PACS",
            timeout_seconds=1.0,
            tls=None,
            handshake=None,
            evt_handlers=handlers,
        )
    return raised.value


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("answer", "missing", "said"),
    [
        (REJECTION, Missing.REJECTED, "association rejected: Rejected Permanent, Calling AE title not recog"),
        (ABORT, Missing.ANSWER, "the peer took the connection and accepted no association"),
        (b"", Missing.ANSWER, "the peer took the connection"),
        (None, Missing.ANSWER, "the peer took the connection"),
    ],
    ids=["rejected", "aborted", "closed", "silent"],
)
def test_why_there_is_no_association(answer: bytes | None, missing: Missing, said: str, late: bool) -> None:
    with answering(answer) as port:
        why = none_at(port, late=late)
    assert (why.missing, said in str(why)) == (missing, True), str(why)


@pytest.mark.parametrize("late", [False, True])
def test_nobody_listens(late: bool) -> None:
    why = none_at(free_port(), late=late)
    assert (why.missing, str(why)) == (Missing.CONNECTION, "no connection")


@pytest.mark.parametrize("late", [False, True])
def test_none_of_the_contexts_is_accepted(late: bool) -> None:
    ae = AE(ae_title="PACS")
    ae.add_supported_context(CTImageStorage)
    server = ae.start_server(("127.0.0.1", 0), block=False)
    try:
        why = none_at(int(server.server_address[1]), late=late)
    finally:
        server.shutdown()
    assert why.missing is Missing.NONE_ACCEPTED


def test_a_destination_that_refuses_is_not_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen on a busy machine: one of ten refusals was told as "no connection"."""

    def request(*arguments: Any, **more: Any) -> Any:
        late = [(evt.EVT_REQUESTED, lambda event: time.sleep(0.3))]
        return request_association(*arguments, evt_handlers=late, **more)

    monkeypatch.setattr(dicom_peer, "request_association", request)
    with answering(REJECTION) as port, pytest.raises(DeliveryError, match="not recognised") as raised:
        config = CStoreDestination(type="cstore", ae_title=PEER, host="127.0.0.1", port=port)
        make_destination("pacs", config, calling_ae_title="PACSNODE").check()
    assert raised.value.code == "destination_refused"


@pytest.fixture
def stopping() -> Iterator[int]:
    """The port of a query SCP that answers with a piece of a PDU and nothing more."""
    over = threading.Event()

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        event.assoc.dul.socket.socket.sendall(PIECE)
        over.wait(20)
        yield 0x0000, None

    ae = AE(ae_title="PACS")
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, find)])
    yield int(server.server_address[1])
    over.set()
    server.shutdown()


def test_a_peer_that_stops_inside_a_pdu_does_not_hold_a_query(stopping: int) -> None:
    config = QueryPeer(ae_title="PACS", host="127.0.0.1", port=stopping, timeout_seconds=0.5)
    started = time.monotonic()
    with pytest.raises(QueryError):
        QueryScu("pacs", config, calling_ae_title="PACSNODE").count(SeriesKey("1.2", "1.2.3"))
    assert time.monotonic() - started < 5


class LateTurn(threading.Event):
    """Whoever was held by it goes on some time after it is set, as on a busy machine."""

    def wait(self, timeout: float | None = None) -> bool:
        held = not self.is_set()
        done = super().wait(timeout)
        if held:
            time.sleep(0.05)
        return done


def test_no_answer_is_taken_by_a_reactor_that_goes_on_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pynetdicom takes its reactor for paused until it has gone on, and sends the next request."""
    requested = []

    def request(*arguments: Any, **more: Any) -> Any:
        association = request_association(*arguments, **more)
        turn = LateTurn()
        turn.set()
        association._reactor_checkpoint = turn
        send = association.dimse.send_msg

        def send_and_be_late(*message: Any) -> None:
            send(*message)
            time.sleep(0.1)  # the answer comes meanwhile

        association.dimse.send_msg = send_and_be_late
        requested.append(association)
        return association

    monkeypatch.setattr(dicom_peer, "request_association", request)
    peer = Peer(CTImageStorage)
    try:
        config = CStoreDestination(
            type="cstore", ae_title=PEER, host="127.0.0.1", port=peer.port, timeout_seconds=2
        )
        files = [write_object(tmp_path, number) for number in range(1, 6)]
        stored = make_destination("pacs", config, calling_ae_title="PACSNODE").deliver(files)
    finally:
        peer.stop()
    assert len(stored) == len(peer.stored) == 5
    assert [association.is_released for association in requested] == [True]
