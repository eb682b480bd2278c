"""A peer that writes in two pieces, under Nagle's algorithm, as DCMTK and Orthanc do, isn't kept waiting."""

from __future__ import annotations

import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest
from pynetdicom import AE
from pynetdicom.sop_class import Verification
from pynetdicom.transport import AssociationSocket

from node.receive.stream import ReadAhead
from node.scu import release, request_association, wait_for_reactor

#: a delayed acknowledgement takes at least 40 ms; the first ones of a connection aren't delayed
DELAY_SECONDS, ROUNDS = 0.04, 40

pytestmark = pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="TCP_QUICKACK is Linux's")


def median_of_the_last(seconds: list[float]) -> float:
    return statistics.median(seconds[-ROUNDS // 2 :])


@contextmanager
def reader(take: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """A connection to one that takes a message of 112 bytes at a time, and answers with a byte."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    thread = threading.Thread(target=take, args=(accepted,))
    thread.start()
    try:
        yield client
    finally:
        client.close()
        thread.join()
        accepted.close()


def exchange(client: socket.socket) -> list[float]:
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        client.sendall(b"h" * 12)
        client.sendall(b"b" * 100)
        assert client.recv(1) == b"a"
        seconds.append(time.perf_counter() - started)
    return seconds


def test_the_receiver_acknowledges_a_piece_of_a_message() -> None:
    def take(connection: socket.socket) -> None:
        ahead = ReadAhead(connection, 60)
        for _ in range(ROUNDS):
            while ahead.end < 112:
                ahead.fill()
            ahead.clear()
            connection.sendall(b"a")

    with reader(take) as client:
        assert median_of_the_last(exchange(client)) < DELAY_SECONDS / 2


def test_a_requestor_acknowledges_a_piece_of_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """An SCP whose PDUs are written head first, body later."""
    ae = AE(ae_title="PACS")
    ae.add_supported_context(Verification)
    whole = AssociationSocket.send

    def in_two(transport: AssociationSocket, data: bytes) -> None:
        if transport.assoc.is_acceptor:
            whole(transport, data[:12])
            data = data[12:]
        whole(transport, data)

    monkeypatch.setattr(AssociationSocket, "send", in_two)
    server = ae.start_server(("127.0.0.1", 0), block=False)
    asking = AE()
    asking.add_requested_context(Verification)
    peer = str(server.server_address[0]), int(server.server_address[1])
    association = request_association(
        asking, peer, ae_title="PACS", timeout_seconds=10, tls=None, handshake=None
    )
    seconds = []
    try:
        for _ in range(ROUNDS):
            wait_for_reactor(association)
            started = time.perf_counter()
            assert association.send_c_echo().Status == 0x0000
            seconds.append(time.perf_counter() - started)
        release(association)
    finally:
        server.shutdown()
    assert median_of_the_last(seconds) < DELAY_SECONDS / 2
