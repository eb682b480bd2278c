"""Storage Commitment requests on record, and the judgement of each instance that they refer to.

In: a valid request.  Out: a row that survives a crash; later, of each reference, whether it is committed.

An instance is committed when it is stored under that SOP Class and its file is there, whole. Both were synced
to disk before it was acknowledged; what is only in the journal yet is filed first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, delete, insert, or_, select, update

from node.database import commitments, instances, write_transaction
from node.receive.commitment_messages import COMMITTED, CommitmentRequest, Reference
from node.receive.spool import Spool

#: finished requests stay so long, for questions, and to tell when a Transaction UID comes again
KEEP_SECONDS = 30 * 86400.0
_LOOK_UP = 500

PROCESSING_FAILURE = 0x0110
NO_SUCH_INSTANCE = 0x0112
CLASS_INSTANCE_CONFLICT = 0x0119
CLASS_NOT_SUPPORTED = 0x0122
DUPLICATE_TRANSACTION = 0x0131

#: Failure Reason (0008,1197), PS3.3 C.14.1.1 -> the metric's outcome, and when it is given
FAILURE_REASONS = {
    PROCESSING_FAILURE: (
        "processing_failure",
        "it may be in the journal, which couldn't be filed just then; or the same AE also sent different "
        "content under the UID, which is in quarantine",
    ),
    NO_SUCH_INSTANCE: (
        "no_such_instance",
        "it isn't stored: never received, in quarantine, or its file is gone or cut short",
    ),
    CLASS_INSTANCE_CONFLICT: ("class_instance_conflict", "it is stored under another SOP Class"),
    CLASS_NOT_SUPPORTED: ("class_not_supported", "it isn't stored, and its SOP Class isn't accepted"),
    DUPLICATE_TRANSACTION: (
        "duplicate_transaction",
        "the Transaction UID is that of an earlier request; of every instance of the later one",
    ),
}


@dataclass(frozen=True)
class Transaction:
    """A request that is to be answered. requested_at: seconds since the epoch."""

    id: int
    transaction_uid: str
    calling_ae_title: str
    requested_at: float


class CommitmentLedger:
    """Owns the ``commitments`` table; safe to use from many threads."""

    def __init__(
        self,
        engine: Engine,
        spool: Spool,
        accepts: Callable[[str], bool],
        *,
        node_id: str = "node",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """accepts: whether a SOP Class UID is of storage that we take."""
        self._engine = engine
        self._spool = spool
        self._accepts = accepts
        self._node_id = node_id
        self._clock = clock

    def record(self, request: CommitmentRequest, calling_ae_title: str) -> Transaction:
        """Write it down, durably. Raises SQLAlchemyError, or OutOfSpace below the free-space floor."""
        self._spool.check_space()
        now = self._clock()
        with write_transaction(self._engine) as connection:
            connection.execute(delete(commitments).where(commitments.c.finished_at < now - KEEP_SECONDS))
            result = connection.execute(
                insert(commitments).values(
                    transaction_uid=request.transaction_uid,
                    calling_ae_title=calling_ae_title,
                    requested=request.references,
                    state="open",
                    requested_at=now,
                    node_id=self._node_id,
                )
            )
            (key,) = result.inserted_primary_key or (0,)
        return Transaction(key, request.transaction_uid, calling_ae_title, now)

    def open_transactions(self) -> list[Transaction]:
        """Those of this node that wait for their report, oldest first."""
        with self._engine.connect() as connection:
            ours = or_(commitments.c.node_id == self._node_id, commitments.c.node_id.is_(None))
            return self._open(connection, ours)

    def take_over(self, node_id: str) -> list[Transaction]:
        """Those of a node that is gone, which are ours from now on."""
        theirs = commitments.c.node_id == node_id
        with write_transaction(self._engine) as connection:
            taken = self._open(connection, theirs)
            connection.execute(
                update(commitments).where(theirs, commitments.c.state == "open").values(node_id=self._node_id)
            )
        return taken

    def _open(self, connection: Connection, whose: ColumnElement[bool]) -> list[Transaction]:
        columns = [commitments.c[name] for name in Transaction.__dataclass_fields__]
        query = select(*columns).where(commitments.c.state == "open", whose).order_by(commitments.c.id)
        return [Transaction(*row) for row in connection.execute(query)]

    def judge(self, transaction: Transaction) -> list[tuple[Reference, int]]:
        """Each reference with its Failure Reason or COMMITTED; once judged, it stays so.

        Raises SQLAlchemyError.
        """
        with self._engine.connect() as connection:
            row = connection.execute(select(commitments).where(commitments.c.id == transaction.id)).one()
        references = [Reference(*pair) for pair in row.requested]
        reasons = row.reasons
        if reasons is None:
            reasons = self._reasons(transaction, references)
            self._update(transaction, reasons=reasons)
        return list(zip(references, reasons, strict=True))

    def finish(self, transaction: Transaction, state: str) -> None:
        """state: reported or given_up."""
        self._update(transaction, state=state, finished_at=self._clock())

    def _update(self, transaction: Transaction, **values: Any) -> None:
        with write_transaction(self._engine) as connection:
            connection.execute(update(commitments).where(commitments.c.id == transaction.id).values(**values))

    def _reasons(self, transaction: Transaction, references: Sequence[Reference]) -> list[int]:
        if self._is_duplicate(transaction):
            return [DUPLICATE_TRANSACTION] * len(references)
        filed = self._spool.file_all()
        self._hold({reference.sop_instance_uid for reference in references})
        known = self._known({reference.sop_instance_uid for reference in references})
        return [
            self._reason(
                reference, known.get(reference.sop_instance_uid, ()), transaction.calling_ae_title, filed
            )
            for reference in references
        ]

    def _is_duplicate(self, transaction: Transaction) -> bool:
        earlier = select(commitments.c.id).where(
            commitments.c.transaction_uid == transaction.transaction_uid, commitments.c.id < transaction.id
        )
        with self._engine.connect() as connection:
            return connection.execute(earlier.limit(1)).first() is not None

    def _hold(self, uids: Iterable[str]) -> None:
        """What is judged isn't purged any more: "committed" may mean that it is the only copy."""
        wanted = sorted(uids)
        for start in range(0, len(wanted), _LOOK_UP):
            some = instances.c.sop_instance_uid.in_(wanted[start : start + _LOOK_UP])
            with write_transaction(self._engine) as connection:
                stored = update(instances).where(some, instances.c.state == "stored")
                connection.execute(stored.values(held_at=self._clock()))

    def _known(self, uids: Iterable[str]) -> dict[str, list[Row[Any]]]:
        """Rows of instances by their UID."""
        wanted, found = sorted(uids), dict[str, list[Row[Any]]]()
        with self._engine.connect() as connection:
            for start in range(0, len(wanted), _LOOK_UP):
                some = wanted[start : start + _LOOK_UP]
                query = select(instances).where(instances.c.sop_instance_uid.in_(some))
                for row in connection.execute(query):
                    found.setdefault(row.sop_instance_uid, []).append(row)
        return found

    def _reason(
        self, reference: Reference, rows: Sequence[Row[Any]], calling_ae_title: str, filed: bool
    ) -> int:
        stored = next((row for row in rows if row.state == "stored"), None)
        if stored is None:
            if not filed:
                return PROCESSING_FAILURE
            return NO_SUCH_INSTANCE if self._accepts(reference.sop_class_uid) else CLASS_NOT_SUPPORTED
        if stored.sop_class_uid != reference.sop_class_uid:
            return CLASS_INSTANCE_CONFLICT
        if not _is_whole(self._spool.data_dir / stored.path, stored.bytes):
            return NO_SUCH_INSTANCE
        # "committed" would let that AE delete the one copy which we haven't stored
        differs = any(
            row.reason_code == "duplicate_different" and row.calling_ae_title == calling_ae_title
            for row in rows
        )
        return PROCESSING_FAILURE if differs else COMMITTED


def _is_whole(file: Path, size: int) -> bool:
    try:
        return file.stat().st_size == size
    except OSError:
        return False
