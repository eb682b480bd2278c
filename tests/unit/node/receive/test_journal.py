"""The journal: durable when acknowledged, filed in a moment, found again after a crash, and never half."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from node.database import open_database
from node.errors import SpoolError
from node.receive.index import RECOVERED
from node.receive.journal import BLOCK_BYTES, SEGMENT_BYTES
from node.receive.part10 import read_part10
from tests.unit.node.receive.conftest import Bench, Sent
from tests.unit.node.receive.test_spool import files, incoming


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """With three segments, and nothing filed unless it is asked for or the segments run out."""
    monkeypatch.setattr("node.receive.journal.MAX_LAG_SECONDS", 3600.0)
    engine = open_database(tmp_path)
    bench = Bench(tmp_path, engine, journal_bytes=3 * SEGMENT_BYTES)
    yield bench
    bench.spool.journal.stop()
    engine.dispose()


def crash(bench: Bench) -> None:
    """Everything that isn't on disk is gone; the new process begins."""
    bench.spool.journal._wake.set()
    bench.spool.journal._stopping.set()
    bench.spool.journal._thread.join()
    bench.restart()


def content(bench: Bench, path: str) -> bytes:
    file = bench.data_dir / path
    return file.read_bytes()[read_part10(file).header_bytes :]


def test_what_is_acknowledged_is_filed_with_its_bytes_and_its_time(bench: Bench) -> None:
    sent = [incoming(number=number) for number in range(3)]
    paths = [bench.store(one).path for one in sent]
    assert bench.rows() == []
    bench.now += 100
    bench.spool.journal.file_now()
    assert [row["path"] for row in bench.rows()] == paths
    assert [content(bench, path) for path in paths] == [one.dataset for one in sent]
    assert {row["received_at"] for row in bench.rows()} == {bench.now - 100}
    (series,) = bench.series_rows()
    assert (series["instance_count"], series["last_instance_at"]) == (3, bench.now - 100)
    assert not [name for name in files(bench) if name.startswith("incoming")]


def test_one_write_to_disk_before_it_is_acknowledged(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.store(incoming())
    synced: list[str] = []
    real = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        real(descriptor)
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().suffix)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("a file was synced"))
    assert bench.store(incoming(number=2)).state == "stored"
    assert synced == [".segment"]
    monkeypatch.undo()


def test_after_a_crash_everything_is_filed_once(bench: Bench) -> None:
    sent = [incoming(number=number) for number in range(3)]
    bench.store(sent[0])
    bench.spool.journal.file_now()
    for one in sent[1:]:
        bench.store(one)
    crash(bench)
    rows = bench.rows()
    assert len(rows) == 3
    assert [content(bench, row["path"]) for row in rows] == [one.dataset for one in sent]
    assert [row["association_id"] for row in rows] == ["a1", RECOVERED, RECOVERED]
    assert bench.series_rows()[0]["instance_count"] == 3
    crash(bench)
    assert len(bench.rows()) == 3
    assert bench.store(sent[1]).state == "duplicate"


@pytest.mark.parametrize("where", ["content", "header"])
def test_what_power_loss_tore_is_absent_and_its_neighbours_are_whole(bench: Bench, where: str) -> None:
    sent = [incoming(number=number) for number in range(3)]
    for one in sent:
        bench.store(one)
    assert bench.lane is not None
    segment = bench.lane.segments[0]
    second = segment.records[1]
    at = second.offset + 700 if where == "content" else second.offset - BLOCK_BYTES + 60
    os.pwrite(segment.file, b"\xff\xee\xdd", at)
    crash(bench)
    kept = [content(bench, row["path"]) for row in bench.rows()]
    assert sent[1].dataset not in kept
    assert kept == [sent[0].dataset, sent[2].dataset]


