"""Associations that we request: a peer that stops in the middle of a PDU can't hold them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import CTImageStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind

from node.config import CStoreDestination, QueryPeer
from node.deliver import dicom_peer, make_destination
from node.errors import QueryError
from node.receive.query import QueryScu, SeriesKey
from node.scu import request_association
from tests.unit.node.deliver.conftest import write_object
from tests.unit.node.deliver.peer import PEER, Peer

#: a P-DATA-TF PDU of 4096 bytes, of which only a few come
PIECE = b"\x04\x00\x00\x00\x10\x00" + bytes(10)


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
