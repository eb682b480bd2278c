"""The spool: received instances, durably on disk and in the index.

In: one C-STORE request and its data set, piece by piece as it comes off the wire. Out: a file that survives
``kill -9`` and power loss, a row in ``instances``, and a series version that it belongs to; or its place in
quarantine and why. Nothing holds a whole data set in memory.

    own_dir/spool/journal/                                       acknowledged, filed in a moment
    own_dir/spool/incoming/<random>.part                         being written
    data_dir/spool/series/<hash of series>/<hash of SOP>.dcm     stored
    data_dir/spool/quarantine/<hash of SOP and content>.dcm      kept, not used

Most instances are acknowledged when they are in the journal, and filed from there; the others when they are
filed. Order of filing (DESIGN I1): temporary file, fsync, rename, fsync of the folder, commit. A crash leaves
a temporary file or a file without a row, which ``reconcile`` mends at start-up; never a row without its file.
own_dir is data_dir, or the node's own folder in one that nodes share (``NodeConfig.own_dir``).
No path contains text that a peer chose: only hashes of it.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import structlog
from sqlalchemy import Engine

from node.errors import InstanceRejected
from node.failpoints import failpoint
from node.files import fsync_folder
from node.reasons import Kind, worded
from node.receive.index import RECOVERED, Entry, Incoming, InstanceIndex, SeriesFiling
from node.receive.intake import Intake
from node.receive.journal import Journal, Record, RecordedInstance
from node.receive.part10 import FilingUids, header_length, read_filing_uids
from node.receive.places import JOURNAL, QUARANTINE, STORED, hash_of, path_of
from node.receive.receiving import (
    Stored,
    copy_content,
    failures,
    fsync_file,
)

log = structlog.get_logger("node.receive.spool")

_COMPARE_BYTES = 1024 * 1024


class Spool(Intake):
    """Stores instances; safe to call from many threads of one process."""

    def __init__(
        self,
        data_dir: Path,
        engine: Engine,
        series: SeriesFiling,
        *,
        free_disk_floor_bytes: int,
        journal_bytes: int = 0,
        own_dir: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        own_dir = data_dir if own_dir is None else own_dir
        journal = Journal(own_dir / JOURNAL, journal_bytes, self.file_records)
        super().__init__(
            data_dir, journal, free_disk_floor_bytes=free_disk_floor_bytes, own_dir=own_dir, clock=clock
        )
        self.index = InstanceIndex(data_dir, engine, series)
        #: files what is acknowledged anywhere and isn't filed yet; False when that failed
        self.file_all: Callable[[], bool] = journal.file_now
        root = data_dir / "spool"
        self.quarantined = data_dir / QUARANTINE
        for folder in (self.incoming, data_dir / STORED, self.quarantined):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (data_dir, root):
            fsync_folder(folder)

    def keep(self, incoming: Incoming, file: Path, header_bytes: int, head: bytes) -> Stored:
        """File one instance that is complete and fsynced on disk.

        file: a temporary file, which is moved or removed, or a file of the spool that has no row.
        header_bytes: length of what precedes the data set in it.  head: the data set's beginning.
        Raises OutOfSpace or SpoolError; then nothing of a temporary file is left.
        """
        uids: FilingUids | None = None
        try:
            with failures():
                uids = _read_uids(incoming, file, header_bytes, head)
                _check_command(incoming, uids)
                final = self.data_dir / path_of(uids.series_instance_uid, uids.sop_instance_uid)
                entry = self._entry(incoming, file, final, uids=uids)
                self.index.file(entry)
                if entry.known is None:
                    return Stored(
                        "stored",
                        entry.path,
                        uids.series_instance_uid,
                        entry.version,
                        study_instance_uid=uids.study_instance_uid,
                    )
                return self._sent_again(entry, entry.known, file, header_bytes)
        except InstanceRejected as rejection:
            study_instance_uid = rejection.study_instance_uid if uids is None else uids.study_instance_uid
            return self._quarantine(incoming, file, header_bytes, rejection, study_instance_uid)

    def file_records(self, records: Sequence[Record]) -> None:
        """Make files and rows of records of the journal; again with the same ones does no harm.

        What a crash left in the journal may have been filed, used and purged long ago.
        """
        entries: list[Entry] = []
        if any(record.instance.association_id == RECOVERED for record in records):
            purged = self.index.purged([record.instance.sop_instance_uid for record in records])
            records = [
                record
                for record in records
                if record.instance.received_at > purged.get(record.instance.sop_instance_uid, 0.0)
            ]
        try:
            for record in records:
                instance = record.instance
                incoming = Incoming(
                    instance.sop_class_uid,
                    instance.sop_instance_uid,
                    instance.transfer_syntax_uid,
                    instance.association_id,
                    instance.calling_ae_title,
                )
                uids, at = _uids(instance), instance.received_at
                temporary = self.incoming / f"{uuid.uuid4().hex}.part"
                path = path_of(uids.series_instance_uid, uids.sop_instance_uid)
                entry = Entry(incoming, path, temporary, record.length, at, uids=uids)
                entries.append(entry)
                copy_content(record, temporary)
            for entry in entries:
                fsync_file(entry.temporary)
            failpoint("spool.copied")
            self.index.file_all(entries)
            for entry, record in zip(entries, records, strict=True):
                if entry.known is not None and entry.temporary is not None:
                    self._settle(entry, entry.known, entry.temporary, record.instance.header_bytes)
        finally:
            for entry in entries:
                if entry.temporary is not None:
                    entry.temporary.unlink(missing_ok=True)

    def _settle(self, entry: Entry, known: Mapping[str, Any], file: Path, header_bytes: int) -> Stored:
        """What becomes of an instance whose UID is stored already."""
        try:
            return self._sent_again(entry, known, file, header_bytes)
        except InstanceRejected as rejection:
            return self._quarantine(
                entry.incoming, file, header_bytes, rejection, known["study_instance_uid"]
            )

    def _sent_again(self, entry: Entry, known: Mapping[str, Any], file: Path, header_bytes: int) -> Stored:
        """Acknowledge identical content without storing it again. Raises InstanceRejected when it differs."""
        kept = self.data_dir / known["path"]
        same_syntax = known["transfer_syntax_uid"] == entry.incoming.transfer_syntax_uid
        if not same_syntax or not _same_data_set(kept, file, header_bytes):
            raise InstanceRejected(
                "the SOP Instance UID is already stored with different content "
                f"({known['path']}, transfer syntax {known['transfer_syntax_uid']})",
                code="duplicate_different",
                hint="an instance must not change under its UID (PS3.3 C.12.1.1.1); ask the sender",
            )
        if kept != file:
            file.unlink()
        self.index.seen_again(entry)
        return Stored(
            "duplicate",
            known["path"],
            known["series_instance_uid"],
            known["series_version"],
            study_instance_uid=known["study_instance_uid"],
        )

    def _quarantine(
        self,
        incoming: Incoming,
        file: Path,
        header_bytes: int,
        rejection: InstanceRejected,
        study_instance_uid: str | None,
    ) -> Stored:
        """Keep an instance that can't be filed; the same one sent again is kept once."""
        with failures():
            name = hash_of(f"{incoming.sop_instance_uid} {_content_hash(file, header_bytes)}")
            final = self.quarantined / f"{name}.dcm"
            entry = self._entry(
                incoming,
                file,
                final,
                rejection=(rejection.code, str(rejection)),
                study_instance_uid=study_instance_uid,
            )
            self.index.file(entry)
            result = Stored(
                "quarantined",
                entry.path,
                code=rejection.code,
                reason=str(rejection),
                study_instance_uid=study_instance_uid,
            )
            if entry.known is not None:
                if entry.temporary is not None:
                    file.unlink()
                return result
        log.warning(
            "instance_quarantined",
            code=rejection.code,
            reason=worded(Kind.QUARANTINED, rejection.code, str(rejection)).sentence,
            path=entry.path,
            association_id=incoming.association_id,
        )
        return result

    def _entry(self, incoming: Incoming, file: Path, final: Path, **values: Any) -> Entry:
        path = str(final.relative_to(self.data_dir))
        temporary = None if file == final else file
        return Entry(incoming, path, temporary, file.stat().st_size, self._clock(), **values)


