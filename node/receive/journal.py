"""The journal: instances made durable by one write to disk, filed a moment later.

In: an association's instances, as they come.  Out: each durable in a segment, found again after a crash, and
handed to ``file`` in batches, in the order of each association.

To make a new file, its name and its row durable takes three writes to the disk and the file system's own
journal. A segment is a file that was written over its full length once; writing into it again is one write
that changes no metadata. So an instance is acknowledged once it is in a segment, and becomes a file and a row
afterwards (``Spool._file_records``); only then may its place be used again.

A segment:  block 0: magic, generation.  Then records, each at a multiple of BLOCK_BYTES: one block of header
(what ``Record`` says, as JSON, with checksums of itself and of the content), and the content: a Part 10 file.
A record counts only when its generation is the segment's and both checksums are right: what power loss tore
was never acknowledged. A segment is used again under the next generation, which makes its old records void.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog
import xxhash

from node.failpoints import failpoint
from node.receive.index import RECOVERED

log = structlog.get_logger("node.receive.journal")

SEGMENT_BYTES = 16 * 1024 * 1024
BLOCK_BYTES = 4096
#: a segment with less room than this is not begun another instance in
ROOM_BYTES = 2 * 1024 * 1024
#: an instance is filed at the latest so long after it was acknowledged, while its association goes on
MAX_LAG_SECONDS = 0.5
#: … and at once when fewer than this share of the segments is free
LOW_SHARE = 0.125
BATCH = 64
#: a sender waits so long for a segment to be free
MAX_WAIT_SECONDS = 5.0
#: when disk or database fails, filing is tried again after so long
RETRY_SECONDS = 2.0

_SEGMENT = struct.Struct("<8sQQ")  # magic, generation, checksum of both
_RECORD = struct.Struct("<8sQQQI")  # magic, generation, content's length and checksum, length of the JSON
_MAGIC, _RECORD_MAGIC = b"PACSJRN1", b"PACSREC1"


@dataclass(frozen=True)
class RecordedInstance:
    """What a record says beside the content. header_bytes: of the Part 10 file before the data set."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    association_id: str
    calling_ae_title: str
    header_bytes: int
    received_at: float


@dataclass(frozen=True)
class Record:
    """One instance in a segment: where its content lies, and what it is."""

    file: int
    offset: int
    length: int
    instance: RecordedInstance


@dataclass
class Segment:
    """One file. ``end``: where the next record goes; ``records``: those that aren't filed yet."""

    file: int
    generation: int
    end: int = BLOCK_BYTES
    records: deque[Record] = field(default_factory=deque)
    oldest_at: float = 0.0


