"""The Storage service: what is accepted, and what is answered to each C-STORE (PS3.4 B.2.3).

In: the command of a C-STORE and its data set, piece by piece.  Out: the instance in the spool and a status.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

import structlog
from pydicom.uid import UID_dictionary
from pynetdicom import (
    AllStoragePresentationContexts,
    MediaStoragePresentationContexts,
    NonPatientObjectPresentationContexts,
)

from node.audit import AuditTrail
from node.audit_message import Peer, Transfer
from node.errors import SpoolError
from node.reasons import Kind, worded
from node.receive.command import StoreCommand
from node.receive.index import Incoming
from node.receive.intake import Intake
from node.receive.journal import Lane
from node.receive.metrics import ReceiveMetrics
from node.receive.part10 import is_uid
from node.receive.receiving import Receiving
from node.receive.refusals import Refused
from node.receive.spool import Spool
from node.receive.stream import Context

log = structlog.get_logger("node.receive.storage")

#: what came over an association is written to the audit trail when it ends, or when it is of so many kinds
MAX_TRANSFERS = 1000
#: in the audit trail, for instances in quarantine whose Study Instance UID can't be read
UNKNOWN_STUDY = "unknown"

#: every status that a C-STORE gets, and when; part of the conformance statement
STATUSES = {
    0x0000: "the instance is synced to disk with its index entry; or an identical one was",
    0x0122: "the presentation context isn't one of a storage SOP class, or not of the command's",
    0xA700: (
        "out of resources: below `receive.free_disk_floor_bytes`, or the disk or the database failed; "
        "nothing is kept"
    ),
    0xA900: "the data set's SOP Class or Instance UID isn't the command's; kept in quarantine",
    0xC000: "the data set can't be understood, or lacks a UID that filing needs; kept in quarantine",
    0xC001: "another data set is stored under the SOP Instance UID; this one is kept in quarantine",
}
STATUS_STORED = 0x0000
STATUS_NOT_STORAGE = 0x0122
STATUS_OUT_OF_RESOURCES = 0xA700
STATUS_BY_QUARANTINE_CODE = {
    "uid_mismatch": 0xA900,
    "unreadable_dataset": 0xC000,
    "missing_uid": 0xC000,
    "invalid_uid": 0xC000,
    "duplicate_different": 0xC001,
}


def _standard_storage_classes() -> frozenset[str]:
    """Every storage SOP class that pynetdicom or pydicom's dictionary knows, retired ones included.

    Not the objects without a patient (PS3.4 GG) and media directories: they belong to no series.
    """
    current = {context.abstract_syntax for context in AllStoragePresentationContexts}
    retired = {
        uid
        for uid, (_name, kind, _info, retired, keyword) in UID_dictionary.items()
        if kind == "SOP Class" and retired and "Storage" in keyword and "Commitment" not in keyword
    }
    without_series = {
        context.abstract_syntax
        for context in (*NonPatientObjectPresentationContexts, *MediaStoragePresentationContexts)
    }
    return frozenset(str(uid) for uid in (current | retired) - without_series)


STANDARD_STORAGE_CLASSES = _standard_storage_classes()


def is_accepted_storage(abstract_syntax: str, *, accept_unknown: bool) -> bool:
    """Whether C-STORE is accepted under this abstract syntax.

    ``accept_unknown`` also takes UIDs that the standard's dictionary doesn't know: private classes and
    classes newer than us, which can only be storage when they come in a C-STORE.
    """
    if abstract_syntax in STANDARD_STORAGE_CLASSES:
        return True
    return accept_unknown and is_uid(abstract_syntax) and abstract_syntax not in UID_dictionary


class _Kind(NamedTuple):
    """What one entry of the audit trail tells: instances of a study, of which we held each before, or which
    are in quarantine for a reason."""

    study_instance_uid: str
    known: bool
    quarantine_code: str | None


@dataclass
class Sender:
    """An accepted association that hasn't ended, and what came over it."""

    association_id: str
    peer: Peer
    lane: Lane
    released: bool = False
    stored: int = 0
    quarantined: int = 0
    refused: int = 0
    #: SOP class -> instances, for the audit trail
    transfers: dict[_Kind, Counter[str]] = field(default_factory=dict)

    @property
    def calling_ae_title(self) -> str:
        return self.peer.ae_title


@dataclass(frozen=True)
class Outcome:
    """What was answered to one C-STORE, and what it cost. reason: what is particular of a refusal."""

    outcome: Literal["stored", "duplicate", "quarantined", "refused"]
    code: str | None
    sop_class_uid: str
    study_instance_uid: str | None = None
    received_bytes: int = 0
    seconds: float | None = None
    reason: str = ""


