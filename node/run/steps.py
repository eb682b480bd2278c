"""The steps of a job: each idempotent, each returning what is to happen next as plain JSON values.

``execute`` runs the pipeline once (a result set that is already there is used as it is); ``deliver`` hands
it to one destination. Both may be killed anywhere and called again with the same arguments. A step of a job
that was cancelled, or that ops asked for again since (``generation``), changes nothing. Whatever goes wrong
ends as a recorded reason, never as a job that hangs (DESIGN I9).
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import structlog
from sqlalchemy import Connection, Row, select, update
from sqlalchemy.dialects.sqlite import insert

from node.database import deliveries, jobs, series, write_transaction
from node.errors import DeliveryError, NodeError
from node.run.results import PREDECESSOR_RUNNING, ResultSets, Services
from node.run.worker_pool import NODE_STOPPING
from pipelines.errors import InferenceUnavailable

log = structlog.get_logger(__name__)

#: a job that waits for Triton asks again at least this often
MAX_WAIT_FOR_TRITON_SECONDS = 60.0
#: the job is not to blame for these: they don't count against ``run.max_attempts``
BLAMELESS = (InferenceUnavailable.code, NODE_STOPPING, PREDECESSOR_RUNNING)
#: the states in which a step has something to do
ACTIVE = ("queued", "running", "delivering")


class Next(TypedDict):
    """What a step asks of the workflow: deliver to ``destinations``, and/or the same step again later.

    failures: how many of the attempts so far count against ``run.max_attempts``.
    """

    destinations: list[str]
    retry_in_seconds: float | None
    failures: int


STOP = Next(destinations=[], retry_in_seconds=None, failures=0)


class Steps:
    """The steps of all jobs of one node."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._maker = ResultSets(services)

    def execute(self, job_id: str, generation: int, attempt: int, failures: int) -> Next:
        """Run the job's pipeline. attempt counts from 1; failures: those before that count."""
        started = time.time()
        job = self._job(job_id)
        if job is None or not self._change(job_id, generation, state="running"):
            return STOP
        if job.started_at is None:
            self._change(job_id, generation, started_at=started)
            self._services.metrics.queue_wait_seconds.labels(job.pipeline).observe(started - job.created_at)
        folder = Path("results") / job_id
        try:
            with _recorded():
                summary = self._maker.result_set(job, folder)
        except NodeError as error:
            return self._execution_failed(job, error, attempt, failures)
        if not self._begin_delivering(job, folder):
            return STOP
        log.info(
            "job_ran",
            job_id=job_id,
            series_instance_uid=job.series_instance_uid,
            case_type=summary["case_type"],
            noisy_or=summary["noisy_or"],
            regions=len(summary["findings"]),
            timings_seconds=summary["timings_seconds"],
        )
        return Next(destinations=list(job.destinations), retry_in_seconds=None, failures=failures)

    def deliver(self, job_id: str, destination: str, generation: int, attempt: int) -> Next:
        """Hand the job's result set to one destination; attempt counts from 1."""
        job = self._job(job_id)
        if job is None or job.state not in ACTIVE or job.generation != generation:
            return STOP
        services = self._services
        started = time.monotonic()
        try:
            with _recorded():
                objects = self._hand_over(job, destination)
        except NodeError as error:
            return self._delivery_failed(job, destination, error, attempt)
        services.metrics.delivery_seconds.labels(destination).observe(time.monotonic() - started)
        services.metrics.deliveries.labels(destination=destination, outcome="delivered").inc()
        log.info("delivered", job_id=job_id, destination=destination, attempt=attempt, objects=objects)
        self._record_delivery(job, destination, state="delivered", attempts=attempt, last_error=None)
        self._finish_if_settled(job)
        return STOP

    def _begin_delivering(
        self, job: Row[Any], folder: Path, why: tuple[str | None, str | None] = (None, None)
    ) -> bool:
        """Note the result set and its deliveries; False if the job was cancelled meanwhile.

        why: code and reason, of a set that only says why there is no result.
        """
        code, reason = why
        with write_transaction(self._services.engine) as connection:
            values = {"state": "delivering", "result_dir": str(folder), "reason_code": code, "reason": reason}
            if not _change(connection, job.job_id, job.generation, values):
                return False
            for destination in job.destinations:
                row = {
                    "job_id": job.job_id,
                    "destination": destination,
                    "state": "pending",
                    "updated_at": time.time(),
                }
                connection.execute(insert(deliveries).values(row).on_conflict_do_nothing())
        return True

    def _hand_over(self, job: Row[Any], destination: str) -> int:
        """Deliver; returns the number of objects."""
        deliverer = self._services.deliverers.get(destination)
        if deliverer is None:
            raise DeliveryError(
                f"destination {destination} is no longer configured",
                code="destination_removed",
                hint="configure it again and retry the job",
                retryable=False,
            )
        files = self._maker.files_for(job, destination)
        deliverer.deliver(files)
        return len(files)

    def _execution_failed(self, job: Row[Any], error: NodeError, attempt: int, failures: int) -> Next:
        run = self._services.config.run
        if error.code not in BLAMELESS:
            failures += 1
        if not error.retryable or failures >= run.max_attempts:
            if self._say_why(job, error):
                return Next(destinations=list(job.destinations), retry_in_seconds=None, failures=failures)
            if self._end(job, "failed", error.code, str(error)):
                log.error(
                    "job_failed", job_id=job.job_id, code=error.code, reason=str(error), hint=error.hint
                )
            return STOP
        limit = MAX_WAIT_FOR_TRITON_SECONDS if error.code in BLAMELESS else run.step_timeout_seconds
        delay = min(run.retry_seconds * 2 ** min(attempt - 1, 20), limit)
        if not self._change(
            job.job_id, job.generation, state="queued", reason_code=error.code, reason=str(error)
        ):
            return STOP
        log.warning(
            "job_retried",
            job_id=job.job_id,
            attempt=attempt,
            code=error.code,
            reason=str(error),
            retry_in_seconds=delay,
        )
        return Next(destinations=[], retry_in_seconds=delay, failures=failures)

    def _say_why(self, job: Row[Any], error: NodeError) -> bool:
        """Begin to deliver what says why there is no result, where that is wanted and can be made."""
        if self._services.config.results.no_result == "none" or not job.destinations:
            return False
        folder = Path("results") / job.job_id
        try:
            with _recorded():
                self._maker.no_result(job, folder, error.code, str(error))
        except NodeError as another:
            log.warning("no_result_not_made", job_id=job.job_id, code=another.code, reason=str(another))
            return False
        log.error("job_failed", job_id=job.job_id, code=error.code, reason=str(error), hint=error.hint)
        return self._begin_delivering(job, folder, (error.code, str(error)))

    def _delivery_failed(self, job: Row[Any], destination: str, error: NodeError, attempt: int) -> Next:
        services = self._services
        target = services.config.destinations.get(destination)
        again = error.retryable and target is not None and attempt < target.max_attempts
        delay = (
            min(target.retry_seconds * 2 ** min(attempt - 1, 20), target.max_retry_seconds) if target else 0.0
        )
        outcome = "retried" if again else "failed"
        services.metrics.deliveries.labels(destination=destination, outcome=outcome).inc()
        log.warning(
            f"delivery_{outcome}",
            job_id=job.job_id,
            destination=destination,
            attempt=attempt,
            code=error.code,
            reason=str(error),
            hint=error.hint,
            retry_in_seconds=delay if again else None,
        )
        state = "pending" if again else "failed"
        self._record_delivery(job, destination, state=state, attempts=attempt, last_error=str(error))
        if again:
            return Next(destinations=[], retry_in_seconds=delay, failures=0)
        self._finish_if_settled(job)
        return STOP

    def _finish_if_settled(self, job: Row[Any]) -> None:
        with self._services.engine.connect() as connection:
            rows = connection.execute(select(deliveries).where(deliveries.c.job_id == job.job_id)).all()
            last_instance_at = connection.execute(
                select(series.c.last_instance_at).where(
                    series.c.series_instance_uid == job.series_instance_uid,
                    series.c.version == job.series_version,
                )
            ).scalar_one()
        if any(row.state == "pending" for row in rows):
            return
        if why := self._maker.read_summary(Path(job.result_dir)).get("no_result"):
            self._end(job, "failed", why["code"], why["reason"])
            return
        failed = [row for row in rows if row.state == "failed"]
        if failed:
            reason = "; ".join(str(row.last_error) for row in failed)
            if self._end(job, "failed", "delivery_failed", reason):
                log.error("job_failed", job_id=job.job_id, code="delivery_failed", reason=reason)
            return
        if self._end(job, "done", None, None):
            turnaround = time.time() - last_instance_at
            self._services.metrics.turnaround_seconds.labels(job.pipeline).observe(turnaround)
            log.info("job_done", job_id=job.job_id, turnaround_seconds=round(turnaround, 1))

    def _end(self, job: Row[Any], state: str, code: str | None, reason: str | None) -> bool:
        """End a job; False if it had ended already, which two deliveries that end together may both try."""
        values = {"state": state, "finished_at": time.time(), "reason_code": code, "reason": reason}
        if not self._change(job.job_id, job.generation, **values):
            return False
        counter = self._services.metrics.jobs_finished
        counter.labels(pipeline=job.pipeline, state=state, code=code or "none").inc()
        return True

    def _job(self, job_id: str) -> Row[Any] | None:
        with self._services.engine.connect() as connection:
            return connection.execute(select(jobs).where(jobs.c.job_id == job_id)).one_or_none()

    def _change(self, job_id: str, generation: int, **values: Any) -> bool:
        with write_transaction(self._services.engine) as connection:
            return _change(connection, job_id, generation, values)

    def _record_delivery(self, job: Row[Any], destination: str, **values: Any) -> None:
        """Note how a delivery stands, unless ops asked for the job again meanwhile."""
        same_generation = (
            select(jobs.c.job_id)
            .where(jobs.c.job_id == job.job_id, jobs.c.generation == job.generation)
            .scalar_subquery()
        )
        with write_transaction(self._services.engine) as connection:
            connection.execute(
                update(deliveries)
                .where(deliveries.c.job_id == same_generation, deliveries.c.destination == destination)
                .values(updated_at=time.time(), **values)
            )


def _change(connection: Connection, job_id: str, generation: int, values: dict[str, Any]) -> bool:
    """Change a job that is still active in this generation; False, and nothing changed, if it isn't."""
    current = (jobs.c.job_id == job_id, jobs.c.generation == generation, jobs.c.state.in_(ACTIVE))
    return connection.execute(update(jobs).where(*current).values(**values)).rowcount == 1


@contextmanager
def _recorded() -> Iterator[None]:
    """The boundary of a step: every failure leaves it as a NodeError, which the job then records."""
    try:
        yield
    except NodeError:
        raise
    except OSError as error:
        raise NodeError(
            f"{error.filename or 'data_dir'}: {error.strerror or type(error).__name__}",
            code="io_error",
            hint="is the disk full or read-only, or was a file removed?",
            retryable=True,
        ) from error
    except Exception as error:
        # frames only: the message may quote patient data
        log.error("step_broke", error=type(error).__name__, frames=traceback.format_tb(error.__traceback__))
        raise NodeError(
            f"unexpected {type(error).__name__}",
            code="internal",
            hint="a defect of ours: the log has the traceback",
        ) from error
