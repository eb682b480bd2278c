"""Connections that go to movers and back, and what becomes of instances that two of them meet."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.uid import generate_uid

from node.receive.journal import SEGMENT_BYTES
from tests.integration.raw_scu import (
    COMMAND,
    ECHO_CONTEXT,
    ECHO_REQUEST,
    LAST,
    RawScu,
    pdu,
    pdv,
    store_message,
)
from tests.integration.receiving import CT, ReceivingNode, Sender, ct_slice, encoded, wait_for
from tests.processes import children, read

ECHO = pdu(pdv(ECHO_REQUEST, COMMAND | LAST, ECHO_CONTEXT))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ReceivingNode]:
    running = with_movers(tmp_path / "var")
    yield running
    running.stop()


def with_movers(data_dir: Path, count: int = 2, *, segments: int = 4) -> ReceivingNode:
    node = ReceivingNode(data_dir)
    node.receive = node.receive.model_copy(
        update={"movers": count, "journal_bytes": segments * SEGMENT_BYTES}
    )
    return node.start()


def mover_pids() -> list[int]:
    """The processes that this one forked, which are movers when they still have its command line."""
    here = read(os.getpid(), "cmdline")
    return [pid for pid in children(os.getpid()) if read(pid, "cmdline") == here]


def test_movers_read_and_the_receiver_answers_the_rest(node: ReceivingNode) -> None:
    """Ten messages of both kinds in one go, then one by one: answers come in order, nothing is lost."""
    uid = generate_uid()
    images = [ct_slice(uid, number) for number in range(10)]
    messages = [store_message(image.SOPInstanceUID, encoded(image)) for image in images]
    with RawScu(node.port) as scu:
        scu.socket.sendall(b"".join(message + ECHO for message in messages[:5]))
        assert [scu.status() for _ in range(10)] == [0x0000] * 10
        for message in messages[5:]:
            for sent in (message, ECHO):
                scu.socket.sendall(sent)
                assert scu.status() == 0x0000
        scu.release()
    wait_for(lambda: node.series_rows()[0]["state"] == "complete")
    kept = {row["sop_instance_uid"]: node.dataset_bytes(row) for row in node.rows()}
    assert kept == {str(image.SOPInstanceUID): encoded(image) for image in images}
    assert 'pacsnode_instances_total{code="none",outcome="stored"} 10.0' in node.metrics.expose().decode()
    assert list((node.data_dir / "spool/journal/0").glob("*.segment")), "a mover's journal was used"


def test_what_is_no_case_for_the_journal_has_its_status(node: ReceivingNode) -> None:
    image, changed = ct_slice("1.2.3", 1), ct_slice("1.2.3", 1, Rows=8)
    large = ct_slice("1.2.3", 2, PixelData=bytes(SEGMENT_BYTES + 1))
    sender = Sender(node.port, CT)
    assert sender.store_image(image) == 0x0000
    assert sender.store_image(image) == 0x0000
    assert sender.store_image(changed) == 0xC001
    assert sender.store_image(large) == 0x0000
    assert sender.store(image.SOPClassUID, "1.2.3.4", encoded(image)) == 0xA900
    sender.release()
    rows = node.rows()
    assert [(row["state"], row["reason_code"]) for row in rows] == [
        ("stored", None),
        ("quarantined", "duplicate_different"),
        ("stored", None),
        ("quarantined", "uid_mismatch"),
    ]
    assert not list(node.data_dir.rglob("*.part"))


def test_two_movers_meet_the_same_uid(node: ReceivingNode) -> None:
    """Neither knows of the other's journal: what is there twice shows when it is filed."""
    same, changed = ct_slice("1.2.3", 1), ct_slice("1.2.3", 2, Rows=8)
    senders = [Sender(node.port, CT) for _ in range(2)]
    assert [sender.store_image(same) for sender in senders] == [0x0000] * 2
    assert senders[0].store_image(ct_slice("1.2.3", 2)) == 0x0000
    assert senders[1].store_image(changed) in {0x0000, 0xC001}
    for sender in senders:
        sender.release()
    wait_for(lambda: len(node.rows()) == 3)
    rows: dict[str, list[tuple[str, str | None]]] = {row["sop_instance_uid"]: [] for row in node.rows()}
    for row in node.rows():
        rows[row["sop_instance_uid"]].append((row["state"], row["reason_code"]))
    assert rows[str(same.SOPInstanceUID)] == [("stored", None)]
    assert sorted(rows[str(changed.SOPInstanceUID)], key=str) == [
        ("quarantined", "duplicate_different"),
        ("stored", None),
    ]


def test_each_association_goes_to_the_mover_with_the_fewest(node: ReceivingNode) -> None:
    senders = [Sender(node.port, CT) for _ in range(4)]
    for number, sender in enumerate(senders):
        assert sender.store_image(ct_slice("1.2.3", number)) == 0x0000
    movers = node._receiver.listener._movers
    assert movers is not None
    assert sorted(movers._of.values()) == [0, 0, 1, 1]
    for sender in senders:
        sender.release()
    wait_for(lambda: not movers._of)


@pytest.mark.parametrize("left", [1, 0])
def test_journals_of_movers_that_there_are_no_more_are_filed(tmp_path: Path, left: int) -> None:
    pid = os.fork()
    if pid == 0:  # a receiver that is killed
        try:
            node = with_movers(tmp_path / "var", 2)
            senders = [Sender(node.port, CT) for _ in range(2)]
            statuses = [one.store_image(ct_slice("1.2.3", n)) for n, one in enumerate(senders)]
            os.kill(os.getpid(), signal.SIGKILL if statuses == [0, 0] else signal.SIGTERM)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    node = with_movers(tmp_path / "var", left)
    try:
        assert sorted(node.dataset_bytes(row) for row in node.rows()) == sorted(
            encoded(ct_slice("1.2.3", number)) for number in range(2)
        )
        folders = {path.name for path in (tmp_path / "var/spool/journal").glob("*/")}
        assert folders == {str(number) for number in range(left)}
    finally:
        node.stop()


def test_movers_end_with_the_receiver(tmp_path: Path) -> None:
    before = set(mover_pids())
    node = with_movers(tmp_path / "var")
    started = set(mover_pids()) - before
    assert len(started) == 2
    node.stop()
    assert not started & set(mover_pids())