class StorageService:
    """Answers C-STORE for every association of a listener."""

    def __init__(
        self,
        spool: Spool,
        metrics: ReceiveMetrics,
        audit: AuditTrail,
        *,
        accept_unknown: bool,
        association_prefix: str = "",
        refused: Refused = lambda *_: None,
    ) -> None:
        """association_prefix: tells this node's associations from those of others.  refused: is told of each
        instance that was."""
        self._refused = refused
        self._spool = spool
        self._prefix = association_prefix
        self._metrics = metrics
        self._audit = audit
        self._accept_unknown = accept_unknown

    def accepts(self, abstract_syntax: str) -> bool:
        """Whether C-STORE is accepted under this abstract syntax."""
        return is_accepted_storage(abstract_syntax, accept_unknown=self._accept_unknown)

    def has_space(self) -> bool:
        """Whether there is room for another instance: above the free-space floor."""
        try:
            self._spool.check_space()
        except SpoolError:
            return False
        return True

    def open(self, association_id: str, peer: Peer) -> Sender:
        """An association was established. Its id will begin with ``association_prefix``."""
        return Sender(self._prefix + association_id, peer, self._spool.journal.lane())

    def close(self, sender: Sender) -> None:
        """It ended, and nothing of it is on its way: file everything that came over it."""
        whole = sender.released and not sender.refused
        self._audit_transfers(
            sender, "" if whole else f"released: {sender.released}, refused: {sender.refused}"
        )
        self._spool.journal.end(sender.lane)

    def _audit_transfers(self, sender: Sender, failure: str = "") -> None:
        for (study_instance_uid, known, code), counts in sender.transfers.items():
            failures = [failure] if code is None else [f"quarantined: {code}", failure]
            why = ", ".join(filter(None, failures))
            self._audit.transferred(Transfer(sender.peer, "received", study_instance_uid, counts, why, known))
        sender.transfers.clear()

    def begin(self, sender: Sender, context: Context, command: StoreCommand) -> StoreReception:
        """The reception of one C-STORE's data set; never raises."""
        return begin_store(
            self._spool,
            sender.lane,
            (sender.association_id, sender.calling_ae_title),
            context,
            command,
            accept_unknown=self._accept_unknown,
            report=partial(self.count, sender),
        )

    def count(self, sender: Sender, outcome: Outcome) -> None:
        """Add what was answered to one C-STORE to the metrics, and to what is known of its sender."""
        self._metrics.instances.labels(outcome=outcome.outcome, code=outcome.code or "none").inc()
        self._metrics.received_bytes.inc(outcome.received_bytes)
        if outcome.seconds is not None:
            self._metrics.c_store_seconds.observe(outcome.seconds)
        if outcome.outcome == "refused":
            sender.refused += 1
            self._refused(Kind.REFUSED, outcome.code or "", outcome.reason, sender.peer)
        elif outcome.outcome == "quarantined":
            sender.quarantined += 1
        else:
            sender.stored += 1
        if outcome.outcome != "refused":
            study = outcome.study_instance_uid or UNKNOWN_STUDY
            kind = _Kind(study, outcome.outcome == "duplicate", outcome.code)
            sender.transfers.setdefault(kind, Counter())[outcome.sop_class_uid] += 1
            if len(sender.transfers) >= MAX_TRANSFERS:
                self._audit_transfers(sender)


def begin_store(
    intake: Intake,
    lane: Lane,
    sender: tuple[str, str],
    context: Context,
    command: StoreCommand,
    *,
    accept_unknown: bool,
    report: Callable[[Outcome], None],
) -> StoreReception:
    """The reception of one C-STORE's data set; never raises. sender: association id, calling AE title."""
    association_id, calling_ae_title = sender
    reception = StoreReception(command.sop_class_uid, association_id, report)
    accepted = is_accepted_storage(context.abstract_syntax, accept_unknown=accept_unknown)
    if not accepted or command.sop_class_uid != context.abstract_syntax:
        reception.refuse(STATUS_NOT_STORAGE, "not_storage", "the context isn't one of this storage class")
        return reception
    incoming = Incoming(
        sop_class_uid=command.sop_class_uid,
        sop_instance_uid=command.sop_instance_uid,
        transfer_syntax_uid=context.transfer_syntax,
        association_id=association_id,
        calling_ae_title=calling_ae_title,
    )
    try:
        reception.receiving = intake.receive(incoming, lane)
    except SpoolError as error:
        reception.refuse_for(error)
    return reception


class StoreReception:
    """See ``stream.Reception``. What was refused is still read to its end, and then answered."""

    def __init__(self, sop_class_uid: str, association_id: str, report: Callable[[Outcome], None]) -> None:
        self.receiving: Receiving | None = None
        self._sop_class_uid = sop_class_uid
        self._association_id = association_id
        self._report = report
        self._answer = (STATUS_STORED, "")
        self._started = time.perf_counter()

    def refuse(self, status: int, code: str, reason: str, hint: str = "") -> None:
        """Keep nothing, and answer so."""
        received_bytes = 0 if self.receiving is None else self.receiving.size
        self.receiving = None
        self._answer = (status, code.replace("_", " "))
        sop_class_uid = self._sop_class_uid
        self._report(Outcome("refused", code, sop_class_uid, received_bytes=received_bytes, reason=reason))
        log.error(
            "instance_refused",
            code=code,
            reason=worded(Kind.REFUSED, code, reason).sentence,
            hint=hint,
            association_id=self._association_id,
        )

    def refuse_for(self, error: SpoolError) -> None:
        self.refuse(STATUS_OUT_OF_RESOURCES, error.code, str(error), error.hint)

    def write(self, pieces: Sequence[memoryview]) -> None:
        if self.receiving is None:
            return
        try:
            self.receiving.write(pieces)
        except SpoolError as error:
            self.refuse_for(error)

    def finish(self) -> tuple[int, str]:
        receiving = self.receiving
        if receiving is None:
            return self._answer
        try:
            stored = receiving.finish()
        except SpoolError as error:
            self.refuse_for(error)
            return self._answer
        self._report(
            Outcome(
                stored.state,
                stored.code,
                self._sop_class_uid,
                stored.study_instance_uid,
                receiving.size,
                time.perf_counter() - self._started,
            )
        )
        if stored.code is None:
            return STATUS_STORED, ""
        return STATUS_BY_QUARANTINE_CODE[stored.code], f"quarantined: {stored.code}"

    def abandon(self) -> None:
        if self.receiving is not None:
            self.receiving.abandon()
            self.receiving = None
