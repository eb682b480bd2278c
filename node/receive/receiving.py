"""One instance on its way to disk: into the journal, or into a file of its own.

In: the data set, piece by piece.  Out: the instance durable, and what became of it.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import xxhash
from sqlalchemy.exc import SQLAlchemyError

from node.errors import OutOfSpace, SpoolError
from node.failpoints import failpoint
from node.receive.index import Incoming
from node.receive.journal import BLOCK_BYTES, SEGMENT_BYTES, Lane, Record, RecordedInstance, Segment
from node.receive.part10 import HEAD_BYTES, encode_header, is_uid, scan_uids
from node.receive.places import path_of

if TYPE_CHECKING:
    from node.receive.intake import Intake

_MAX_IOV = 1000  # IOV_MAX is 1024 on Linux
_CHECK_SPACE_BYTES = 16 * 1024 * 1024
_COPY_BYTES = 1024 * 1024
_EARLY_BYTES = 192 * 1024
_SCAN_BYTES = 8192  # the UIDs lie in the first kilobyte or two


@dataclass(frozen=True)
class Stored:
    """What became of one instance. ``path`` is relative to data_dir.

    ``code`` and ``reason`` are set for quarantined instances. ``series_version`` is set for stored ones.
    ``study_instance_uid`` is set unless it couldn't be read.
    """

    state: Literal["stored", "duplicate", "quarantined"]
    path: str
    series_instance_uid: str | None = None
    series_version: int | None = None
    code: str | None = None
    reason: str | None = None
    study_instance_uid: str | None = None


class Receiving(Protocol):
    """One instance being written. Ends with ``finish`` or ``abandon``. size: of the data set so far."""

    size: int

    def write(self, pieces: Sequence[memoryview]) -> None:
        """Append the next bytes of the data set.

        Raises OutOfSpace or SpoolError; then nothing is left of what was written.
        """

    def finish(self) -> Stored:
        """Make the instance durable, or keep it under quarantine when it can't be filed.

        Identical content under a known SOP Instance UID is a ``duplicate`` and not stored twice; different
        content is quarantined and never replaces what is there.
        Raises OutOfSpace or SpoolError: then nothing of the instance is left.
        """

    def abandon(self) -> None:
        """Leave nothing."""


class JournalReceiving:
    """Writes into the association's lane of the journal. See ``Receiving``.

    What isn't the common case goes on in a file of its own: an instance that outgrows its segment, one that
    can't be filed, and one whose UID is known.
    """

    def __init__(self, intake: Intake, incoming: Incoming, lane: Lane, room: tuple[Segment, int]) -> None:
        self._intake = intake
        self._incoming = incoming
        self._lane = lane
        self._segment, end = room
        self._start = self._at = self._begun = end + BLOCK_BYTES
        self._head = bytearray()
        self._checksum = xxhash.xxh3_64()
        self._elsewhere: FileReceiving | None = None
        self.size = 0
        self._header: list[memoryview] = [memoryview(_header(incoming))]  # written with the first pieces
        self._header_bytes = len(self._header[0])

    def write(self, pieces: Sequence[memoryview]) -> None:
        length = sum(len(piece) for piece in pieces)
        self.size += length
        if self._elsewhere is None and self._at + self._header_bytes + length > SEGMENT_BYTES:
            self._go_elsewhere()
        if self._elsewhere is not None:
            self._elsewhere.write(pieces)
            return
        _keep_head(self._head, pieces)
        self._append(pieces)

    def finish(self) -> Stored:
        instance = self._instance() if self._elsewhere is None else None
        if instance is None:
            return (self._elsewhere or self._go_elsewhere()).finish()
        journal, uid = self._intake.journal, instance.sop_instance_uid
        if not journal.reserve(uid):
            journal.file_now()
            return self._go_elsewhere().finish()
        try:
            with failures():
                path = path_of(instance.series_instance_uid, instance.sop_instance_uid)
                if (self._intake.data_dir / path).exists():
                    journal.release(uid)
                    return self._go_elsewhere().finish()
                self._lane.append(self._segment, self._at - self._start, self._checksum.intdigest(), instance)
        except BaseException:
            journal.release(uid)
            raise
        return Stored(
            "stored",
            path,
            instance.series_instance_uid,
            study_instance_uid=instance.study_instance_uid,
        )

    def abandon(self) -> None:
        if self._elsewhere is not None:
            self._elsewhere.abandon()

    def _instance(self) -> RecordedInstance | None:
        """What is to be recorded; None when the instance must be looked at more closely."""
        incoming = self._incoming
        found = scan_uids(bytes(self._head[:_SCAN_BYTES]), incoming.transfer_syntax_uid)
        if found is None or not all(is_uid(uid) for uid in found.values()):
            return None
        command = (incoming.sop_class_uid, incoming.sop_instance_uid)
        if (found["SOPClassUID"], found["SOPInstanceUID"]) != command:
            return None
        return RecordedInstance(
            sop_class_uid=incoming.sop_class_uid,
            sop_instance_uid=incoming.sop_instance_uid,
            study_instance_uid=found["StudyInstanceUID"],
            series_instance_uid=found["SeriesInstanceUID"],
            transfer_syntax_uid=incoming.transfer_syntax_uid,
            association_id=incoming.association_id,
            calling_ae_title=incoming.calling_ae_title,
            header_bytes=self._header_bytes,
            received_at=self._intake.now(),
        )

    def _append(self, pieces: Sequence[memoryview]) -> None:
        if self._header:
            pieces = [*self._header, *pieces]
            self._header.clear()
        with failures():
            self._at += _write_all(self._segment.file, pieces, self._at)
            self._begun = _begin_writeback(self._segment.file, self._begun, self._at)
        for piece in pieces:
            self._checksum.update(piece)

    def _go_elsewhere(self) -> FileReceiving:
        """Go on in a file; what was written to the segment so far counts as never written."""
        self._elsewhere = FileReceiving(self._intake, self._incoming)
        with failures():
            for at in range(self._start + self._header_bytes, self._at, _COPY_BYTES):
                piece = os.pread(self._segment.file, min(_COPY_BYTES, self._at - at), at)
                self._elsewhere.write([memoryview(piece)])
        return self._elsewhere


class FileReceiving:
    """Writes a temporary file of its own, and files it in ``finish``. See ``Receiving``."""

    def __init__(self, intake: Intake, incoming: Incoming) -> None:
        self._intake = intake
        self._incoming = incoming
        self._head = bytearray()
        self._header = _header(incoming)
        self._at = self._begun = 0
        self._path = intake.incoming / f"{uuid.uuid4().hex}.part"
        self._unchecked_bytes = 0
        self.size = 0  # of the data set so far
        with failures():
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        self._write([memoryview(self._header)])

    def write(self, pieces: Sequence[memoryview]) -> None:
        _keep_head(self._head, pieces)
        length = sum(len(piece) for piece in pieces)
        self.size += length
        self._unchecked_bytes += length
        if self._unchecked_bytes > _CHECK_SPACE_BYTES:
            self._unchecked_bytes = 0
            try:
                self._intake.check_space()
            except OutOfSpace:
                self.abandon()
                raise
        self._write(pieces)

    def finish(self) -> Stored:
        try:
            with failures():
                os.fsync(self._file)
            self._close()
            failpoint("spool.received")
            return self._intake.keep(self._incoming, self._path, len(self._header), bytes(self._head))
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        self._close()
        self._path.unlink(missing_ok=True)

    def _write(self, pieces: Sequence[memoryview]) -> None:
        try:
            with failures():
                self._at += _write_all(self._file, pieces, self._at)
                self._begun = _begin_writeback(self._file, self._begun, self._at)
        except SpoolError:
            self.abandon()
            raise

    def _close(self) -> None:
        if self._file >= 0:
            descriptor, self._file = self._file, -1
            os.close(descriptor)


def _keep_head(head: bytearray, pieces: Sequence[memoryview]) -> None:
    """Add to ``head`` what it lacks of a data set's first HEAD_BYTES."""
    for piece in pieces:
        if len(head) >= HEAD_BYTES:
            return
        head += piece[: HEAD_BYTES - len(head)]


