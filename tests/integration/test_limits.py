"""Who is rejected and how, and that nobody who is slow, silent, greedy or many keeps the others out."""

from __future__ import annotations

import copy
import socket
import struct
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import generate_uid
from pynetdicom import AE, build_context
from pynetdicom.sop_class import Verification

from node.audit import ALERTS_IN_FULL
from node.config import ReceiveConfig
from node.receive import server
from node.receive.admission import MAX_WAITING, REJECTIONS
from node.receive.stream import PDU_SLACK_BYTES, limit_waiting
from tests.audit_schema import event_of, parsed
from tests.integration.raw_scu import (
    COMMAND,
    ECHO_CONTEXT,
    ECHO_REQUEST,
    LAST,
    association_request,
    pdu,
    pdv,
    store_request,
)
from tests.integration.receiving import CALLING, CT, ReceivingNode, Sender, ct_slice, encoded, wait_for

pytestmark = pytest.mark.integration
TIMEOUT = 1.0
ABORT = 7


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ReceivingNode]]:
    """Start a receiving node with these options."""
    running: list[ReceivingNode] = []

    def started(**options: Any) -> ReceivingNode:
        usual: dict[str, Any] = {
            "port": 0,
            "allowed_calling_ae_titles": (CALLING,),
            "network_timeout_seconds": TIMEOUT,
            "acse_timeout_seconds": TIMEOUT,
            "free_disk_floor_bytes": 0,
            "journal_bytes": 0,
        }
        running.append(ReceivingNode(tmp_path, ReceiveConfig(**(usual | options))).start())
        return running[-1]

    yield started
    for node in running:
        node.stop(grace_seconds=0.1)


def ask(
    node: ReceivingNode, *, calling: str = CALLING, called: str = "PACSNODE", host: str = "127.0.0.1"
) -> Any:
    """Ask for an association from one of this machine's addresses."""
    return AE(ae_title=calling).associate(
        "127.0.0.1",
        node.port,
        contexts=[build_context(Verification)],
        ae_title=called,
        bind_address=(host, 0),
    )


