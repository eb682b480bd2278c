"""The demo's parts: what it sends, where results are kept, and the pictures that it shows."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.uid import CTImageStorage, SecondaryCaptureImageStorage
from pynetdicom import _config, evt

from node.config import CStoreDestination
from node.deliver import make_destination
from node.demo.archive import AE_TITLE, Archive, OrthancArchive, StorageArchive, start_archive
from node.demo.pictures import save_pictures
from node.demo.send import find_outgoing, send
from node.errors import NodeError
from node.triton_server import free_port
from pipelines.results.capture import build_capture
from tests.integration.receiving import dataset_bytes
from tests.integration.running import orthanc_program
from tests.unit.node.deliver.conftest import write_object
from tests.unit.node.deliver.peer import PEER, Peer
from tests.unit.pipelines.results.synthetic import chest, context


@pytest.fixture(autouse=True)
def chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    """``send`` switches this on for the process; back after each test."""
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", False)


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer(CTImageStorage)
    yield peer
    peer.stop()


def series(folder: Path, uid: str, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        write_object(folder, number, SeriesInstanceUID=uid, SOPInstanceUID=f"{uid}.{number}")
    return folder


def sent(folder: Path, port: int) -> tuple[list[str], list[tuple[int, int]]]:
    progress: list[tuple[int, int]] = []
    failed = send(
        find_outgoing([folder]),
        port=port,
        ae_title=PEER,
        progress=lambda done, total: progress.append((done, total)),
    )
    return failed, progress


def test_series_are_interleaved_and_what_is_no_dicom_left_out(tmp_path: Path) -> None:
    long, short = series(tmp_path / "long", "1.2.1", 4), series(tmp_path / "short", "1.2.2", 2)
    (long / "notes.txt").write_text("hello")
    found = find_outgoing([long, short])
    order = [(item.series_instance_uid, item.path.name) for item in found]
    assert order == [
        ("1.2.1", "0.dcm"),
        ("1.2.2", "0.dcm"),
        ("1.2.1", "1.dcm"),
        ("1.2.2", "1.dcm"),
        ("1.2.1", "2.dcm"),
        ("1.2.1", "3.dcm"),
    ]
    assert {item.sop_class_uid for item in found} == {CTImageStorage}
    assert find_outgoing([]) == []


def test_everything_is_sent(tmp_path: Path, peer: Peer) -> None:
    failed, progress = sent(series(tmp_path / "s", "1.2.1", 3), peer.port)
    assert failed == []
    assert progress == [(1, 3), (2, 3), (3, 3)]
    assert peer.stored == ["1.2.1.0", "1.2.1.1", "1.2.1.2"]


def test_what_is_refused_is_reported_and_the_rest_is_sent(tmp_path: Path, peer: Peer) -> None:
    folder = series(tmp_path / "s", "1.2.1", 3)
    write_object(folder, 9, SOPClassUID=SecondaryCaptureImageStorage, SeriesInstanceUID="1.2.1")
    peer.answers = [0x0000, 0xA700, 0x0000]
    failed, progress = sent(folder, peer.port)
    assert failed == [
        "1.dcm: status 0xa700",
        "9.dcm: Secondary Capture Image Storage in Explicit VR Little Endian wasn't accepted",
    ]
    assert progress[-1] == (4, 4)
    assert peer.stored == ["1.2.1.0", "1.2.1.1", "1.2.1.2"]


def test_an_association_that_is_lost_is_reported(tmp_path: Path, peer: Peer) -> None:
    def abort(event: evt.Event) -> int:
        event.assoc.abort()
        return 0x0000

    peer.answers = [0x0000, abort]
    failed, _ = sent(series(tmp_path / "s", "1.2.1", 3), peer.port)
    assert failed == ["1.dcm: no answer", "2.dcm: the association had ended"]


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="didn't accept the demo's association"):
        sent(series(tmp_path / "s", "1.2.1", 1), free_port())


def deliver(archive: Archive, files: list[Path]) -> None:
    config = CStoreDestination(type="cstore", ae_title=AE_TITLE, host="127.0.0.1", port=archive.port)
    deliverer = make_destination("archive", config, calling_ae_title="PACSNODE")
    deliverer.check()
    deliverer.deliver(files)


def test_the_small_archive_keeps_and_gives_back_the_bytes(tmp_path: Path) -> None:
    path = write_object(tmp_path, 1)
    (tmp_path / "archive").mkdir()
    archive = StorageArchive(tmp_path / "archive")
    try:
        deliver(archive, [path, path])
        content = archive.fetch(str(dcmread(path).SOPInstanceUID))
        assert archive.fetch("1.2.3") is None
    finally:
        archive.stop()
    assert content is not None
    (tmp_path / "fetched.dcm").write_bytes(content)
    assert dataset_bytes(tmp_path / "fetched.dcm") == dataset_bytes(path)
    assert [p.suffix for p in (tmp_path / "archive").iterdir()] == [".dcm"]


def test_orthanc_is_the_archive_where_it_is_installed(tmp_path: Path) -> None:
    orthanc_program()  # skips without it
    path = write_object(tmp_path, 1)
    archive = start_archive(tmp_path / "archive")
    try:
        assert archive.name.startswith("Orthanc ")
        deliver(archive, [path])
        content = archive.fetch(str(dcmread(path).SOPInstanceUID))
        assert archive.fetch("1.2.3") is None
    finally:
        archive.stop()
    assert content is not None
    (tmp_path / "fetched.dcm").write_bytes(content)
    assert dcmread(tmp_path / "fetched.dcm").PixelData == dcmread(path).PixelData


@pytest.mark.parametrize("position", [0, 1], ids=["dicom", "http"])
def test_orthanc_is_started_on_other_ports_when_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    program = orthanc_program()
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        ports = [free_port() for _ in range(3)]
        ports.insert(position, taken)
        monkeypatch.setattr("node.demo.archive.free_port", lambda: ports.pop(0))
        archive = OrthancArchive(program, tmp_path)
        archive.stop()
        assert ports == [] and archive.port != taken
        monkeypatch.setattr("node.demo.archive.free_port", lambda: taken)
        with pytest.raises(NodeError, match="already in use"):
            OrthancArchive(program, tmp_path)


def test_without_orthanc_the_small_archive_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    archive = start_archive(tmp_path / "archive")
    archive.stop()
    assert isinstance(archive, StorageArchive)


def test_pictures_are_the_captures_first_frames(tmp_path: Path) -> None:
    volume, _ = chest()
    page = np.zeros((20, 30, 3), np.uint8)
    page[5, 7] = (255, 128, 1)
    loop = np.stack([np.full((16, 16, 3), value, np.uint8) for value in (10, 20)])
    captures = [
        build_capture(page, volume, context(), role="picture"),
        build_capture(loop, volume, context(), role="rotation"),
        build_capture(page[:, ::-1], volume, context(), role="inpainted"),
    ]
    written = save_pictures([*captures, volume.sources[0]], tmp_path)
    assert written == {
        "result picture": tmp_path / "result_picture.png",
        "rendering, first view": tmp_path / "rendering.png",
        "as if without lesions": tmp_path / "inpainted.png",
    }
    np.testing.assert_array_equal(np.asarray(Image.open(written["result picture"])), page)
    inpainted = np.asarray(Image.open(written["as if without lesions"]))
    np.testing.assert_array_equal(inpainted, page[:, ::-1])
    np.testing.assert_array_equal(np.asarray(Image.open(written["rendering, first view"])), loop[0])
