"""The index of the spool: instances that are on disk become rows, many in one transaction.

In: a complete, fsynced temporary file and what is known of it.  Out: the file under its name, the name
fsynced, and its row committed with its series version; or the row of the instance that has its UID already.

Threads that store at the same time share a transaction: one of them commits for all that wait (group commit).
Everything is durable when ``file`` returns.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, bindparam, delete, func, insert, literal_column, select
from sqlalchemy.exc import SQLAlchemyError

from node.database import Prepared, instances, series, write_transaction
from node.failpoints import failpoint
from node.files import fsync_folder
from node.postgres import hold_series
from node.receive.part10 import FilingUids, printable

#: association_id of an instance that was indexed from its file at start-up
RECOVERED = "recovered"


@dataclass(frozen=True)
class Incoming:
    """One C-STORE request: the command's UIDs, the negotiated transfer syntax, and who sent it."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
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
    """The part of the series tracker that is called inside of the index's transactions."""

    def file_instance(self, connection: Connection, filing: Filing) -> int:
        """Count one new instance; returns the series version that it belongs to."""

    def seen_again(self, connection: Connection, filing: Filing) -> None:
        """Note that an instance that is already stored was sent again."""

    def committed(self) -> None:
        """Called after the commit of a transaction with ``file_instance``."""

    def rolled_back(self) -> None:
        """Called after the rollback of one: nothing of it happened."""


@dataclass
class Entry:
    """One instance to be filed, and what became of it.

    temporary: the file, complete and fsynced, or None when it lies under its name already.
    path: its name, relative to data_dir.  rejection: (code, reason) of an instance for the quarantine, and
    study_instance_uid: of its study, where that can be told.
    version: its series version, once it is stored.
    known: the row of the instance stored under its UID, or under its name in quarantine.
    """

    incoming: Incoming
    path: str
    temporary: Path | None
    size: int
    received_at: float
    uids: FilingUids | None = None
    rejection: tuple[str, str] | None = None
    study_instance_uid: str | None = None
    version: int | None = None
    known: Mapping[str, Any] | None = None
    done: bool = False
    error: BaseException | None = None

    def filing(self) -> Filing:
        assert self.uids is not None  # noqa: S101 - only instances with UIDs are filed in a series
        return Filing(
            self.uids.study_instance_uid,
            self.uids.series_instance_uid,
            self.incoming.association_id,
            self.incoming.calling_ae_title,
            self.received_at,
        )


