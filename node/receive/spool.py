"""The spool: received instances, durably on disk and in the database.

In: one C-STORE request's bytes as they came off the wire. Out: a file that survives ``kill -9`` and power
loss, a row in ``instances``, and a series version that it belongs to; or its place in quarantine and why.

    data_dir/spool/incoming/<random>.part                        being written
    data_dir/spool/series/<hash of series>/<hash of SOP>.dcm     stored
    data_dir/spool/quarantine/<hash of SOP and content>.dcm      kept, not used

Order of one store (DESIGN I1): temporary file, fsync, rename, fsync of the folder, commit. A crash leaves a
temporary file or a file without a row, which ``reconcile`` mends at start-up; never a row without its file.
No path contains text that a peer chose: only hashes of it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import structlog
from pydicom.errors import InvalidDicomError
from sqlalchemy import Connection, Engine, RowMapping, delete, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from node.database import instances, write_transaction
from node.errors import InstanceRejected, OutOfSpace, SpoolError
from node.receive.part10 import FilingUids, encode_header, printable, read_filing_uids, read_part10

log = structlog.get_logger("node.receive.spool")

#: association_id of an instance that was indexed from its file at start-up.
RECOVERED = "recovered"


@dataclass(frozen=True)
class Incoming:
    """One C-STORE request: the command's UIDs, the negotiated transfer syntax, the data set as encoded."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    dataset: bytes
    association_id: str
    calling_ae_title: str


@dataclass(frozen=True)
class Filing:
    """What the series tracker learns of one instance."""

    study_instance_uid: str
    series_instance_uid: str
    association_id: str
    calling_ae_title: str
    received_at: float


class SeriesFiling(Protocol):
    """The part of the series tracker that the spool calls, inside of its transaction."""

    def file_instance(self, connection: Connection, filing: Filing) -> int:
        """Count one new instance; returns the series version that it belongs to."""

    def seen_again(self, connection: Connection, filing: Filing) -> None:
        """Note that an instance that is already stored was sent again."""

    def committed(self) -> None:
        """Called after the commit of a transaction with ``file_instance``."""


@dataclass(frozen=True)
class Stored:
    """What became of one instance. ``path`` is relative to data_dir.

    ``code`` and ``reason`` are set for quarantined instances. ``series_version`` is set for stored ones.
    """

    state: Literal["stored", "duplicate", "quarantined"]
    path: str
    sha256: str
    series_instance_uid: str | None = None
    series_version: int | None = None
    code: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Reconciled:
    """What start-up found: counts of files removed, files indexed, rows whose file is gone, foreign files."""

    temporary_removed: int
    indexed: int
    missing: int
    foreign: int


