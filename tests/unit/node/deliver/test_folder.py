"""A folder as destination: whole files under their UIDs, again and again."""

from __future__ import annotations

import os
import resource
import stat
from pathlib import Path

import pytest
from pydicom import dcmread

from node.config import FolderDestination
from node.deliver import make_destination
from node.deliver.base import Destination
from node.errors import DeliveryError
from tests.unit.node.deliver.conftest import SERIES


def deliverer(path: Path) -> Destination:
    return make_destination("outbox", FolderDestination(type="folder", path=path), calling_ae_title="X")


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def expected(files: list[Path]) -> dict[str, bytes]:
    return {f"{SERIES}/{dcmread(file).SOPInstanceUID}.dcm": file.read_bytes() for file in files}


def test_files_arrive_unchanged_under_their_uids(tmp_path: Path, files: list[Path]) -> None:
    deliverer(tmp_path / "out" / "deep").deliver(files)
    assert contents(tmp_path / "out" / "deep") == expected(files)


def test_again_is_harmless_and_completes_what_was_half_there(tmp_path: Path, files: list[Path]) -> None:
    target = deliverer(tmp_path / "out")
    target.deliver(files[:1])
    uid = dcmread(files[1]).SOPInstanceUID
    (tmp_path / "out" / SERIES / f".{uid}.partial").write_bytes(b"killed in the middle")
    for _ in range(2):
        target.deliver(files)
    assert contents(tmp_path / "out") == expected(files)


def test_a_file_has_its_name_only_once_it_is_whole_and_on_disk(
    tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    fsync = os.fsync

    def look(descriptor: int) -> None:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return fsync(descriptor)
        seen.append([name for name in expected(files) if (tmp_path / "out" / name).exists()])
        return fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    deliverer(tmp_path / "out").deliver(files)
    assert seen == [list(expected(files))[:n] for n in range(3)]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path, files: list[Path]) -> None:
    out = tmp_path / "out"
    out.mkdir(mode=0o500)
    with pytest.raises(DeliveryError, match=r"destination outbox: .*out: Permission denied") as raised:
        deliverer(out).deliver(files)
    assert raised.value.retryable
    with pytest.raises(DeliveryError, match="Permission denied"):
        deliverer(out).check()


def test_a_file_where_the_folder_should_be(tmp_path: Path, files: list[Path]) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(DeliveryError, match="destination outbox: ") as raised:
        deliverer(tmp_path / "out").deliver(files)
    assert raised.value.retryable
    assert "mounted" in raised.value.hint
    with pytest.raises(DeliveryError):
        deliverer(tmp_path / "out").check()


def test_a_write_that_fails_half_way_leaves_nothing_under_its_name(tmp_path: Path, files: list[Path]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (files[0].stat().st_size - 1, hard))
    try:
        with pytest.raises(DeliveryError, match="File too large") as raised:
            deliverer(tmp_path / "out").deliver(files)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.retryable
    assert not list((tmp_path / "out").rglob("*.dcm"))
    deliverer(tmp_path / "out").deliver(files)
    assert contents(tmp_path / "out") == expected(files)


def test_check_makes_the_folder(tmp_path: Path) -> None:
    deliverer(tmp_path / "out").check()
    assert (tmp_path / "out").is_dir()