def _uids(instance: RecordedInstance) -> FilingUids:
    return FilingUids(
        instance.sop_class_uid,
        instance.sop_instance_uid,
        instance.study_instance_uid,
        instance.series_instance_uid,
    )


def _read_uids(incoming: Incoming, file: Path, header_bytes: int, head: bytes) -> FilingUids:
    """The data set's UIDs. Raises InstanceRejected."""

    def whole() -> BinaryIO:
        stream = file.open("rb")
        stream.seek(header_bytes)
        return stream

    return read_filing_uids(head, incoming.transfer_syntax_uid, whole)


def _check_command(incoming: Incoming, uids: FilingUids) -> None:
    """The command's UIDs must be the data set's (PS3.4 B.2.2: an SCU sends what it announced)."""
    for name, command, dataset in (
        ("SOP Instance UID", incoming.sop_instance_uid, uids.sop_instance_uid),
        ("SOP Class UID", incoming.sop_class_uid, uids.sop_class_uid),
    ):
        if command != dataset:
            raise InstanceRejected(
                f"the {name} of the C-STORE command is not the data set's", code="uid_mismatch"
            )


def _same_data_set(kept: Path, file: Path, header_bytes: int) -> bool:
    """Whether two files hold the same data set; the headers before it may name different senders."""
    if kept == file:
        return True
    with kept.open("rb") as a, file.open("rb") as b:
        kept_header = header_length(a)
        if os.fstat(a.fileno()).st_size - kept_header != os.fstat(b.fileno()).st_size - header_bytes:
            return False
        a.seek(kept_header)
        b.seek(header_bytes)
        while piece := a.read(_COMPARE_BYTES):
            if piece != b.read(_COMPARE_BYTES):
                return False
    return True


def _content_hash(file: Path, header_bytes: int) -> str:
    with file.open("rb") as stream:
        stream.seek(header_bytes)
        return hashlib.file_digest(stream, "sha256").hexdigest()
