"""C-STORE in by real senders over real sockets: what is acknowledged, what is kept, and how byte for byte."""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, build_context
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import PatientRootQueryRetrieveInformationModelFind, Verification

from node.config import ReceiveConfig
from node.receive.journal import SEGMENT_BYTES
from tests.integration.receiving import (
    CALLING,
    CT,
    ReceivingNode,
    Sender,
    contexts_of,
    ct_slice,
    dataset_bytes,
    encoded,
    series_uid_of,
    storescu,
    wait_for,
)
from tests.shared_data import shared

pytestmark = pytest.mark.integration


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ReceivingNode]:
    running = ReceivingNode(tmp_path / "var").start()
    yield running
    running.stop()


def test_storescu_sends_a_real_series_in_its_own_transfer_syntax(node: ReceivingNode) -> None:
    folder = shared("chest_ct/lungdx_a0002_siemens_b40f")
    sent = storescu(node.port, sorted(folder.iterdir()), "-R")
    assert sent.returncode == 0, sent.stderr
    rows = node.rows()
    assert [row["state"] for row in rows] == ["stored"] * 30
    by_uid = {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID): path for path in folder.iterdir()}
    for row in rows:
        # storescu writes sequences anew, so the bytes that it sends aren't the file's
        assert dcmread(node.data_dir / row["path"]) == dcmread(by_uid[row["sop_instance_uid"]])
        meta = read_file_meta_info(node.data_dir / row["path"])
        assert meta.TransferSyntaxUID == row["transfer_syntax_uid"]
        assert meta.SourceApplicationEntityTitle == CALLING
    wait_for(lambda: node.completed == [(series_uid_of(folder), 1)])
    (row,) = node.series_rows()
    assert row["evidence"]["rule"] == "association_release"
    assert row["evidence"]["instances"] == 30


def test_deflated_series_is_stored_as_received(node: ReceivingNode) -> None:
    folder = shared("chest_ct/lidc0001_ge_deflated")
    paths = sorted(folder.iterdir())
    sender = Sender(node.port, contexts_of(paths))
    assert {sender.store_file(path) for path in paths} == {0x0000}
    sender.release()
    rows = node.rows()
    assert {row["transfer_syntax_uid"] for row in rows} == {DeflatedExplicitVRLittleEndian}
    assert [node.dataset_bytes(row) for row in rows] == [dataset_bytes(path) for path in paths]
    wait_for(lambda: node.completed == [(series_uid_of(folder), 1)])


def test_every_codec_file_is_kept_byte_for_byte(node: ReceivingNode) -> None:
    paths = [path for path in sorted(shared("codecs").rglob("*")) if path.is_file() and _is_dicom(path)]
    assert len(paths) > 30
    sender = Sender(node.port, contexts_of(paths))
    seen: set[str] = set()
    for path in paths:
        status = sender.store_file(path)
        row = node.rows()[-1]
        assert node.dataset_bytes(row) == dataset_bytes(path), path
        if "totalseg" in str(path):  # its Study, Series and SOP Instance UIDs are empty
            assert (status, row["reason_code"]) == (0xC000, "missing_uid")
        elif row["sop_instance_uid"] in seen:  # one image in several codecs under one UID
            assert (status, row["reason_code"]) == (0xC001, "duplicate_different")
        else:
            assert (status, row["state"]) == (0x0000, "stored"), (path, row["reason"])
        seen.add(row["sop_instance_uid"])
    sender.release()


