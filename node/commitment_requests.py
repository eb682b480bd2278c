"""Storage Commitment requests of ours, on record: what was asked, what was reported (PS3.4 annex J, as SCU).

In: requests, before they are sent; reports, over whatever association they come, in whatever process.
Out: what is committed of a job's objects at a destination.

A request is a row before its N-ACTION is sent, so that a report finds it however fast it comes; a report is
in the row before it is answered. Both survive any crash.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from pydicom import Dataset
from pydicom.uid import generate_uid
from pynetdicom.dsutils import decode
from sqlalchemy import Engine, Row, insert, or_, select, update

from node.database import commitment_requests, jobs, write_transaction

#: of the Event Information: results have a few objects each
MAX_REPORT_BYTES = 1 << 20
#: (SOP Class UID, SOP Instance UID)
Reference = tuple[str, str]


class InvalidReport(Exception):
    """The Event Information isn't what PS3.4 table J.3-2 asks for. The message has no values."""


@dataclass(frozen=True)
class Report:
    """What an N-EVENT-REPORT says. failed: SOP Instance UID and Failure Reason (0008,1197)."""

    transaction_uid: str
    committed: tuple[str, ...]
    failed: tuple[tuple[str, int], ...]

    @classmethod
    def read(cls, information: bytes, *, implicit_vr: bool) -> Report:
        """Of Event Information in Little Endian. Raises InvalidReport."""
        if len(information) > MAX_REPORT_BYTES:
            raise InvalidReport("it is too long")
        try:
            return cls.of(decode(BytesIO(information), implicit_vr, True))
        except InvalidReport:
            raise
        except Exception as error:  # pydicom raises all kinds of errors for bytes that are no data set
            raise InvalidReport("it can't be read") from error

    @classmethod
    def of(cls, information: Dataset) -> Report:
        """Raises InvalidReport."""
        try:
            return cls(
                str(information.TransactionUID),
                tuple(
                    str(i.ReferencedSOPInstanceUID) for i in information.get("ReferencedSOPSequence") or ()
                ),
                tuple(
                    (str(i.ReferencedSOPInstanceUID), int(i.FailureReason))
                    for i in information.get("FailedSOPSequence") or ()
                ),
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise InvalidReport("Transaction UID, a UID or a Failure Reason is missing") from error


@dataclass(frozen=True)
class Delivery:
    """What requests are of."""

    job_id: str
    generation: int
    destination: str


class CommitmentRequests:
    """Owns the ``commitment_requests`` table; safe to use from many threads and processes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def open(self, delivery: Delivery, references: Sequence[Reference], report_seconds: float) -> str:
        """Write a request down, before it is sent; returns its Transaction UID."""
        transaction_uid = str(generate_uid(prefix=None))
        now = time.time()
        with write_transaction(self._engine) as connection:
            connection.execute(
                insert(commitment_requests).values(
                    transaction_uid=transaction_uid,
                    job_id=delivery.job_id,
                    generation=delivery.generation,
                    destination=delivery.destination,
                    requested=[list(reference) for reference in references],
                    state="open",
                    requested_at=now,
                    report_by=now + report_seconds,
                )
            )
        return transaction_uid

    def record(self, report: Report) -> bool:
        """Write a report down; False when it is of no transaction of ours."""
        c = commitment_requests.c
        this = c.transaction_uid == report.transaction_uid
        with write_transaction(self._engine) as connection:
            before = connection.execute(select(c.committed, c.state).where(this)).one_or_none()
            if before is None:
                return False
            connection.execute(
                update(commitment_requests)
                .where(this)
                .values(
                    committed=sorted({*(before.committed or ()), *report.committed}),
                    failed=[list(pair) for pair in report.failed],
                    state="closed" if before.state == "closed" else "reported",
                )
            )
        return True

    def change(self, transaction_uid: str, state: str, *, was: str) -> bool:
        """False when it isn't in the state ``was`` any more."""
        this = (commitment_requests.c.transaction_uid == transaction_uid, commitment_requests.c.state == was)
        with write_transaction(self._engine) as connection:
            return (
                connection.execute(update(commitment_requests).where(*this).values(state=state)).rowcount == 1
            )

    def of(self, delivery: Delivery) -> list[Row[Any]]:
        """All requests of a delivery, oldest first."""
        c = commitment_requests.c
        this = (
            c.job_id == delivery.job_id,
            c.generation == delivery.generation,
            c.destination == delivery.destination,
        )
        with self._engine.connect() as connection:
            return list(connection.execute(select(commitment_requests).where(*this).order_by(c.id)))

    def committed(self, delivery: Delivery) -> set[str]:
        """SOP Instance UIDs that any report says are committed."""
        return {uid for row in self.of(delivery) for uid in row.committed or ()}

    def due(self, *, now: float) -> list[Row[Any]]:
        """Requests of jobs that wait, of which a report came, or should have come by now."""
        c = commitment_requests.c
        query = (
            select(commitment_requests)
            .join(jobs, jobs.c.job_id == c.job_id)
            .where(jobs.c.state == "delivering", jobs.c.generation == c.generation)
            .where(or_(c.state == "reported", (c.state == "open") & (c.report_by < now)))
            .order_by(c.id)
        )
        with self._engine.connect() as connection:
            return list(connection.execute(query))
