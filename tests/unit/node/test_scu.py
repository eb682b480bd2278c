"""Associations that we request: a peer that stops in the middle of a PDU can't hold them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind

from node.config import QueryPeer
from node.errors import QueryError
from node.receive.query import QueryScu, SeriesKey

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