def test_segments_are_used_again_and_their_old_records_are_void(bench: Bench) -> None:
    for number in range(5):
        bench.store(incoming(number=number))
    assert bench.lane is not None
    bench.spool.journal.end(bench.lane)
    assert len(bench.rows()) == 5
    bench.lane = bench.spool.journal.lane()
    for _ in range(3):  # whichever of the three it was
        bench.store(incoming("1.2.4", 1))
        bench.spool.journal.end(bench.lane)
        bench.lane = bench.spool.journal.lane()
    crash(bench)
    assert len(bench.rows()) == 6


def test_a_failing_database_delays_filing_and_loses_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> int:
        raise OperationalError("insert", {}, Exception("disk I/O error"))

    bench.store(incoming())
    monkeypatch.setattr(bench.tracker, "file_instance", fail)
    bench.spool.journal.file_now()
    assert bench.rows() == []
    assert not [name for name in files(bench) if not name.startswith("journal")]
    monkeypatch.undo()
    bench.spool.journal.file_now()
    assert [row["state"] for row in bench.rows()] == ["stored"]


def test_no_series_is_judged_before_its_instances_are_filed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.tracker.file_all = bench.spool.journal.file_now
    bench.store(incoming(number=1))
    bench.spool.journal.file_now()
    bench.store(incoming(number=2))
    bench.now += 1000

    def fail(*_args: object, **_kwargs: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "copy_file_range", fail)
    assert bench.tracker.check() == 1.0
    assert bench.completed == []
    monkeypatch.undo()
    bench.check()
    assert bench.completed == [("1.2.3", 1)]
    assert bench.series_rows()[0]["instance_count"] == 2


def test_a_failing_disk_is_no_success_and_the_uid_is_free_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(SpoolError):
        bench.store(incoming())
    monkeypatch.undo()
    assert bench.store(incoming()).state == "stored"
    bench.spool.journal.file_now()
    assert len(bench.rows()) == 1


def test_the_same_instance_again_before_it_is_filed(bench: Bench) -> None:
    assert bench.store(incoming()).state == "stored"
    assert bench.store(incoming()).state == "duplicate"
    changed = bench.store(incoming(BodyPartExamined="HEAD"))
    assert (changed.state, changed.code) == ("quarantined", "duplicate_different")
    assert sorted(row["state"] for row in bench.rows()) == ["quarantined", "stored"]


def test_what_cannot_be_filed_goes_to_quarantine_at_once(bench: Bench) -> None:
    stored = bench.store(incoming(SeriesInstanceUID=""))
    assert (stored.state, stored.code) == ("quarantined", "missing_uid")
    assert content(bench, stored.path) == incoming(SeriesInstanceUID="").dataset


def large(number: int, size: int) -> Sent:
    image = incoming(number=number)
    start = image.dataset.index(b"\xe0\x7f\x10\x00OW")
    pixels = bytes([number]) * size
    dataset = image.dataset[: start + 8] + size.to_bytes(4, "little") + pixels
    return Sent(image.sop_class_uid, image.sop_instance_uid, image.transfer_syntax_uid, dataset)


@pytest.mark.parametrize("sizes", [(SEGMENT_BYTES + 1000,), (10_000_000, 10_000_000), (15_000_000,) * 5])
def test_instances_that_outgrow_a_segment_and_more_than_there_is_room_for(
    bench: Bench, sizes: tuple[int, ...]
) -> None:
    sent = [large(number, size) for number, size in enumerate(sizes)]
    for one in sent:
        assert bench.store(one, piece_bytes=100_000).state == "stored"
    bench.spool.journal.file_now()
    kept = {content(bench, row["path"]) for row in bench.rows()}
    assert kept == {one.dataset for one in sent}


def test_a_file_system_that_cannot_copy_inside_of_the_kernel(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_args: object, **_kwargs: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "copy_file_range", unsupported)
    one = large(1, 3_000_000)
    path = bench.store(one, piece_bytes=100_000).path
    bench.spool.journal.file_now()
    assert content(bench, path) == one.dataset