class InstanceIndex:
    """Owns the ``instances`` table and the names of files; safe to call from many threads."""

    def __init__(self, data_dir: Path, engine: Engine, series: SeriesFiling) -> None:
        self._data_dir = data_dir
        self._engine = engine
        self._series = series
        self._waiting: list[Entry] = []
        self._waiting_lock = threading.Lock()
        self._commit_lock = threading.Lock()

        under_uid = (
            instances.c.sop_instance_uid == bindparam("uid"),
            instances.c.state == literal_column("'stored'"),
        )
        self._find_stored = Prepared(select(instances).where(*under_uid), engine)
        columns = [column.name for column in instances.c if column.name != "id"]
        self._insert = Prepared(insert(instances), engine, columns=columns)
        self._forget_missing = Prepared(
            delete(instances).where(
                instances.c.path == bindparam("file"),
                instances.c.reason_code == literal_column("'file_missing'"),
            ),
            engine,
        )

    def file(self, entry: Entry) -> None:
        """Name the file and commit its row, or fill ``entry.known`` and leave the file where it is.

        Raises OSError or SQLAlchemyError; then there is no row, and the file is where it was.
        """
        with self._waiting_lock:
            self._waiting.append(entry)
        with self._commit_lock:
            if not entry.done:
                with self._waiting_lock:
                    batch, self._waiting = self._waiting, []
                self._commit(batch)
        if entry.error is not None:
            raise entry.error

    def file_all(self, entries: Sequence[Entry]) -> None:
        """``file`` for several, in one transaction. Raises the first entry's error."""
        with self._commit_lock:
            self._commit(entries)
        for entry in entries:
            if entry.error is not None:
                raise entry.error

    def seen_again(self, entry: Entry) -> None:
        """Commit that a stored instance was sent again."""
        filing = entry.filing()
        with self._commit_lock, write_transaction(self._engine) as connection:
            hold_series(connection, [filing.series_instance_uid])
            self._series.seen_again(connection, filing)

    def _commit(self, batch: Sequence[Entry]) -> None:
        try:
            self._try(batch)
        except (OSError, SQLAlchemyError) as error:
            if len(batch) == 1:
                batch[0].error = error
            else:  # find out whose fault it is: the others must not suffer
                for entry in batch:
                    self._commit([entry])
        for entry in batch:
            entry.done = True

    def _try(self, batch: Sequence[Entry]) -> None:
        moved: list[Entry] = []
        try:
            with write_transaction(self._engine) as connection:
                hold_series(connection, [entry.uids.series_instance_uid for entry in batch if entry.uids])
                folders: set[Path] = set()
                for entry in batch:
                    if entry.rejection is None:
                        entry.known = self._stored(connection, entry.incoming.sop_instance_uid)
                    else:
                        entry.known = self._at(connection, entry.path)
                    if entry.known is not None:
                        continue
                    if entry.rejection is None:
                        entry.version = self._series.file_instance(connection, entry.filing())
                    if entry.temporary is not None:
                        moved.append(entry)
                        folders |= self._move(entry.temporary, self._data_dir / entry.path)
                    self._write_row(connection, entry)
                for folder in sorted(folders):  # a new folder after the one that it is in
                    fsync_folder(folder)
        except BaseException:
            self._series.rolled_back()
            for entry in moved:
                final = self._data_dir / entry.path
                if entry.temporary is not None and final.exists():
                    final.replace(entry.temporary)
            raise
        self._series.committed()

    def _move(self, temporary: Path, final: Path) -> set[Path]:
        """Rename; returns the folders to be fsynced before the name is durable."""
        folder = final.parent
        changed = {folder}
        if not folder.is_dir():
            folder.mkdir(exist_ok=True)
            changed.add(folder.parent)
        temporary.replace(final)
        failpoint("index.moved")
        return changed

    def _stored(self, connection: Connection, sop_instance_uid: str) -> dict[str, Any] | None:
        row = self._find_stored.execute(connection, {"uid": sop_instance_uid}).first()
        return None if row is None else dict(row._mapping)

    def purged(self, sop_instance_uids: Sequence[str]) -> dict[str, float]:
        """Of these instances, those that were purged, and when."""
        query = (
            select(instances.c.sop_instance_uid, func.max(series.c.purged_at))
            .join(
                series,
                (series.c.series_instance_uid == instances.c.series_instance_uid)
                & (series.c.version == instances.c.series_version),
            )
            .where(instances.c.sop_instance_uid.in_(sop_instance_uids), series.c.purged_at.is_not(None))
            .group_by(instances.c.sop_instance_uid)
        )
        with self._engine.connect() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def _at(self, connection: Connection, path: str) -> dict[str, Any] | None:
        row = connection.execute(select(instances).where(instances.c.path == path)).first()
        return None if row is None else dict(row._mapping)

    def _write_row(self, connection: Connection, entry: Entry) -> None:
        incoming, uids = entry.incoming, entry.uids
        self._forget_missing.execute(connection, {"file": entry.path})
        code, reason = entry.rejection or (None, None)
        self._insert.execute(
            connection,
            {
                "sop_instance_uid": printable(incoming.sop_instance_uid),
                "sop_class_uid": printable(incoming.sop_class_uid),
                "transfer_syntax_uid": incoming.transfer_syntax_uid,
                "study_instance_uid": uids.study_instance_uid if uids else entry.study_instance_uid,
                "series_instance_uid": uids.series_instance_uid if uids else None,
                "series_version": entry.version,
                "path": entry.path,
                "bytes": entry.size,
                "association_id": incoming.association_id,
                "calling_ae_title": printable(incoming.calling_ae_title),
                "state": "stored" if code is None else "quarantined",
                "reason_code": code,
                "reason": reason,
                "received_at": entry.received_at,
                "held_at": None,
            },
        )