def test_malformed_files_beside_a_good_series(node: ReceivingNode) -> None:
    good = sorted(shared("chest_ct/lungdx_a0002_siemens_b40f").iterdir())
    bad = [path for path in sorted(shared("malformed").rglob("*")) if path.is_file()][::4]
    statuses: list[int] = []

    def send_good() -> None:
        sender = Sender(node.port, contexts_of(good))
        statuses.extend(sender.store_file(path) for path in good)
        sender.release()

    thread = threading.Thread(target=send_good)
    thread.start()
    contexts = {(CTImageStorage, ExplicitVRLittleEndian)}
    answers = []
    sender = Sender(node.port, contexts)
    for path in bad:  # as raw bytes under a CT context: header, garbage and all
        body = path.read_bytes() or b"\0"
        answers.append(sender.store(CTImageStorage, generate_uid(entropy_srcs=[str(path)]), body))
    sender.release()
    thread.join()
    assert statuses == [0x0000] * len(good)
    assert set(answers) <= {0xC000, 0xA900}
    rows = node.rows()
    assert sum(row["state"] == "stored" for row in rows) == len(good)
    quarantined = [row for row in rows if row["state"] == "quarantined"]
    assert len(quarantined) == len(bad)
    assert all(row["reason_code"] and row["reason"] for row in quarantined)
    wait_for(lambda: len(node.completed) == 1)


def test_duplicates(node: ReceivingNode) -> None:
    uid = generate_uid()
    image = ct_slice(uid, 1)
    sender = Sender(node.port, CT)
    assert sender.store_image(image) == 0x0000
    assert sender.store_image(image) == 0x0000
    assert len(node.rows()) == 1
    changed = ct_slice(uid, 1, BodyPartExamined="HEAD")
    assert sender.store_image(changed) == 0xC001
    assert sender.store_image(changed) == 0xC001
    sender.release()
    stored, kept = node.rows()
    assert node.dataset_bytes(stored) == encoded(image)
    assert node.dataset_bytes(kept) == encoded(changed)
    assert (kept["state"], kept["reason_code"]) == ("quarantined", "duplicate_different")
    assert stored["path"] in kept["reason"]


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"SOPInstanceUID": "1.2.3.4"}, 0xA900, "uid_mismatch"),
        ({"SOPClassUID": MRImageStorage}, 0xA900, "uid_mismatch"),
        ({"SeriesInstanceUID": ""}, 0xC000, "missing_uid"),
        ({"StudyInstanceUID": "../../etc/passwd"}, 0xC000, "invalid_uid"),
    ],
)
def test_instances_that_cannot_be_filed(
    node: ReceivingNode, changes: dict[str, str], status: int, code: str
) -> None:
    image = ct_slice(generate_uid(), 1)
    command_uid = image.SOPInstanceUID
    for keyword, value in changes.items():
        setattr(image, keyword, value)
    sender = Sender(node.port, CT)
    assert sender.store(CTImageStorage, command_uid, encoded(image)) == status
    sender.release()
    (row,) = node.rows()
    assert (row["state"], row["reason_code"]) == ("quarantined", code)
    assert node.dataset_bytes(row) == encoded(image)
    assert row["path"].startswith("spool/quarantine/")


def test_below_the_floor_peers_are_told_to_come_back_and_all_recovers(node: ReceivingNode) -> None:
    uid = generate_uid()
    sender = Sender(node.port, CT)
    assert sender.store_image(ct_slice(uid, 1)) == 0x0000
    node.spool._floor = 2**60
    assert sender.store_image(ct_slice(uid, 2)) == 0xA700
    refused = _associate(node.port, CALLING, "PACSNODE")
    assert refused.is_rejected
    primitive = refused.acceptor.primitive
    assert (primitive.result, primitive.result_source, primitive.diagnostic) == (2, 3, 1)
    assert 'rejected_total{reason="no_space"} 1.0' in node.metrics.expose().decode()
    node.spool._floor = 0
    assert sender.store_image(ct_slice(uid, 2)) == 0x0000
    assert _echo(node.port) == 0x0000
    sender.release()
    assert [row["state"] for row in node.rows()] == ["stored", "stored"]
    assert not list(node.data_dir.rglob("*.part"))


@pytest.mark.parametrize(
    ("allowed", "accepted"),
    [(("127.0.0.1",), True), (("10.0.0.0/8", "127.0.0.0/8"), True), (("10.0.0.1",), False)],
)
def test_hosts(tmp_path: Path, allowed: tuple[str, ...], accepted: bool) -> None:
    receive = ReceiveConfig(port=0, allow_any_calling_ae_title=True, allowed_hosts=allowed, journal_bytes=0)
    node = ReceivingNode(tmp_path, receive).start()
    try:
        association = _associate(node.port, "ANYONE", "PACSNODE")
        assert association.is_established is accepted
        if accepted:
            association.release()
        else:
            primitive = association.acceptor.primitive
            assert (primitive.result, primitive.result_source, primitive.diagnostic) == (1, 1, 1)
            assert 'rejected_total{reason="host"} 1.0' in node.metrics.expose().decode()
    finally:
        node.stop()


