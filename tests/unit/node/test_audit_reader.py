"""Reading the audit trail's files for a collector: across rotations, restarts and torn ends."""

from __future__ import annotations

from pathlib import Path

from node.audit import RotatingFile
from node.audit_reader import BATCH_BYTES, TrailReader

FILES = 4


class Written:
    """Files that rotate after a few messages."""

    def __init__(self, folder: Path, max_bytes: int = 300) -> None:
        self.path = folder / "audit-node.log"
        self.file = RotatingFile(self.path, max_bytes, FILES)
        self.file.open()
        self.number = 0

    def add(self, count: int) -> list[bytes]:
        lines = []
        for _ in range(count):
            line = b"<AuditMessage>%06d</AuditMessage>" % self.number
            self.file.append(line + b"\n")
            lines.append(line)
            self.number += 1
        return lines

    def reader(self) -> TrailReader:
        return TrailReader(self.path, FILES)


def all_of(reader: TrailReader) -> list[bytes]:
    lines = []
    while found := reader.read():
        lines += found
        reader.accept()
    return lines


def test_messages_come_in_order_while_files_rotate(tmp_path: Path) -> None:
    trail, read = Written(tmp_path), []
    reader = trail.reader()
    assert reader.read() == []
    written = []
    for count in (1, 5, 9, 2, 14, 20):
        written += trail.add(count)
        read += all_of(reader)
    assert read == written
    assert (reader.gaps, reader.waiting_bytes()) == (0, 0)


def test_another_process_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    trail = Written(tmp_path)
    first = trail.add(3)
    assert all_of(trail.reader()) == first
    more = trail.add(15)
    reader = trail.reader()
    assert reader.waiting_bytes() == len(b"\n".join(more)) + 1
    assert all_of(reader) == more
    assert reader.gaps == 0


def test_what_was_read_and_not_accepted_is_read_again(tmp_path: Path) -> None:
    trail = Written(tmp_path)
    lines = trail.add(2)
    reader = trail.reader()
    assert reader.read() == lines
    reader.again()
    assert reader.read() == lines
    assert trail.reader().read() == lines


def test_files_that_went_unread_are_a_gap(tmp_path: Path) -> None:
    trail = Written(tmp_path)
    lines = trail.add(1)
    reader = trail.reader()
    assert all_of(reader) == lines
    lost_and_kept = trail.add(60)
    restarted = trail.reader()
    kept = all_of(restarted)
    assert restarted.gaps == 1
    assert kept == lost_and_kept[-len(kept) :] and 0 < len(kept) < 60
    assert all_of(reader)[-len(kept) :] == kept, "the one that ran on has the same, and what it held open"
    assert reader.gaps == 1


def test_a_torn_message_is_left_out(tmp_path: Path) -> None:
    trail = Written(tmp_path, max_bytes=10_000)
    before = trail.add(1)
    with trail.path.open("ab") as file:
        file.write(b"<AuditMessage>tor")
    reader = trail.reader()
    assert all_of(reader) == before, "it may be the beginning of a message"
    again = RotatingFile(trail.path, 10_000, FILES)
    again.open()  # ends the torn line
    again.append(b"<AuditMessage>after</AuditMessage>\n")
    assert all_of(reader) == [b"<AuditMessage>after</AuditMessage>"]
    assert all_of(trail.reader()) == []


def test_more_than_a_batch(tmp_path: Path) -> None:
    trail = Written(tmp_path, max_bytes=10_000_000)
    lines = trail.add(BATCH_BYTES // 20)
    assert all_of(trail.reader()) == lines