class Spool:
    """Stores instances; safe to call from many threads of one process."""

    def __init__(
        self,
        data_dir: Path,
        engine: Engine,
        series: SeriesFiling,
        *,
        free_disk_floor_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._data_dir = data_dir
        self._engine = engine
        self._series = series
        self._floor = free_disk_floor_bytes
        self._clock = clock
        self._commit_lock = threading.Lock()
        root = data_dir / "spool"
        self._incoming = root / "incoming"
        self._stored = root / "series"
        self._quarantined = root / "quarantine"
        for folder in (self._incoming, self._stored, self._quarantined):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (data_dir, root):
            _fsync_folder(folder)

    def store(self, incoming: Incoming) -> Stored:
        """Make one instance durable, or keep it under quarantine when it can't be filed.

        Identical content under a known SOP Instance UID is a ``duplicate`` and not stored twice; different
        content is quarantined and never replaces what is there.
        Raises OutOfSpace below the free-space floor or on a full disk, SpoolError on other I/O failures:
        then nothing of the instance is left.
        """
        free = shutil.disk_usage(self._data_dir).free - len(incoming.dataset)
        if free < self._floor:
            raise OutOfSpace(
                f"{free} bytes would be free, the floor is {self._floor}",
                hint="free disk space under data_dir or lower receive.free_disk_floor_bytes",
            )
        sha256 = hashlib.sha256(incoming.dataset).hexdigest()
        try:
            uids = _check(incoming)
        except InstanceRejected as rejection:
            return self._quarantine(incoming, sha256, rejection)
        try:
            known = self._known(uids, sha256, incoming)
            if known is not None:
                return known
            temporary = self._write(incoming)
            return self._file(temporary, incoming, sha256, uids)
        except InstanceRejected as rejection:
            return self._quarantine(incoming, sha256, rejection)

    def reconcile(self) -> Reconciled:
        """Bring disk and database together after a crash; call before anything is received.

        Temporary files were never acknowledged and go. A whole file without a row is indexed: it was
        probably never acknowledged either, but it must not be lost if the database is the older of the two.
        A row whose file is gone or cut short is quarantined with code ``file_missing`` and logged.
        """
        removed = 0
        for path in self._incoming.iterdir():
            path.unlink()
            removed += 1
        with self._engine.connect() as connection:
            rows = connection.execute(select(instances.c.path, instances.c.bytes, instances.c.reason_code))
            sizes: dict[str, int] = {}
            flagged: set[str] = set()  # by an earlier start-up; what is left of their files is no instance
            for row in rows:
                if row.reason_code == "file_missing":
                    flagged.add(row.path)
                else:
                    sizes[row.path] = row.bytes
        indexed = foreign = 0
        on_disk: dict[str, int] = {}
        for root in (self._stored, self._quarantined):
            for path in sorted(root.rglob("*.dcm")):
                relative = str(path.relative_to(self._data_dir))
                on_disk[relative] = path.stat().st_size
                if relative not in sizes and relative not in flagged:
                    if self._index(path):
                        indexed += 1
                    else:
                        foreign += 1
        missing = [path for path, size in sizes.items() if on_disk.get(path) != size]
        for relative in missing:
            self._mark_missing(relative)
        result = Reconciled(removed, indexed, len(missing), foreign)
        log.info(
            "spool_reconciled",
            temporary_removed=removed,
            indexed=indexed,
            missing=len(missing),
            foreign=foreign,
            instances=len(sizes),
        )
        return result

    def _known(self, uids: FilingUids, sha256: str, incoming: Incoming) -> Stored | None:
        with _failures(), self._engine.connect() as connection:
            if self._find(connection, uids) is None:
                return None
        with _failures(), self._commit_lock, write_transaction(self._engine) as connection:
            return self._acknowledge_known(connection, uids, sha256, incoming)

    def _find(self, connection: Connection, uids: FilingUids) -> RowMapping | None:
        row = connection.execute(
            select(instances).where(
                instances.c.sop_instance_uid == uids.sop_instance_uid, instances.c.state == "stored"
            )
        ).first()
        return None if row is None else row._mapping

    def _acknowledge_known(
        self, connection: Connection, uids: FilingUids, sha256: str, incoming: Incoming
    ) -> Stored | None:
        """The duplicate that this is, or None. Raises InstanceRejected when the content differs."""
        known = self._find(connection, uids)
        if known is None:
            return None
        if known["sha256"] != sha256 or known["transfer_syntax_uid"] != incoming.transfer_syntax_uid:
            raise InstanceRejected(
                "the SOP Instance UID is already stored with different content "
                f"(sha256 {known['sha256'][:12]}…, transfer syntax {known['transfer_syntax_uid']})",
                code="duplicate_different",
                hint="an instance must not change under its UID (PS3.3 C.12.1.1.1); ask the sender",
            )
        self._series.seen_again(connection, self._filing(incoming, uids))
        return Stored(
            "duplicate", known["path"], sha256, known["series_instance_uid"], known["series_version"]
        )

    def _file(self, temporary: Path, incoming: Incoming, sha256: str, uids: FilingUids) -> Stored:
        """Move a complete, fsynced file to its place and commit its row; the file goes if that fails."""
        folder = self._stored / _hash(uids.series_instance_uid)
        final = folder / f"{_hash(uids.sop_instance_uid)}.dcm"
        relative = str(final.relative_to(self._data_dir))
        filing = self._filing(incoming, uids)
        # A file that is being indexed stays where it is, whatever happens; a new one leaves nothing behind.
        is_new = temporary.parent == self._incoming
        leftovers = [temporary] if is_new else []
        try:
            with _failures(), self._commit_lock, write_transaction(self._engine) as connection:
                known = self._acknowledge_known(connection, uids, sha256, incoming)
                if known is not None:
                    temporary.unlink()
                    return known
                if is_new:  # from here on, and not before, what lies there is ours to remove
                    leftovers.append(final)
                _move(temporary, final)
                version = self._series.file_instance(connection, filing)
                self._insert(
                    connection, incoming, relative, sha256, uids=uids, version=version, at=filing.received_at
                )
        except BaseException:
            for path in leftovers:
                path.unlink(missing_ok=True)
            raise
        self._series.committed()
        return Stored("stored", relative, sha256, uids.series_instance_uid, version)

    def _quarantine(self, incoming: Incoming, sha256: str, rejection: InstanceRejected) -> Stored:
        """Keep an instance that can't be filed; the same one sent again is kept once."""
        final = self._quarantined / f"{_hash(incoming.sop_instance_uid + ' ' + sha256)}.dcm"
        relative = str(final.relative_to(self._data_dir))
        result = Stored("quarantined", relative, sha256, code=rejection.code, reason=str(rejection))
        with _failures(), self._engine.connect() as connection:
            if self._has_row(connection, relative):
                return result
        temporary = self._write(incoming)
        try:
            with _failures(), self._commit_lock, write_transaction(self._engine) as connection:
                if self._has_row(connection, relative):
                    return result
                _move(temporary, final)
                self._insert(connection, incoming, relative, sha256, rejection=rejection, at=self._clock())
        finally:
            temporary.unlink(missing_ok=True)
        log.warning(
            "instance_quarantined",
            code=rejection.code,
            reason=str(rejection),
            path=relative,
            association_id=incoming.association_id,
        )
        return result

    def _write(self, incoming: Incoming) -> Path:
        """A complete, fsynced temporary file."""
        header = encode_header(
            sop_class_uid=incoming.sop_class_uid,
            sop_instance_uid=incoming.sop_instance_uid,
            transfer_syntax_uid=incoming.transfer_syntax_uid,
            calling_ae_title=incoming.calling_ae_title,
        )
        temporary = self._incoming / f"{uuid.uuid4().hex}.part"
        try:
            with _failures(), temporary.open("xb", buffering=0) as file:
                for chunk in (header, incoming.dataset):
                    remaining = memoryview(chunk)
                    while remaining:
                        remaining = remaining[file.write(remaining) :]
                os.fsync(file.fileno())
        except SpoolError:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _insert(
        self,
        connection: Connection,
        incoming: Incoming,
        relative: str,
        sha256: str,
        *,
        at: float,
        uids: FilingUids | None = None,
        version: int | None = None,
        rejection: InstanceRejected | None = None,
    ) -> None:
        connection.execute(
            delete(instances).where(instances.c.path == relative, instances.c.reason_code == "file_missing")
        )
        connection.execute(
            insert(instances).values(
                sop_instance_uid=printable(incoming.sop_instance_uid),
                sop_class_uid=printable(incoming.sop_class_uid),
                transfer_syntax_uid=incoming.transfer_syntax_uid,
                study_instance_uid=uids.study_instance_uid if uids else None,
                series_instance_uid=uids.series_instance_uid if uids else None,
                series_version=version,
                path=relative,
                bytes=(self._data_dir / relative).stat().st_size,
                sha256=sha256,
                association_id=incoming.association_id,
                calling_ae_title=printable(incoming.calling_ae_title),
                state="quarantined" if rejection else "stored",
                reason_code=rejection.code if rejection else None,
                reason=str(rejection) if rejection else None,
                received_at=at,
            )
        )

    def _index(self, path: Path) -> bool:
        """Make a row for a file that has none. False when the file isn't one of the spool's."""
        try:
            parts = read_part10(path)
        except (InvalidDicomError, OSError, AttributeError, EOFError, ValueError) as error:
            log.error("spool_file_unreadable", path=str(path.name), error=type(error).__name__)
            return False
        incoming = Incoming(
            parts.sop_class_uid,
            parts.sop_instance_uid,
            parts.transfer_syntax_uid,
            parts.dataset,
            RECOVERED,
            parts.calling_ae_title,
        )
        sha256 = hashlib.sha256(incoming.dataset).hexdigest()
        try:
            uids = _check(incoming)
            stored = self._file(path, incoming, sha256, uids)
        except InstanceRejected as rejection:
            stored = self._quarantine(incoming, sha256, rejection)
            if self._data_dir / stored.path != path:
                path.unlink(missing_ok=True)
        log.warning("spool_file_indexed", path=stored.path, state=stored.state)
        return True

    def _mark_missing(self, relative: str) -> None:
        log.error(
            "instance_file_missing",
            path=relative,
            hint="the disk lost an acknowledged instance: send it again, and check the disk",
        )
        with write_transaction(self._engine) as connection:
            connection.execute(
                update(instances)
                .where(instances.c.path == relative)
                .values(
                    state="quarantined",
                    reason_code="file_missing",
                    reason="the file was gone or cut short at start-up",
                )
            )

    def _has_row(self, connection: Connection, relative: str) -> bool:
        found = connection.execute(select(instances.c.id).where(instances.c.path == relative)).first()
        return found is not None

    def _filing(self, incoming: Incoming, uids: FilingUids) -> Filing:
        return Filing(
            uids.study_instance_uid,
            uids.series_instance_uid,
            incoming.association_id,
            incoming.calling_ae_title,
            self._clock(),
        )


def _check(incoming: Incoming) -> FilingUids:
    """The data set's UIDs, which the command's must equal (PS3.4 B.2.2: an SCU sends what it announced)."""
    uids = read_filing_uids(incoming.dataset, incoming.transfer_syntax_uid)
    for name, command, dataset in (
        ("SOP Instance UID", incoming.sop_instance_uid, uids.sop_instance_uid),
        ("SOP Class UID", incoming.sop_class_uid, uids.sop_class_uid),
    ):
        if command != dataset:
            raise InstanceRejected(
                f"the {name} of the C-STORE command is not the data set's", code="uid_mismatch"
            )
    return uids


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogateescape")).hexdigest()[:32]


def _move(temporary: Path, final: Path) -> None:
    """Rename and make the rename durable; a new folder's own entry too."""
    folder = final.parent
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        _fsync_folder(folder.parent)
    temporary.replace(final)
    _fsync_folder(folder)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _failures() -> Iterator[None]:
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