def _header(incoming: Incoming) -> bytes:
    return encode_header(
        sop_class_uid=incoming.sop_class_uid,
        sop_instance_uid=incoming.sop_instance_uid,
        transfer_syntax_uid=incoming.transfer_syntax_uid,
        calling_ae_title=incoming.calling_ae_title,
    )


def _write_all(file: int, pieces: Sequence[memoryview], at: int) -> int:
    """Write; returns how many bytes."""
    start = at
    for first in range(0, len(pieces), _MAX_IOV):
        some = pieces[first : first + _MAX_IOV]
        left = sum(len(piece) for piece in some)
        written = os.pwritev(file, some, at)
        if written < left:  # a nearly full disk, or a signal
            rest = memoryview(b"".join(some))[written:]
            while rest:
                count = os.pwrite(file, rest, at + left - len(rest))
                rest = rest[count:]
        at += left
    return at - start


def _begin_writeback(file: int, start: int, end: int) -> int:
    """Start to make durable what lies between, once it is much; returns where it is to go on from.

    The disk then works while the next bytes come off the wire, and the sync at an instance's end waits for
    the last of them only. On Linux this advice begins writeback; elsewhere it does no harm.
    """
    if end - start < _EARLY_BYTES:
        return start
    os.posix_fadvise(file, start, end - start, os.POSIX_FADV_DONTNEED)
    return end


def copy_content(record: Record, path: Path) -> None:
    """Make a file of a record's content."""
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    try:
        offset, left = record.offset, record.length
        while left:
            count = _copy(record.file, target, offset, left)
            if count == 0:
                raise OSError(errno.EIO, "the segment is shorter than its record")
            offset, left = offset + count, left - count
    finally:
        os.close(target)


def _copy(source: int, target: int, offset: int, count: int) -> int:
    """Copy bytes inside of the kernel, or through us where the file system can't; returns how many."""
    try:
        return os.copy_file_range(source, target, count, offset_src=offset)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EXDEV):
            raise
    return os.write(target, os.pread(source, min(count, _COPY_BYTES), offset))


def fsync_file(path: Path | None) -> None:
    """Make a closed file's content durable."""
    if path is not None:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)


@contextmanager
def failures() -> Iterator[None]:
    """Disk and database errors as SpoolError or OutOfSpace."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpace(
                f"the disk is full: {error.strerror}", hint="free disk space under data_dir"
            ) from error
        raise SpoolError(
            f"cannot write to the spool: {error.strerror}", hint="check the disk under data_dir"
        ) from error
    except SQLAlchemyError as error:
        raise SpoolError(
            f"cannot write to the database: {type(error).__name__}", hint="check the disk under data_dir"
        ) from error