def test_a_really_full_disk(tmp_path: Path) -> None:
    """A small file system of its own: what doesn't fit is refused, and once there is room all goes on."""
    small = tmp_path / "small"
    small.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(small)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    try:
        receive = ReceiveConfig(
            port=0, allow_any_calling_ae_title=True, free_disk_floor_bytes=0, journal_bytes=SEGMENT_BYTES
        )
        node = ReceivingNode(small / "var", receive).start()
        uid = generate_uid()
        sender = Sender(node.port, CT)
        statuses = []
        for number in range(16):
            image = ct_slice(uid, number, PixelData=bytes([number]) * 1_500_000)
            statuses.append(sender.store_image(image))
        assert statuses[0] == 0x0000 and set(statuses) == {0x0000, 0xA700}
        subprocess.run(["mount", "-o", "remount,size=96m", str(small)], check=True)
        for number, status in enumerate(statuses):
            if status != 0x0000:
                image = ct_slice(uid, number, PixelData=bytes([number]) * 1_500_000)
                assert sender.store_image(image) == 0x0000
        sender.release()
        wait_for(lambda: len(node.rows()) == 16, what="everything to be filed")
        assert {row["state"] for row in node.rows()} == {"stored"}
        assert not list(small.rglob("*.part"))
        node.stop()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_interleaved_series_and_one_series_over_several_associations(node: ReceivingNode) -> None:
    first, second = generate_uid(), generate_uid()
    senders = [Sender(node.port, CT) for _ in range(3)]
    for number in range(12):
        for uid in (first, second):
            assert senders[number % 3].store_image(ct_slice(uid, number)) == 0x0000
    senders[0].release()
    senders[1].release()
    time.sleep(0.6)
    assert node.completed == []  # the third association may still send
    senders[2].release()
    wait_for(lambda: sorted(node.completed) == sorted([(first, 1), (second, 1)]))
    for row in node.series_rows():
        assert row["evidence"]["rule"] == "association_release"
        assert row["evidence"]["associations"]["released"] == 3
        assert row["instance_count"] == 12


def test_an_aborted_association_is_no_release(node: ReceivingNode) -> None:
    uid = generate_uid()
    sender = Sender(node.port, CT)
    sender.store_image(ct_slice(uid, 1))
    sender.abort()
    wait_for(lambda: node.listener.open_associations == 0)
    time.sleep(0.6)
    assert node.completed == []
    wait_for(lambda: node.completed == [(uid, 1)])
    (row,) = node.series_rows()
    assert row["evidence"]["rule"] == "quiet_time"
    assert row["evidence"]["associations"]["aborted"] == 1


def test_a_late_instance_makes_a_new_version(node: ReceivingNode) -> None:
    uid = generate_uid()

    def wait_for_version(number: int) -> None:
        wait_for(lambda: (uid, number) in node.completed)

    for expected, numbers in ((1, (1, 2)), (2, (3,))):
        sender = Sender(node.port, CT)
        for number in numbers:
            sender.store_image(ct_slice(uid, number))
        sender.release()
        wait_for_version(expected)
    assert [(row["version"], row["instance_count"]) for row in node.series_rows()] == [(1, 2), (2, 3)]
    assert [row["series_version"] for row in node.rows()] == [1, 1, 2]