class Lane:
    """The segments of one association, in order; one thread writes at a time."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.segments: deque[Segment] = deque()
        self.ended = False

    def room(self) -> tuple[Segment, int] | None:
        """Where the next record may go, or None when all segments are taken."""
        if not self.segments or self.segments[-1].end + ROOM_BYTES > SEGMENT_BYTES:
            segment = self._journal.take(self)
            if segment is None:
                return None
        segment = self.segments[-1]
        return segment, segment.end

    def append(self, segment: Segment, length: int, checksum: int, instance: RecordedInstance) -> None:
        """Make the record whose content was written at ``segment.end`` + BLOCK_BYTES durable."""
        header = _encode_record(segment.generation, length, checksum, instance)
        failpoint("journal.append")
        os.pwrite(segment.file, header, segment.end)
        os.fdatasync(segment.file)
        failpoint("journal.appended")
        record = Record(segment.file, segment.end + BLOCK_BYTES, length, instance)
        used = BLOCK_BYTES + -(-length // BLOCK_BYTES) * BLOCK_BYTES
        self._journal.appended(segment, record, used)


class Journal:
    """Owns the segments below one folder, and the thread that files their records."""

    def __init__(self, folder: Path, total_bytes: int, file: Callable[[Sequence[Record]], None]) -> None:
        """``file``: makes files and rows of records, durably; called by one thread at a time. What it raises
        is logged, and it is called again with the same records later."""
        self._folder = folder
        self._wanted = total_bytes // SEGMENT_BYTES
        self._file = file
        self._free: list[Segment] = []
        self._lanes: list[Lane] = []
        self._pending: set[str] = set()
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)
        self._filing = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def start(self) -> None:
        """File what the last process left, make the segments (once, some seconds), then file in a thread."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._recover()
        while len(self._free) < self._wanted and self._make_segment():
            pass
        self._thread.start()

    def stop(self) -> None:
        """File everything, then stop, if it was started at all. No association may be running."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        with self._lock:
            lanes = list(self._lanes)
        for lane in lanes:
            self.end(lane)
        for segment in self._free:
            os.close(segment.file)
        self._free.clear()

    def lane(self) -> Lane:
        """A lane for a new association."""
        lane = Lane(self)
        with self._lock:
            self._lanes.append(lane)
        return lane

    def end(self, lane: Lane) -> None:
        """The association has ended: file all of its records before this returns."""
        lane.ended = True
        while not self._file_lane(lane):
            if self._stopping.wait(RETRY_SECONDS):
                return  # they are filed at the next start
        with self._lock:
            if lane in self._lanes:
                self._lanes.remove(lane)

    def reserve(self, sop_instance_uid: str) -> bool:
        """Claim a UID for a record; False when one with it isn't filed yet."""
        with self._lock:
            if sop_instance_uid in self._pending:
                return False
            self._pending.add(sop_instance_uid)
            return True

    def release(self, sop_instance_uid: str) -> None:
        """Give a claimed UID back: its record wasn't made."""
        with self._lock:
            self._pending.discard(sop_instance_uid)

    def file_now(self) -> bool:
        """File every record there is; False when that failed for some."""
        with self._lock:
            lanes = list(self._lanes)
        filed = [self._file_lane(lane) for lane in lanes]
        return all(filed)

    def take(self, lane: Lane) -> Segment | None:
        """A free segment, put at the lane's end; None when there is none and none is about to be free.

        A sender that is faster than the disk waits here for its own instances to be filed, which takes less
        time than to make files of the next ones one by one.
        """
        with self._freed:
            while not self._free:
                self._wake.set()
                if not any(len(other.segments) > 1 for other in self._lanes):
                    return None
                if not self._freed.wait(MAX_WAIT_SECONDS):
                    return None
            segment = self._free.pop()
            lane.segments.append(segment)
            low = len(self._free) < self._wanted * LOW_SHARE
        if low:
            self._wake.set()
        return segment

    def appended(self, segment: Segment, record: Record, used: int) -> None:
        with self._lock:
            if not segment.records:
                segment.oldest_at = time.monotonic()
            segment.records.append(record)
            segment.end += used

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(MAX_LAG_SECONDS / 2)
            self._wake.clear()
            with self._lock:
                low = len(self._free) < self._wanted * LOW_SHARE
                due = time.monotonic() - MAX_LAG_SECONDS
                lanes = [
                    lane
                    for lane in self._lanes
                    if any(s.records and (low or s.oldest_at < due) for s in lane.segments)
                ]
            for lane in lanes:
                if not self._file_lane(lane):
                    self._stopping.wait(RETRY_SECONDS)

    def _file_lane(self, lane: Lane) -> bool:
        """File what the lane has; False when that failed."""
        with self._filing:
            while True:
                with self._lock:
                    batch = [record for segment in lane.segments for record in segment.records][:BATCH]
                if not batch:
                    break
                try:
                    self._file(batch)
                except Exception as error:  # a worker's boundary: what is acknowledged is tried again
                    log.error(
                        "journal_not_filed", error=type(error).__name__, records=len(batch), exc_info=True
                    )
                    return False
                with self._lock:
                    self._pending.difference_update(record.instance.sop_instance_uid for record in batch)
                    left = len(batch)
                    for segment in lane.segments:
                        while left and segment.records:
                            segment.records.popleft()
                            left -= 1
                        segment.oldest_at = time.monotonic()
            self._recycle(lane)
        return True

    def _recycle(self, lane: Lane) -> None:
        """Free the lane's segments that are filed and not written to any more."""
        while True:
            with self._lock:
                current = 0 if lane.ended else 1
                if len(lane.segments) <= current or lane.segments[0].records:
                    return
                segment = lane.segments.popleft()
            failpoint("journal.filed")
            _begin_generation(segment)
            with self._freed:
                self._free.append(segment)
                self._freed.notify()

    def _make_segment(self) -> bool:
        path = self._folder / f"{len(self._free):04d}.segment"
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            zeros = bytes(1024 * 1024)
            for offset in range(os.fstat(file).st_size, SEGMENT_BYTES, len(zeros)):
                os.pwrite(file, zeros, offset)
            os.fsync(file)
            segment = Segment(file, int.from_bytes(os.pread(file, 8, 8), "little"))
            _begin_generation(segment)
        except OSError as error:
            log.warning("journal_segment_not_made", error=error.strerror, hint="receiving goes on without it")
            return False
        self._free.append(segment)
        return True

    def _recover(self) -> None:
        """File the records of every segment there is; their associations are gone."""
        for path in sorted(self._folder.glob("*.segment")):
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                generation = _read_generation(file)
                records = (
                    []
                    if generation is None
                    else [
                        replace(record, instance=replace(record.instance, association_id=RECOVERED))
                        for record in _read_records(file, generation)
                    ]
                )
                for start in range(0, len(records), BATCH):
                    self._file(records[start : start + BATCH])
                    failpoint("journal.recovered")
                if generation is not None and records:
                    log.warning("journal_recovered", segment=path.name, instances=len(records))
                    _begin_generation(Segment(file, generation))
            finally:
                os.close(file)


