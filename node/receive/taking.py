"""Instances that come to the node's web server, taken in like those that come by C-STORE.

In: orders of the node's process: Part 10 files, each of an "association" that a browser's upload or a STOW-RS
request stands for.  Out: for each file the status that C-STORE would have given it. 0x0000 is said when
C-STORE would say it, by the same code: the instance is durable then.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import structlog
from pydicom.errors import InvalidDicomError

from node.audit_message import Peer
from node.errors import InstanceRejected
from node.receive.command import StoreCommand
from node.receive.part10 import (
    HEAD_BYTES,
    FilingUids,
    Part10,
    is_uid,
    printable,
    read_filing_uids,
    read_part10,
)
from node.receive.storage import Sender, StorageService
from node.receive.stream import Context

log = structlog.get_logger("node.receive.taking")

_COPY_BYTES = 1024 * 1024
#: the file is no Part 10 file, or its transfer syntax isn't one that the listener accepts
STATUS_CANNOT_UNDERSTAND, STATUS_TRANSFER_SYNTAX = 0xC000, 0xC122
#: the sender named a study (PS3.18 10.5.1), and the data set is of another
STATUS_OTHER_STUDY = 0xA900


@dataclass(frozen=True)
class Taken:
    """What became of one file. status: of a C-STORE (PS3.4 B.2.3).  UIDs are "" where they can't be read."""

    status: int
    comment: str
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    study_instance_uid: str = ""
    series_instance_uid: str = ""


class AssociationEnd(Protocol):
    """The part of the series tracker that hears of an end."""

    def association_ended(self, association_id: str, *, released: bool) -> None: ...


class Taking:
    """Carries out orders; those of one association come one after the other, others at the same time."""

    def __init__(
        self,
        storage: StorageService,
        tracker: AssociationEnd,
        transfer_syntaxes: Sequence[str],
    ) -> None:
        self._storage = storage
        self._tracker = tracker
        self._transfer_syntaxes = frozenset(transfer_syntaxes)
        self._senders: dict[str, Sender] = {}

    def obey(self, order: dict[str, Any]) -> list[dict[str, Any]]:
        """``open`` with ae_title and address, ``take`` with paths and perhaps the study that they must be of,
        ``end`` with released; each with the association's name. Returns what became of each path."""
        name = str(order["association"])
        match order["order"]:
            case "open":
                peer = Peer(printable(order["ae_title"])[:16], order["address"])
                self._senders[name] = self._storage.open(f"web-{name}-{uuid.uuid4().hex[:8]}", peer)
            case "take":
                sender = self._senders[name]
                study = str(order.get("study", ""))
                return [asdict(self._take(sender, Path(path), study)) for path in order["paths"]]
            case "end":
                sender = self._senders.pop(name)
                sender.released = bool(order["released"])
                self._storage.close(sender)
                self._tracker.association_ended(sender.association_id, released=sender.released)
        return []

    def _take(self, sender: Sender, path: Path, study: str) -> Taken:
        try:
            part = read_part10(path)
        except (InvalidDicomError, OSError, AttributeError, EOFError, ValueError, NotImplementedError):
            return Taken(STATUS_CANNOT_UNDERSTAND, "not a DICOM file (PS3.10)")
        if not is_uid(part.sop_class_uid) or not is_uid(part.sop_instance_uid):
            return Taken(
                STATUS_CANNOT_UNDERSTAND, "its File Meta Information has no SOP Class or Instance UID"
            )
        uids = (part.sop_class_uid, part.sop_instance_uid)
        if part.transfer_syntax_uid not in self._transfer_syntaxes:
            return Taken(STATUS_TRANSFER_SYNTAX, "its transfer syntax isn't accepted", *uids)
        return self._store(sender, path, part, study)

    def _store(self, sender: Sender, path: Path, part: Part10, study: str) -> Taken:
        context = Context(part.sop_class_uid, part.transfer_syntax_uid)
        command = StoreCommand(1, part.sop_class_uid, part.sop_instance_uid, has_data_set=True)
        reception = self._storage.begin(sender, context, command)
        uids: FilingUids | None = None
        try:
            with path.open("rb") as file:
                file.seek(part.header_bytes)
                head = file.read(HEAD_BYTES)
                uids = _uids_of(head, path, part)
                if study and (uids is None or uids.study_instance_uid != study):
                    reception.abandon()
                    why = "it isn't of the study that was named"
                    return Taken(STATUS_OTHER_STUDY, why, part.sop_class_uid, part.sop_instance_uid)
                file.seek(part.header_bytes)
                while piece := file.read(_COPY_BYTES):
                    reception.write([memoryview(piece)])
        except OSError:
            reception.abandon()
            return Taken(STATUS_CANNOT_UNDERSTAND, "the file can't be read")
        status, comment = reception.finish()
        where = (uids.study_instance_uid, uids.series_instance_uid) if uids is not None else ()
        return Taken(status, comment, part.sop_class_uid, part.sop_instance_uid, *where)


def _uids_of(head: bytes, path: Path, part: Part10) -> FilingUids | None:
    """Of the data set; None when they can't be told, for which reason it will be in quarantine."""

    def whole() -> BinaryIO:
        stream = path.open("rb")
        stream.seek(part.header_bytes)
        return stream

    try:
        return read_filing_uids(head, part.transfer_syntax_uid, whole)
    except InstanceRejected:
        return None