def test_association_rules(tmp_path: Path) -> None:
    receive = ReceiveConfig(port=0, allowed_calling_ae_titles=("FRIEND",), max_associations=1)
    node = ReceivingNode(tmp_path, receive).start()
    try:
        cases = [("STRANGER", "PACSNODE", (1, 1, 3)), ("FRIEND", "SOMEONE", (1, 1, 7))]
        for calling, called, rejection in cases:
            association = _associate(node.port, calling, called)
            wait_for(lambda: not _acceptor_threads())  # a rejected association counts until it is gone
            assert association.is_rejected
            primitive = association.acceptor.primitive
            assert (primitive.result, primitive.result_source, primitive.diagnostic) == rejection
        held = _associate(node.port, "FRIEND", "PACSNODE")
        assert held.send_c_echo().Status == 0x0000
        refused = _associate(node.port, "FRIEND", "PACSNODE")
        assert refused.is_rejected
        assert refused.acceptor.primitive.result_source == 3  # transient, local limit exceeded
        held.release()
    finally:
        node.stop()
    text = node.metrics.expose().decode()
    for reason in ("calling_ae_title", "called_ae_title", "too_many_associations"):
        assert f'pacsnode_associations_rejected_total{{reason="{reason}"}} 1.0' in text


def test_nobody_may_send_when_nobody_is_named(tmp_path: Path) -> None:
    node = ReceivingNode(tmp_path, ReceiveConfig(port=0)).start()
    try:
        assert _associate(node.port, "ANYONE", "PACSNODE").is_rejected
    finally:
        node.stop()


def test_every_storage_class_and_transfer_syntax_is_negotiated(node: ReceivingNode) -> None:
    classes = [str(context.abstract_syntax) for context in AllStoragePresentationContexts]
    pairs = [(uid, ExplicitVRLittleEndian) for uid in classes]
    pairs += [(CTImageStorage, str(syntax)) for syntax in ALL_TRANSFER_SYNTAXES]
    for start in range(0, len(pairs), 128):
        requested = [build_context(uid, syntax) for uid, syntax in pairs[start : start + 128]]
        association = _associate(node.port, CALLING, "PACSNODE", requested)
        assert association.rejected_contexts == []
        association.release()


def test_unknown_and_private_classes(tmp_path: Path) -> None:
    private = "1.2.826.0.1.3680043.10.99999.1"
    contexts = [build_context(private), build_context(PatientRootQueryRetrieveInformationModelFind)]
    for accept in (True, False):
        receive = ReceiveConfig(
            port=0,
            allow_any_calling_ae_title=True,
            accept_unknown_sop_classes=accept,
            free_disk_floor_bytes=0,
        )
        node = ReceivingNode(tmp_path / str(accept), receive).start()
        try:
            association = _associate(node.port, CALLING, "PACSNODE", contexts)
            accepted = [str(context.abstract_syntax) for context in association.accepted_contexts]
            assert accepted == ([private] if accept else [])
            association.release()
            if accept:
                sender = Sender(node.port, [(private, ExplicitVRLittleEndian)])
                image = ct_slice(generate_uid(), 1, SOPClassUID=private)
                assert sender.store(private, image.SOPInstanceUID, encoded(image)) == 0x0000
                sender.release()
                assert node.rows()[0]["sop_class_uid"] == private
        finally:
            node.stop()


def test_garbage_on_the_port_leaves_nothing_behind(node: ReceivingNode) -> None:
    rng = random.Random(20261120)  # noqa: S311 repeatable noise
    for connection in [node.engine.connect() for _ in range(5)]:  # the pool holds so many from now on
        connection.close()
    descriptors = _descriptors()
    started = threading.active_count()
    for size in (0, 1, 5, 6, 7, 64, 4096, 200_000):
        with socket.create_connection(("127.0.0.1", node.port)) as peer:
            peer.sendall(rng.randbytes(size))
    half_request = bytes([1, 0]) + struct.pack(">L", 500) + b"\0\1\0\0PACSNODE"
    release_first = bytes([5, 0]) + struct.pack(">L", 4) + bytes(4)
    undecodable = bytes([1, 0]) + struct.pack(">L", 80) + rng.randbytes(80)
    for pdu in (half_request, release_first, undecodable, bytes([4, 0]) + struct.pack(">L", 2**32 - 1)):
        with socket.create_connection(("127.0.0.1", node.port)) as peer:
            peer.sendall(pdu)
            peer.shutdown(socket.SHUT_WR)
            peer.settimeout(3)
            while peer.recv(4096):
                pass
    uid = generate_uid()
    sender = Sender(node.port, CT)
    assert sender.store_image(ct_slice(uid, 1)) == 0x0000
    # the sender dies in the middle of a P-DATA-TF
    sender.association.dul.socket.socket.sendall(bytes([4, 0]) + struct.pack(">L", 60_000) + bytes(1000))
    sender.association.dul.socket.socket.shutdown(socket.SHUT_RDWR)
    wait_for(lambda: node.listener.open_associations == 0)
    assert _echo(node.port) == 0x0000
    wait_for(lambda: node.completed == [(uid, 1)])
    assert node.series_rows()[0]["evidence"]["associations"]["aborted"] == 1
    wait_for(lambda: threading.active_count() <= started, what="threads to end")
    wait_for(lambda: _descriptors() <= descriptors + 2, what="sockets to close")


