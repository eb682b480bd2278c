"""Peers that ask for what isn't served, violate the protocol, never read, or stop: each ends alone."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from node.config import ReceiveConfig
from node.receive.command import read_elements
from tests.integration.raw_dataset import encode, image_elements
from tests.integration.raw_scu import (
    ABORT,
    APPLICATION,
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    COMMAND,
    CT_CONTEXT,
    ECHO_CONTEXT,
    ECHO_REQUEST,
    LAST,
    VERIFICATION,
    RawScu,
    element,
    item,
    other_pdu,
    padded,
    pdu,
    pdv,
    proposed,
    request_of,
    store_message,
    store_request,
    user_information,
)
from tests.integration.receiving import CALLING, ReceivingNode, wait_for

pytestmark = pytest.mark.integration


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ReceivingNode]:
    running = ReceivingNode(tmp_path / "var", _receive()).start()
    yield running
    running.stop()


def _receive(**changes: object) -> ReceiveConfig:
    values: dict[str, object] = {
        "port": 0,
        "allowed_calling_ae_titles": (CALLING,),
        "network_timeout_seconds": 20.0,
        "acse_timeout_seconds": 20.0,
        "free_disk_floor_bytes": 0,
        "journal_bytes": 0,
    }
    return ReceiveConfig.model_validate(values | changes)


def _request(field: int, sop_class_uid: str, *, data_set: bool = False) -> bytes:
    return b"".join(
        (
            element(0x0002, padded(sop_class_uid)),
            element(0x0100, struct.pack("<H", field)),
            element(0x0110, b"\x2a\0"),
            element(0x0700, b"\0\0"),
            element(0x0800, b"\1\0" if data_set else b"\1\1"),
        )
    )


@pytest.mark.parametrize("data_set", [False, True])
@pytest.mark.parametrize(
    ("field", "sop_class_uid", "where"),
    [
        (0x0020, CTImageStorage, (CT_CONTEXT, 0x0211)),  # C-FIND where only C-STORE is served
        (0x0030, CTImageStorage, (CT_CONTEXT, 0x0211)),  # C-ECHO
        (0x0140, CTImageStorage, (CT_CONTEXT, 0x0211)),  # N-CREATE
        (0x0020, VERIFICATION, (ECHO_CONTEXT, 0x0211)),
        (0x7FFF, VERIFICATION, (ECHO_CONTEXT, 0x0211)),  # no command at all
        (0x0030, CTImageStorage, (ECHO_CONTEXT, 0x0122)),  # C-ECHO of another SOP class than its context's
        (0x0030, "", (ECHO_CONTEXT, 0x0122)),
    ],
)
def test_what_is_not_served_is_refused(
    node: ReceivingNode, field: int, sop_class_uid: str, where: tuple[int, int], data_set: bool
) -> None:
    """With the response of that very command, repeating its message ID (PS3.7 C.5); then all goes on."""
    context, status = where
    with RawScu(node.port) as scu:
        request = _request(field, sop_class_uid, data_set=data_set)
        scu.socket.sendall(pdu(pdv(request, COMMAND | LAST, context)))
        if data_set:
            scu.socket.sendall(pdu(pdv(b"\x08\0", 0, context), pdv(bytes(10), LAST, context)))
        _, content = scu.pdu()
        answer = read_elements(content[6:])
        assert int.from_bytes(answer[0x0900], "little") == status
        assert int.from_bytes(answer[0x0100], "little") == field | 0x8000
        assert answer[0x0120] == b"\x2a\0"
        scu.socket.sendall(pdu(pdv(ECHO_REQUEST, COMMAND | LAST, ECHO_CONTEXT)))
        assert scu.status() == 0x0000
        scu.release()


def test_a_store_of_another_class_than_its_context_is_refused(node: ReceivingNode) -> None:
    """What was negotiated is what may be sent: 0x0122, SOP class not supported."""
    uid = generate_uid()
    dataset = encode(image_elements(uid, sop_class_uid=MRImageStorage))
    with RawScu(node.port) as scu:
        scu.socket.sendall(store_message(uid, dataset, sop_class_uid=MRImageStorage))
        assert scu.status() == 0x0122
        scu.socket.sendall(store_message(uid, encode(image_elements(uid))))
        assert scu.status() == 0x0000
    assert [row["sop_class_uid"] for row in node.rows()] == [CTImageStorage]


def test_cancels_are_ignored_and_unasked_responses_abort(node: ReceivingNode) -> None:
    with RawScu(node.port) as scu:
        cancel = element(0x0100, b"\xff\x0f") + element(0x0120, b"\1\0") + element(0x0800, b"\1\1")
        scu.socket.sendall(pdu(pdv(cancel, COMMAND | LAST)) * 1000)
        scu.socket.sendall(pdu(pdv(ECHO_REQUEST, COMMAND | LAST, ECHO_CONTEXT)))
        assert scu.status() == 0x0000
        scu.socket.sendall(pdu(pdv(_request(0x8030, VERIFICATION), COMMAND | LAST, ECHO_CONTEXT)))
        assert scu.pdu()[0] == ABORT


_CT = proposed(CT_CONTEXT, CTImageStorage, ExplicitVRLittleEndian)


@pytest.mark.parametrize(
    ("request_pdu", "answer"),
    [
        (request_of([APPLICATION, item(0x20, b"\1\0\0\0"), user_information()]), ABORT),
        (
            request_of(
                [APPLICATION, proposed(2, CTImageStorage, ExplicitVRLittleEndian), user_information()]
            ),
            ABORT,
        ),
        (request_of([APPLICATION, _CT, user_information(0, item(0x54, b"\0\x0912"))]), ABORT),
        (request_of([APPLICATION, _CT, user_information()], version=2), ASSOCIATE_RJ),
        (request_of([APPLICATION, _CT, user_information()], version=0x8003), ASSOCIATE_AC),
    ],
    ids=["no abstract syntax", "even context", "role cut short", "version 2", "versions 1 and 2"],
)
def test_requests_that_pynetdicom_cannot_take(node: ReceivingNode, request_pdu: bytes, answer: int) -> None:
    """They are answered at once, and nothing of them stays while the peer keeps its end open."""
    threads = threading.active_count()
    peers = []
    for _ in range(5):
        peer = socket.create_connection(("127.0.0.1", node.port), timeout=10)
        peers.append(peer)
        peer.sendall(request_pdu)
        received = peer.recv(4096)
        assert received[:1] == bytes([answer])
        if answer == ASSOCIATE_AC:
            peer.sendall(other_pdu(ABORT))
    wait_for(lambda: threading.active_count() <= threads, seconds=5, what="threads to end")
    for peer in peers:
        peer.close()


def test_an_abort_with_values_that_nobody_defined(node: ReceivingNode) -> None:
    threads = threading.active_count()
    with RawScu(node.port) as scu:
        scu.socket.sendall(other_pdu(ABORT, b"\0\0\xff\xff"))
        while scu.socket.recv(4096):
            pass
        wait_for(lambda: threading.active_count() <= threads, seconds=5, what="threads to end")
    wait_for(lambda: node.listener.open_associations == 0)


def test_peers_that_never_read_or_stop_end_by_the_timeout(tmp_path: Path) -> None:
    """Their windows are full, or they are in the middle of something; meanwhile others are served."""
    node = ReceivingNode(tmp_path / "var", _receive(network_timeout_seconds=2.0)).start()
    try:
        threads = threading.active_count()
        uid = generate_uid()
        dataset = encode(image_elements(uid))
        started = store_message(uid, dataset, size=100)
        stopped = []
        for stop in (3, 40, len(started) // 2, len(started) - 1):
            scu = RawScu(node.port)
            scu.socket.sendall(started[:stop])
            stopped.append(scu)
        deaf = RawScu(node.port, receive_buffer_bytes=4096)
        # each answer repeats this UID, so that a few of them fill what the kernel holds for us
        flood = pdu(pdv(store_request("1" * 60_000, data_set=False), COMMAND | LAST))
        deaf.socket.settimeout(0.5)
        with pytest.raises(TimeoutError):
            for _ in range(1000):
                deaf.socket.sendall(flood)
        for number in range(5):
            good = f"1.2.826.0.1.3680043.9.9999.7.{number}"
            with RawScu(node.port) as neighbour:
                neighbour.socket.sendall(store_message(good, encode(image_elements(good))))
                assert neighbour.status() == 0x0000
                neighbour.release()
        wait_for(
            lambda: threading.active_count() <= threads, seconds=15, what="the bad peers' threads to end"
        )
        wait_for(lambda: node.listener.open_associations == 0)
        assert [row["state"] for row in node.rows() if row["state"] == "stored"] == ["stored"] * 5
        assert not list((node.data_dir / "spool/incoming").iterdir())
        for scu in (*stopped, deaf):
            scu.socket.close()
    finally:
        node.stop()