def connected(node: ReceivingNode, host: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", node.port), timeout=10, source_address=(host, 0))


def associated(node: ReceivingNode, host: str = "127.0.0.1") -> socket.socket:
    connection = connected(node, host)
    connection.sendall(association_request())
    assert next_pdu(connection) == 2, "A-ASSOCIATE-AC"
    return connection


def next_pdu(connection: socket.socket) -> int:
    """Type of the next PDU; 0 when the connection is closed."""
    try:
        header = connection.recv(6, socket.MSG_WAITALL)
        if len(header) < 6:
            return 0
        connection.recv(int.from_bytes(header[2:], "big"), socket.MSG_WAITALL)
    except ConnectionError:
        return 0
    return header[0]


def alerts(node: ReceivingNode) -> list[ET.Element]:
    """The Security Alerts of the audit trail so far."""
    lines = (node.data_dir / "audit/audit-receive.log").read_bytes().splitlines()
    return [message for message in map(parsed, lines) if event_of(message)[0] == "110113"]


def count(node: ReceivingNode, name: str, **labels: str) -> float:
    return node.metrics.registry.get_sample_value(f"pacsnode_{name}_total", labels) or 0.0


@pytest.mark.parametrize(
    ("reason", "options", "asked", "code"),
    [
        ("host", {"allowed_hosts": ("192.0.2.0/24", "::1")}, {}, (1, 1, 1)),
        ("calling_ae_title", {}, {"calling": "STRANGER"}, (1, 1, 3)),
        ("called_ae_title", {}, {"called": "SOMEONE"}, (1, 1, 7)),
        ("no_space", {"free_disk_floor_bytes": 10**18}, {}, (2, 3, 1)),
        ("too_many_associations", {"max_associations": 1}, {"host": "127.0.0.3"}, (2, 3, 2)),
        ("too_many_of_peer", {"max_associations_per_peer": 1}, {}, (2, 3, 2)),
    ],
)
def test_a_rejection_and_its_audit_entry(
    start: Callable[..., ReceivingNode],
    reason: str,
    options: dict[str, Any],
    asked: dict[str, Any],
    code: tuple[int, int, int],
) -> None:
    node = start(**options)
    held = ask(node) if "max_associations" in "".join(options) else None
    association = ask(node, **asked)
    assert association.is_rejected
    answer = association.acceptor.primitive
    assert (answer.result, answer.result_source, answer.diagnostic) == code
    assert count(node, "associations_rejected", reason=reason) == 1.0
    wait_for(lambda: alerts(node))
    (alert,) = alerts(node)
    assert event_of(alert) == ("110113", "110126", "8" if code[0] == 1 else "4")
    peer = alert.findall("ActiveParticipant")[1]
    assert peer.get("NetworkAccessPointID") == asked.get("host", "127.0.0.1")
    assert peer.get("UserID") == asked.get("calling", CALLING)
    assert REJECTIONS[reason].why in alert[0].findtext("EventOutcomeDescription", "")
    if held is not None:
        assert held.send_c_echo().Status == 0x0000, "who was there stays"
        held.release()
        again = ask(node, **asked)
        assert again.is_established, "its place is free at once"
        again.release()


def test_one_host_can_t_take_all_places(start: Callable[..., ReceivingNode]) -> None:
    node = start(max_associations=4, max_associations_per_peer=3, network_timeout_seconds=30.0)
    greedy = [ask(node, host="127.0.0.2") for _ in range(6)]
    assert [association.is_established for association in greedy] == [True] * 3 + [False] * 3
    friend = ask(node)
    assert friend.send_c_echo().Status == 0x0000
    friend.release()
    for association in greedy[:3]:
        association.abort()
    wait_for(lambda: ask(node, host="127.0.0.2").is_established, what="a place that an abort left")


def test_what_was_transferred_is_in_the_audit_trail(start: Callable[..., ReceivingNode]) -> None:
    node = start()
    first, second = generate_uid(), generate_uid()
    images = [ct_slice(first, 1), ct_slice(first, 2), ct_slice(second, 1), ct_slice(first, 2)]
    sender = Sender(node.port, CT)
    assert [sender.store_image(image) for image in images] == [0x0000] * 4
    sender.release()

    def transfers() -> set[tuple[str, ...]]:
        return {transfer[:4] for transfer in node.audited_transfers()}

    wait_for(lambda: len(transfers()) == 3)
    one, other = images[0].StudyInstanceUID, images[2].StudyInstanceUID
    assert transfers() == {(one, "C", "0", "2"), (one, "R", "0", "1"), (other, "C", "0", "1")}

    aborted = Sender(node.port, CT)
    third = ct_slice(generate_uid(), 1)
    assert aborted.store_image(third) == 0x0000
    aborted.abort()
    wait_for(lambda: (third.StudyInstanceUID, "C", "4", "1") in transfers())


def test_what_was_quarantined_is_in_the_audit_trail(start: Callable[..., ReceivingNode]) -> None:
    """By its study where that can be read, and with the reason."""
    node = start()
    image = ct_slice(generate_uid(), 1)
    changed = copy.deepcopy(image)
    changed.PatientID = "ANOTHER"
    sender = Sender(node.port, CT)
    assert [sender.store_image(one) for one in (image, changed)] == [0x0000, 0xC001]
    assert sender.store(CT[0][0], generate_uid(), b"not a data set") == 0xC000
    sender.release()
    wait_for(lambda: len(node.audited_transfers()) == 3)
    study = image.StudyInstanceUID
    assert node.audited_transfers() == {
        (study, "C", "0", "1", ""),
        (study, "C", "4", "1", "quarantined: duplicate_different"),
        ("unknown", "C", "4", "1", "quarantined: unreadable_dataset"),
    }


def byte_by_byte(content: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in content]


DATA = encoded(ct_slice("1.2.3", 1))
STORE = pdu(pdv(store_request("1.2.3.4"), COMMAND | LAST))


#: name -> what comes at once after the association, and what then comes bit by bit
TRICKLES: dict[str, tuple[bytes, Iterable[bytes]]] = {
    "PDU header": (b"", byte_by_byte(STORE)),
    "command set": (STORE[:30], byte_by_byte(STORE[30:])),
    "data set": (STORE, byte_by_byte(pdu(pdv(DATA, LAST)))),
    "command set, a byte a PDU": (b"", [pdu(pdv(byte, COMMAND)) for byte in byte_by_byte(STORE)]),
    "data set, a byte a PDU": (STORE, [pdu(pdv(byte, 0)) for byte in byte_by_byte(DATA)]),
    "empty fragments": (STORE, repeat(pdu(pdv(b"", 0)))),
    "A-RELEASE-RQ": (b"", byte_by_byte(struct.pack(">BBL", 5, 0, 500) + bytes(500))),
    "A-ASSOCIATE-RQ": (b"", byte_by_byte(association_request())),
}


def test_a_trickle_ends_in_time(start: Callable[..., ReceivingNode]) -> None:
    node = start()

    def seconds_of(name: str) -> float:
        at_once, slowly = TRICKLES[name]
        with connected(node) if name == "A-ASSOCIATE-RQ" else associated(node) as connection:
            connection.sendall(at_once)
            started = time.monotonic()
            with suppress(ConnectionError):
                for piece in slowly:
                    connection.sendall(piece)
                    time.sleep(0.05)
                    if time.monotonic() - started > 5 * TIMEOUT:
                        break
            return time.monotonic() - started

    with ThreadPoolExecutor(len(TRICKLES)) as pool:
        seconds = dict(zip(TRICKLES, pool.map(seconds_of, TRICKLES), strict=True))
    assert all(TIMEOUT / 2 < each < 2.5 * TIMEOUT for each in seconds.values()), seconds
    wait_for(lambda: node.listener.open_associations == 0)
    assert not list((node.data_dir / "spool/incoming").iterdir())
    assert node.rows() == []


def test_a_slow_sender_that_gets_on_is_served(start: Callable[..., ReceivingNode]) -> None:
    """Longer than any timeout, with pauses that are shorter."""
    node = start()
    image = ct_slice(generate_uid(), 1, PixelData=bytes(200_000))
    data = encoded(image)
    pieces = [data[at : at + 16_000] for at in range(0, len(data), 16_000)]
    with associated(node) as connection:
        connection.sendall(pdu(pdv(store_request(image.SOPInstanceUID), COMMAND | LAST)))
        for number, piece in enumerate(pieces, 1):
            time.sleep(2.5 * TIMEOUT / len(pieces))
            connection.sendall(pdu(pdv(piece, LAST if number == len(pieces) else 0)))
        assert next_pdu(connection) == 4
    assert [row["state"] for row in node.rows()] == ["stored"]


#: name -> what is sent before the silence, and the type of the PDU that is answered to it
SILENCES = {
    "between messages": (b"", ABORT),
    "in a command set": (STORE[:30], 0),
    "before a data set": (STORE, 0),
    "in a data set": (STORE + pdu(pdv(DATA[:100], 0))[:50], 0),
}


def test_an_idle_association_ends(start: Callable[..., ReceivingNode]) -> None:
    node = start()

    def end_of(name: str) -> tuple[int, float]:
        with associated(node) as connection:
            connection.sendall(SILENCES[name][0])
            started = time.monotonic()
            return next_pdu(connection), time.monotonic() - started

    with ThreadPoolExecutor(len(SILENCES)) as pool:
        ends = dict(zip(SILENCES, pool.map(end_of, SILENCES), strict=True))
    assert {name: answer for name, (answer, _) in ends.items()} == {n: a for n, (_, a) in SILENCES.items()}
    assert all(TIMEOUT / 2 < seconds < 2.5 * TIMEOUT for _, seconds in ends.values()), ends
    wait_for(lambda: node.listener.open_associations == 0)


@pytest.mark.parametrize(
    "request_pdus",
    [pdu(pdv(ECHO_REQUEST, COMMAND | LAST, ECHO_CONTEXT)), STORE + pdu(pdv(b"", LAST))],
    ids=["C-ECHO", "C-STORE"],
)
def test_a_peer_that_reads_no_answers_ends(
    start: Callable[..., ReceivingNode], request_pdus: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def little_to_send(connection: socket.socket, seconds: float) -> None:
        limit_waiting(connection, seconds)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    monkeypatch.setattr(server, "limit_waiting", little_to_send)
    node = start()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(60)  # it answers many before it finds that nobody reads
        connection.connect(("127.0.0.1", node.port))
        connection.sendall(association_request())
        assert next_pdu(connection) == 2
        started = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - started < 60:
                connection.sendall(request_pdus)
    wait_for(lambda: node.listener.open_associations == 0)


TOO_LONG = {
    "P-DATA-TF": struct.pack(">BBL", 4, 0, 131_072 + PDU_SLACK_BYTES + 1) + bytes(100),
    "P-DATA-TF of 4 GB": struct.pack(">BBL", 4, 0, 2**32 - 1) + bytes(100),
    "command set": b"".join(pdu(pdv(bytes(16_000), COMMAND)) for _ in range(5)),
    "A-RELEASE-RQ": struct.pack(">BBL", 5, 0, 2**32 - 1),
    "A-ASSOCIATE-RQ": struct.pack(">BBL", 1, 0, 2**32 - 1),
}


def test_what_is_too_long_ends_at_once(start: Callable[..., ReceivingNode]) -> None:
    node = start(network_timeout_seconds=30.0, acse_timeout_seconds=30.0)
    for name, sent in TOO_LONG.items():
        with connected(node) if name == "A-ASSOCIATE-RQ" else associated(node) as connection:
            connection.sendall(sent)
            started = time.monotonic()
            assert next_pdu(connection) in (ABORT, 0), name
            assert next_pdu(connection) == 0, name
            assert time.monotonic() - started < 5, name
    wait_for(lambda: node.listener.open_associations == 0)


def test_silent_connections_keep_nobody_out(start: Callable[..., ReceivingNode]) -> None:
    node = start(max_associations=5, acse_timeout_seconds=30.0, network_timeout_seconds=30.0)
    held = associated(node)
    friend = connected(node)  # was there first, and takes its time
    crowd = [connected(node, "127.0.0.2") for _ in range(MAX_WAITING + 20)]
    wait_for(lambda: count(node, "connections_dropped", reason="too_many") == 21.0)
    for connection in crowd[:21]:
        assert connection.recv(1) == b"", "the oldest of the crowd"
    friend.sendall(association_request())
    assert next_pdu(friend) == 2
    held.sendall(pdu(pdv(ECHO_REQUEST, COMMAND | LAST, ECHO_CONTEXT)))
    assert next_pdu(held) == 4, "associations aren't part of the crowd"
    late = associated(node)
    for connection in (held, friend, late, *crowd):
        connection.close()


def test_a_flood_of_rejections_stops_nobody(start: Callable[..., ReceivingNode]) -> None:
    node = start(network_timeout_seconds=20.0)
    stop = threading.Event()
    asked = []

    def flood() -> None:
        request = association_request().replace(CALLING.encode(), b"NOBODY")
        while not stop.is_set():
            with connected(node, "127.0.0.2") as connection:
                connection.sendall(request)
                asked.append(next_pdu(connection))

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: len(asked) > 20)
        series = generate_uid()
        sender = Sender(node.port, CT)
        assert {sender.store_image(ct_slice(series, number)) for number in range(50)} == {0x0000}
        sender.release()
        wait_for(lambda: len(asked) > 150, seconds=20)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(asked) == {3}, "A-ASSOCIATE-RJ"
    assert count(node, "associations_rejected", reason="calling_ae_title") == len(asked)
    assert len(alerts(node)) == ALERTS_IN_FULL
    suppressed = count(node, "receive_audit_messages", outcome="suppressed")
    assert suppressed == len(asked) - ALERTS_IN_FULL
    node.audit.stop()
    assert f"{suppressed:.0f} more" in alerts(node)[-1][0].findtext("EventOutcomeDescription", "")
