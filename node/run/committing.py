"""From stored to delivered, where a destination confirms what it keeps: the second half of ``delivering``.

In: a delivery that is stored.  Out: committed; or what is to be done next: wait, ask again, send again.

``CommitmentWatch`` brings a delivery its next turn when a report has come, or should have. All of it is
computed from rows, so that a restart forgets nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy import Engine, Row

from node.commitment_requests import CommitmentRequests, Delivery, Reference
from node.deliver.commitment import FINAL_REASONS
from node.deliver.gate import Gate
from node.errors import DeliveryError
from node.metrics import Metrics
from node.watch import Watch

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.5
#: turns that a report brings are numbered from multiples of this on, after all that come before
TURNS_APART = 1_000_000


@dataclass(frozen=True)
class Committed:
    """All of it is."""


@dataclass(frozen=True)
class Waiting:
    """For the report of a request that is under way."""


@dataclass(frozen=True)
class NotCommitted:
    """The destination doesn't keep some of it."""

    error: DeliveryError


class Committing:
    """Requests and their reports, for all deliveries of a node."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self.requests = CommitmentRequests(engine)
        self._metrics = metrics

    def settle(
        self, delivery: Delivery, gate: Gate, wanted: Sequence[Reference]
    ) -> Committed | Waiting | NotCommitted:
        """How a stored delivery stands; asks the destination if that hasn't been done.

        Raises Postponed or DeliveryError when it couldn't be asked.
        """
        missing = self._missing(delivery, wanted)
        if not missing:
            return Committed()
        *earlier, latest = [None, *self.requests.of(delivery)]
        if latest is not None and latest.state == "reported":
            return self._failed(gate, latest, missing)
        for row in earlier:  # a late report that isn't of everything
            if row is not None and row.state == "reported":
                self.requests.change(row.transaction_uid, "closed", was="reported")
        if latest is not None and latest.state == "open" and not self._has_expired(gate, latest):
            return Waiting()
        self._ask(delivery, gate, missing)
        # a report that is there already, but isn't of everything, brings a turn, which may be under way
        return Waiting() if self._missing(delivery, wanted) else Committed()

    def _missing(self, delivery: Delivery, wanted: Sequence[Reference]) -> list[Reference]:
        committed = self.requests.committed(delivery)
        return [reference for reference in wanted if reference[1] not in committed]

    def close(self, delivery: Delivery) -> None:
        """Once it is noted what the reports say: nothing more is to come of them."""
        for row in self.requests.of(delivery):
            for state in ("reported", "open"):
                self.requests.change(row.transaction_uid, "closed", was=state)

    def _ask(self, delivery: Delivery, gate: Gate, references: Sequence[Reference]) -> None:
        assert gate.commitment is not None  # noqa: S101 - else nothing is to be committed
        counter = self._metrics.commitment_requests
        uid = self.requests.open(delivery, references, gate.commitment.options.report_seconds)
        try:
            with gate.attempt():
                gate.commitment.request(uid, references)
        except BaseException:
            self.requests.change(uid, "withdrawn", was="open")  # a report counts all the same
            counter.labels(destination=delivery.destination, outcome="withdrawn").inc()
            raise
        counter.labels(destination=delivery.destination, outcome="sent").inc()
        log.info(
            "commitment_requested",
            job_id=delivery.job_id,
            destination=delivery.destination,
            transaction_uid=uid,
            objects=len(references),
        )

    def _has_expired(self, gate: Gate, request: Row[Any]) -> bool:
        if time.time() < request.report_by or not self.requests.change(
            request.transaction_uid, "expired", was="open"
        ):
            return False
        name = gate.destination.name
        self._metrics.commitment_requests.labels(destination=name, outcome="expired").inc()
        log.warning(
            "commitment_report_missing",
            job_id=request.job_id,
            destination=name,
            transaction_uid=request.transaction_uid,
            hint="asked again; does the destination know our address, and may it open associations to us?",
        )
        return True

    def _failed(self, gate: Gate, request: Row[Any], missing: Sequence[Reference]) -> NotCommitted:
        reasons = {pair[0]: pair[1] for pair in request.failed or ()}
        said = ", ".join(f"{uid} ({_reason(reasons.get(uid))})" for _, uid in missing)
        final = any(reasons.get(uid) in FINAL_REASONS for _, uid in missing)
        return NotCommitted(
            DeliveryError(
                f"destination {gate.destination.name} doesn't commit itself to keep {said}",
                hint="the destination's log says why",
                code="not_committed",
                retryable=not final,
            )
        )


def _reason(reason: int | None) -> str:
    return "not mentioned in its report" if reason is None else f"Failure Reason {reason:#06x}"


class CommitmentWatch(Watch):
    """Brings deliveries their next turn when a report has come, or should have."""

    def __init__(self, engine: Engine, enqueue: Callable[[Delivery, int], object]) -> None:
        """enqueue: a turn of a delivery, with its number; the same again does nothing."""
        super().__init__("commitment-watch", POLL_SECONDS)
        self._requests = CommitmentRequests(engine)
        self._enqueue = enqueue

    def look(self) -> None:
        for row in self._requests.due(now=time.time()):
            turn = row.id * TURNS_APART + (0 if row.state == "reported" else TURNS_APART // 2)
            self._enqueue(Delivery(row.job_id, row.generation, row.destination), turn)
