"""The spool: durable, deduplicated, quarantined, and reconciled after a crash."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from sqlalchemy import delete
from sqlalchemy.exc import OperationalError

from node.database import instances
from node.errors import OutOfSpace, SpoolError
from node.receive.index import RECOVERED
from tests.integration.receiving import ct_slice, encoded
from tests.unit.node.receive.conftest import Bench, Sent


def incoming(series_uid: str = "1.2.3", number: int = 1, **changes: Any) -> Sent:
    image = ct_slice(series_uid, number, **changes)
    return Sent(image.SOPClassUID, image.SOPInstanceUID, ExplicitVRLittleEndian, encoded(image))


def files(bench: Bench) -> list[str]:
    spool = bench.data_dir / "spool"
    return sorted(str(path.relative_to(spool)) for path in spool.rglob("*") if path.is_file())


def test_a_stored_instance_is_a_readable_file_and_a_row(bench: Bench) -> None:
    sent = incoming()
    stored = bench.store(sent)
    assert (stored.state, stored.series_version) == ("stored", 1)
    path = bench.data_dir / stored.path
    assert path.read_bytes().endswith(sent.dataset)
    assert dcmread(path).SOPInstanceUID == sent.sop_instance_uid
    (row,) = bench.rows()
    assert row["bytes"] == path.stat().st_size
    assert row["received_at"] == bench.now
    assert files(bench) == [str(Path(stored.path).relative_to("spool"))]


def test_success_comes_after_file_folder_and_row_are_durable(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    stored = bench.store(incoming())
    folder = (bench.data_dir / stored.path).parent
    assert synced[0].endswith(".part")
    assert synced[1:] == [str(folder.parent), str(folder)]


def test_identical_content_is_stored_once_by_any_number_of_threads(bench: Bench) -> None:
    sent = incoming()
    states: list[str] = []
    threads = [threading.Thread(target=lambda: states.append(bench.store(sent).state)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(states) == ["duplicate"] * 7 + ["stored"]
    assert len(files(bench)) == len(bench.rows()) == 1


def test_different_content_never_replaces(bench: Bench) -> None:
    first, second = incoming(), incoming(BodyPartExamined="HEAD")
    kept = bench.store(first)
    other = bench.store(second)
    assert (other.state, other.code) == ("quarantined", "duplicate_different")
    assert (bench.data_dir / kept.path).read_bytes().endswith(first.dataset)
    assert (bench.data_dir / other.path).read_bytes().endswith(second.dataset)
    assert bench.series_rows()[0]["instance_count"] == 1


def test_no_path_contains_what_a_peer_sent(bench: Bench) -> None:
    evil = "../../../tmp/evil\0/\u202e"
    stored = bench.store(replace(incoming(), sop_instance_uid=evil, calling_ae_title="../x"))
    assert (stored.state, stored.code) == ("quarantined", "uid_mismatch")
    assert (bench.data_dir / stored.path).resolve().is_relative_to(bench.data_dir / "spool/quarantine")


def test_below_the_floor_nothing_is_written(bench: Bench) -> None:
    bench.spool._floor = 2**60
    with pytest.raises(OutOfSpace):
        bench.store(incoming())
    assert files(bench) == [] and bench.rows() == []


@pytest.mark.parametrize("good_syncs", [0, 1, 2])  # file, new folder's entry, file's entry
@pytest.mark.parametrize(("number", "expected"), [(errno.ENOSPC, OutOfSpace), (errno.EIO, SpoolError)])
def test_a_failing_disk_leaves_nothing(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    expected: type[SpoolError],
    good_syncs: int,
) -> None:
    left = iter(range(good_syncs))

    def fail(_descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(expected) as raised:
        bench.store(incoming())
    assert type(raised.value) is expected
    assert files(bench) == [] and bench.rows() == []


def test_a_failing_database_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> int:
        raise OperationalError("insert", {}, Exception("disk I/O error"))

    monkeypatch.setattr(bench.tracker, "file_instance", fail)
    with pytest.raises(SpoolError):
        bench.store(incoming())
    assert files(bench) == [] and bench.rows() == []
    monkeypatch.undo()
    assert bench.store(incoming()).state == "stored"


def test_reconcile_removes_temporary_files_and_indexes_whole_ones(bench: Bench) -> None:
    good = bench.store(incoming())
    bad = bench.store(incoming(number=2, SeriesInstanceUID=""))
    with bench.engine.begin() as connection:  # as if the process died before the commit
        connection.execute(delete(instances))
    (bench.data_dir / "spool/incoming/half.part").write_bytes(b"half")
    bench.restart()
    found = bench.reconcile()
    assert (found.temporary_removed, found.indexed, found.missing, found.foreign) == (1, 2, 0, 0)
    rows = {row["path"]: row for row in bench.rows()}
    assert rows[good.path]["state"] == "stored"
    assert rows[good.path]["association_id"] == RECOVERED
    assert rows[good.path]["calling_ae_title"] == "SCANNER"
    assert rows[bad.path]["reason_code"] == "missing_uid"
    assert bench.reconcile().indexed == 0


def test_reconcile_flags_files_that_vanished_or_shrank(bench: Bench) -> None:
    gone, cut = bench.store(incoming()), bench.store(incoming(number=2))
    (bench.data_dir / gone.path).unlink()
    os.truncate(bench.data_dir / cut.path, 600)
    assert bench.reconcile().missing == 2
    again = bench.reconcile()
    assert (again.missing, again.indexed) == (0, 0)
    assert {row["reason_code"] for row in bench.rows()} == {"file_missing"}
    assert bench.store(incoming()).state == "stored"  # sent again, it is taken again
    assert bench.store(incoming(number=2)).state == "stored"
    assert [row["state"] for row in bench.rows()] == ["stored", "stored"]
    assert bench.reconcile().missing == 0


def test_reconcile_leaves_foreign_files_alone(bench: Bench) -> None:
    foreign = bench.data_dir / "spool/series/readme.dcm"
    foreign.write_bytes(b"not DICOM")
    assert bench.reconcile().foreign == 1
    assert foreign.exists()


def test_cost_of_an_instance_does_not_grow_with_the_series(bench: Bench) -> None:
    uid = generate_uid()
    for number in range(50):
        bench.now += 1
        bench.store(incoming(uid, number))
    (row,) = bench.series_rows()
    assert row["instance_count"] == 50
    assert len(str(row["evidence"])) < 200