def _begin_generation(segment: Segment) -> None:
    """Void the segment's records, durably."""
    segment.generation += 1
    segment.end = BLOCK_BYTES
    head = _MAGIC + segment.generation.to_bytes(8, "little")
    os.pwrite(segment.file, _SEGMENT.pack(_MAGIC, segment.generation, xxhash.xxh3_64_intdigest(head)), 0)
    os.fdatasync(segment.file)


def _read_generation(file: int) -> int | None:
    head = os.pread(file, _SEGMENT.size, 0)
    if len(head) < _SEGMENT.size:
        return None
    magic, generation, checksum = _SEGMENT.unpack(head)
    return generation if magic == _MAGIC and checksum == xxhash.xxh3_64_intdigest(head[:16]) else None


def _encode_record(generation: int, length: int, checksum: int, instance: RecordedInstance) -> bytes:
    text = json.dumps(instance.__dict__).encode()
    head = _RECORD.pack(_RECORD_MAGIC, generation, length, checksum, len(text)) + text
    return head + xxhash.xxh3_64_digest(head)


def _read_records(file: int, generation: int) -> Iterator[Record]:
    """The whole records of a generation, in order; a damaged one hides none of the others."""
    offset = 0
    while offset + 2 * BLOCK_BYTES <= SEGMENT_BYTES:
        offset += BLOCK_BYTES
        block = os.pread(file, BLOCK_BYTES, offset)
        if len(block) < BLOCK_BYTES:
            return
        magic, its_generation, length, checksum, text_length = _RECORD.unpack_from(block)
        end = _RECORD.size + text_length
        if magic != _RECORD_MAGIC or its_generation != generation or end + 8 > BLOCK_BYTES:
            continue
        if block[end : end + 8] != xxhash.xxh3_64_digest(block[:end]):
            continue
        content = os.pread(file, length, offset + BLOCK_BYTES)
        if len(content) == length and xxhash.xxh3_64_intdigest(content) == checksum:
            instance = RecordedInstance(**json.loads(block[_RECORD.size : end]))
            yield Record(file, offset + BLOCK_BYTES, length, instance)
            offset += -(-length // BLOCK_BYTES) * BLOCK_BYTES