def test_garbage_takes_nobody_s_place(tmp_path: Path) -> None:
    """What never becomes an association doesn't count as one until the ARTIM timer ends."""
    receive = ReceiveConfig(
        port=0,
        allow_any_calling_ae_title=True,
        acse_timeout_seconds=30.0,
        max_associations=5,
        journal_bytes=0,
    )
    node = ReceivingNode(tmp_path, receive).start()
    try:
        for number in range(20):
            with socket.create_connection(("127.0.0.1", node.port), timeout=5) as peer:
                peer.sendall((b"", b"GET / HTTP/1.1\r\n", bytes([1, 0]) + struct.pack(">L", 500))[number % 3])
                peer.shutdown(socket.SHUT_WR)
                while peer.recv(4096):
                    pass
        wait_for(lambda: not _acceptor_threads(), seconds=5, what="the threads to end")
        assert _echo(node.port) == 0x0000
    finally:
        node.stop()


def test_a_stalled_peer_is_dropped(tmp_path: Path) -> None:
    receive = ReceiveConfig(
        port=0, allow_any_calling_ae_title=True, network_timeout_seconds=0.5, acse_timeout_seconds=0.5
    )
    node = ReceivingNode(tmp_path, receive).start()
    try:
        for first_bytes in (b"", b"\1\0\0", bytes([1, 0]) + struct.pack(">L", 500) + b"\0\1"):
            with socket.create_connection(("127.0.0.1", node.port)) as connection:
                connection.sendall(first_bytes)
                connection.settimeout(5)
                while connection.recv(4096):
                    pass
    finally:
        node.stop()


def test_stop_lets_a_running_association_finish(tmp_path: Path) -> None:
    node = ReceivingNode(tmp_path).start()
    sender = Sender(node.port, CT)
    uid = generate_uid()
    assert sender.store_image(ct_slice(uid, 1)) == 0x0000
    stopping = threading.Thread(target=node.stop, kwargs={"grace_seconds": 10})
    stopping.start()
    time.sleep(0.8)
    assert sender.store_image(ct_slice(uid, 2)) == 0x0000
    sender.release()
    stopping.join(timeout=5)
    assert not stopping.is_alive()


def test_stop_aborts_what_outlasts_the_grace(tmp_path: Path) -> None:
    node = ReceivingNode(tmp_path).start()
    sender = Sender(node.port, CT)
    assert sender.store_image(ct_slice(generate_uid(), 1)) == 0x0000
    started = time.monotonic()
    node.stop(grace_seconds=0.2)
    assert time.monotonic() - started < 4
    wait_for(lambda: sender.association.is_aborted)


def _associate(
    port: int, calling: str, called: str, contexts: list[PresentationContext] | None = None
) -> Association:
    ae = AE(ae_title=calling)
    return ae.associate(
        "127.0.0.1", port, contexts=contexts or [build_context(Verification)], ae_title=called
    )


def _acceptor_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("AcceptorThread")]


def _echo(port: int) -> int:
    association = _associate(port, CALLING, "PACSNODE")
    status = association.send_c_echo().Status
    association.release()
    return int(status)


def _is_dicom(path: Path) -> bool:
    try:
        read_file_meta_info(path)
    except InvalidDicomError:
        return False
    return True


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
