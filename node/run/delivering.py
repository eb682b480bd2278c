"""The step that delivers: a job's result set to one destination, until it is there or will never be.

In: a job with its result set, and a destination.  Out: a row in ``deliveries`` that says how it stands, and
the end of the job once all of them are settled.

A turn of this step may be killed anywhere, and come again. What counts is the row: an attempt is counted when
it ended, and one that the gate postponed isn't one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection, Engine, Row, select, update

from node.commitment_requests import Delivery
from node.database import deliveries, jobs, series, write_transaction
from node.deliver.base import Instance, Stored
from node.deliver.gate import Gate, Postponed
from node.errors import DeliveryError, NodeError
from node.metrics import Metrics
from node.reasons import Kind, Reason, worded
from node.run.boundary import ACTIVE, STOP, Next, again_in, recorded
from node.run.committing import Committed, Committing, NotCommitted, Waiting
from node.run.results import ResultSets

log = structlog.get_logger(__name__)

#: the states of a delivery in which it is not settled
UNSETTLED = ("pending", "stored")
#: in the row of a delivery of which there is nothing to complain
_FINE: dict[str, Any] = {"last_error": None, "reason_code": None}


class Delivering:
    """The step for all jobs and destinations of one node."""

    def __init__(
        self,
        results: ResultSets,
        engine: Engine,
        gates: Mapping[str, Gate],
        metrics: Metrics,
        *,
        on_done: Callable[[Connection, Row[Any]], object] = lambda _connection, _job: None,
    ) -> None:
        """on_done: called with the transaction in which a job is done."""
        self._on_done = on_done
        self._results = results
        self._engine = engine
        self._gates = gates
        self._metrics = metrics
        self._committing = Committing(engine, metrics)

    def deliver(self, job_id: str, destination: str, generation: int) -> Next:
        """One turn."""
        job = self._job(job_id)
        if job is None or job.state not in ACTIVE or job.generation != generation:
            return STOP
        row = self._begun(job, destination)
        if row is None or row.state not in UNSETTLED:  # settled by a turn that ended before it could say so
            self._finish_if_settled(job)
            return STOP
        try:
            with recorded(Postponed, _NotCommitted):
                self._advance(job, row)
        except Postponed as postponed:
            return self._postponed(job, row, postponed)
        except _NotCommitted as error:
            return self._not_committed(job, row, error.args[0])
        except NodeError as error:
            return self._failed(job, self._begun(job, destination) or row, error)
        self._finish_if_settled(job)
        return STOP

    def finish(self, job_id: str) -> None:
        """End a job whose results go nowhere."""
        job = self._job(job_id)
        if job is not None and job.state == "delivering":
            self._finish_if_settled(job)

    def _advance(self, job: Row[Any], row: Row[Any]) -> None:
        """Store what isn't stored; then, where it is configured, see to it that it is committed."""
        gate = self._gates.get(row.destination)
        if gate is None:
            raise DeliveryError(
                f"destination {row.destination} is no longer configured",
                code="destination_removed",
                hint="configure it again and retry the job",
                retryable=False,
            )
        if row.state == "pending":
            self._store(job, row, gate)
        if gate.commitment is not None:
            self._commit(job, gate)
        elif row.state == "stored":  # it was configured, and isn't any more
            self._record(job, row.destination, was="stored", state="delivered", **_FINE)
            self._committing.close(_delivery(job, row.destination))

    def _store(self, job: Row[Any], row: Row[Any], gate: Gate) -> None:
        started = time.monotonic()
        files = self._results.files_for(job, row.destination)
        if gate.commitment is not None:
            kept = self._committing.requests.committed(_delivery(job, row.destination))
            files = [file for file in files if Instance.read(file).sop_instance_uid not in kept]
        stored = gate.deliver(files)
        self._metrics.delivery_seconds.labels(row.destination).observe(time.monotonic() - started)
        state = "delivered" if gate.commitment is None else "stored"
        self._stored(job, row.destination, row.attempts + 1, stored, state=state)

    def _commit(self, job: Row[Any], gate: Gate) -> None:
        """Raises _NotCommitted."""
        destination = gate.destination.name
        delivery = _delivery(job, destination)
        instances = [Instance.read(file) for file in self._results.files_for(job, destination)]
        wanted = [(each.sop_class_uid, each.sop_instance_uid) for each in instances]
        match self._committing.settle(delivery, gate, wanted):
            case NotCommitted(error):
                raise _NotCommitted(error)
            case Committed():
                if self._record(job, destination, was="stored", state="delivered", **_FINE):
                    labels = {"destination": destination, "outcome": "committed"}
                    self._metrics.committed_instances.labels(**labels).inc(len(wanted))
                    self._observe_turnaround(job, destination, "committed")
                    log.info("delivery_committed", job_id=job.job_id, destination=destination)
                self._committing.close(delivery)
            case Waiting():
                pass

    def _not_committed(self, job: Row[Any], row: Row[Any], error: DeliveryError) -> Next:
        """Send again what the destination doesn't keep."""
        now = self._begun(job, row.destination)
        if now is None or now.state != "stored":  # another turn saw the same report
            return STOP
        labels = {"destination": row.destination, "outcome": "failed"}
        self._metrics.committed_instances.labels(**labels).inc()
        outcome = self._failed(job, now, error, state="pending", attempt=now.attempts)
        self._committing.close(_delivery(job, row.destination))
        return outcome

    def _stored(
        self, job: Row[Any], destination: str, attempt: int, stored: tuple[Stored, ...], *, state: str
    ) -> None:
        warnings = [each.warning for each in stored if each.warning]
        for outcome, count in (("warning", len(warnings)), ("stored", len(stored) - len(warnings))):
            self._metrics.delivered_instances.labels(destination=destination, outcome=outcome).inc(count)
        self._metrics.deliveries.labels(destination=destination, outcome="delivered").inc()
        log.info(
            "delivered",
            job_id=job.job_id,
            destination=destination,
            attempt=attempt,
            objects=len(stored),
            warnings=len(warnings),
        )
        self._record(job, destination, state=state, attempts=attempt, warnings=warnings or None, **_FINE)
        self._observe_turnaround(job, destination, "stored")

    def _postponed(self, job: Row[Any], row: Row[Any], postponed: Postponed) -> Next:
        gate = self._gates[row.destination]
        if time.time() - row.begun_at >= gate.options.give_up_seconds:
            gave_up = DeliveryError(f"{postponed}; given up", code=postponed.code, retryable=False)
            return self._failed(job, row, gave_up, attempt=row.attempts)
        self._metrics.deliveries.labels(destination=row.destination, outcome="postponed").inc()
        why = self._why(row.destination, postponed.code, str(postponed))
        if str(postponed) != row.last_error:  # once, however often it is looked at again
            log.warning(
                "delivery_postponed",
                job_id=job.job_id,
                destination=row.destination,
                code=why.code,
                reason=why.sentence,
            )
        self._record(job, row.destination, last_error=str(postponed), reason_code=why.code)
        return again_in(postponed.retry_in_seconds)

    def _failed(
        self,
        job: Row[Any],
        row: Row[Any],
        error: NodeError,
        *,
        state: str | None = None,
        attempt: int | None = None,
    ) -> Next:
        """state: to try again in, if not the row's.  attempt: its number, if this isn't one more."""
        destination = row.destination
        attempt = row.attempts + 1 if attempt is None else attempt
        wait = self._wait(row, error, attempt)
        outcome = "failed" if wait is None else "retried"
        self._metrics.deliveries.labels(destination=destination, outcome=outcome).inc()
        why = self._why(destination, error.code, str(error))
        log.warning(
            f"delivery_{outcome}",
            job_id=job.job_id,
            destination=destination,
            attempt=attempt,
            code=why.code,
            reason=why.sentence,
            hint=error.hint,
            retry_in_seconds=wait,
        )
        state = "failed" if wait is None else state or row.state
        values = {
            "state": state,
            "attempts": attempt,
            "last_error": str(error),
            "reason_code": error.code,
        }
        if not self._record(job, destination, was=row.state, **values):
            return STOP  # a report has come meanwhile, or ops asked for the job again
        if wait is not None:
            return again_in(wait)
        self._finish_if_settled(job)
        return STOP

    def _why(self, destination: str, code: str, detail: str) -> Reason:
        """Counts it."""
        self._metrics.delivery_failures.labels(destination=destination, code=code).inc()
        return worded(Kind.DELIVERY, code, detail, destination)

    def _wait(self, row: Row[Any], error: NodeError, attempt: int) -> float | None:
        """How long until the next attempt; None when there is none."""
        gate = self._gates.get(row.destination)
        if gate is None or not error.retryable or attempt >= gate.options.max_attempts:
            return None
        if time.time() - row.begun_at >= gate.options.give_up_seconds:
            return None
        return gate.retry_wait(max(1, attempt), error)

    def _finish_if_settled(self, job: Row[Any]) -> None:
        """End the job when all of its deliveries are settled."""
        with self._engine.connect() as connection:
            rows = connection.execute(select(deliveries).where(deliveries.c.job_id == job.job_id)).all()
        if any(row.state in UNSETTLED for row in rows):
            return
        if "no_result" in self._results.read_summary(Path(job.result_dir)):
            self._end(job, "failed", job.reason_code, job.reason)  # as it was when it began to deliver that
            return
        failed = [row for row in rows if row.state == "failed"]
        if failed:
            reason = "; ".join(str(row.last_error) for row in failed)
            if self._end(job, "failed", "delivery_failed", reason):
                why = worded(Kind.ENDED, "delivery_failed", reason)
                log.error("job_failed", job_id=job.job_id, code=why.code, reason=why.sentence)
            return
        if self._end(job, "done", None, None):
            turnaround = self._turnaround(job)
            self._metrics.turnaround_seconds.labels(job.pipeline).observe(turnaround)
            log.info("job_done", job_id=job.job_id, turnaround_seconds=round(turnaround, 1))

    def _turnaround(self, job: Row[Any]) -> float:
        """Seconds since the last instance of the job's series."""
        last = select(series.c.last_instance_at).where(
            series.c.series_instance_uid == job.series_instance_uid, series.c.version == job.series_version
        )
        with self._engine.connect() as connection:
            return time.time() - float(connection.execute(last).scalar_one())

    def _observe_turnaround(self, job: Row[Any], destination: str, until: str) -> None:
        histogram = self._metrics.delivery_turnaround_seconds
        histogram.labels(destination=destination, until=until).observe(self._turnaround(job))

    def _end(self, job: Row[Any], state: str, code: str | None, reason: str | None) -> bool:
        """End a job; False if it had ended already, which two deliveries that end together may both try."""
        this = (jobs.c.job_id == job.job_id, jobs.c.generation == job.generation, jobs.c.state.in_(ACTIVE))
        values = {"state": state, "finished_at": time.time(), "reason_code": code, "reason": reason}
        with write_transaction(self._engine) as connection:
            if connection.execute(update(jobs).where(*this).values(**values)).rowcount != 1:
                return False
            if state == "done":
                self._on_done(connection, job)
        counter = self._metrics.jobs_finished
        counter.labels(pipeline=job.pipeline, state=state, code=code or "none").inc()
        return True

    def _job(self, job_id: str) -> Row[Any] | None:
        with self._engine.connect() as connection:
            return connection.execute(select(jobs).where(jobs.c.job_id == job_id)).one_or_none()

    def _begun(self, job: Row[Any], destination: str) -> Row[Any] | None:
        """The delivery's row; from its first turn on it knows when that was."""
        this = (deliveries.c.job_id == job.job_id, deliveries.c.destination == destination)
        with write_transaction(self._engine) as connection:
            first = update(deliveries).where(*this, deliveries.c.begun_at.is_(None))
            connection.execute(first.values(begun_at=time.time()))
            return connection.execute(select(deliveries).where(*this)).one_or_none()

    def _record(self, job: Row[Any], destination: str, *, was: str | None = None, **values: Any) -> bool:
        """Note how a delivery stands, unless ops asked for the job again meanwhile, or it isn't what it
        ``was``; whether it was noted."""
        same_generation = (
            select(jobs.c.job_id)
            .where(jobs.c.job_id == job.job_id, jobs.c.generation == job.generation)
            .scalar_subquery()
        )
        with write_transaction(self._engine) as connection:
            this = update(deliveries).where(
                deliveries.c.job_id == same_generation, deliveries.c.destination == destination
            )
            if was is not None:
                this = this.where(deliveries.c.state == was)
            return connection.execute(this.values(updated_at=time.time(), **values)).rowcount == 1


class _NotCommitted(Exception):
    """Of a DeliveryError."""


def _delivery(job: Row[Any], destination: str) -> Delivery:
    return Delivery(job.job_id, job.generation, destination)
