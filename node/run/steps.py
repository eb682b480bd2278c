"""The steps of a job: each idempotent, each returning what is to happen next as plain JSON values.

``execute`` runs the pipeline once (a result set that is already there is used as it is); ``deliver`` hands
it to one destination. Both may be killed anywhere and called again with the same arguments. A step of a job
that was cancelled, or that ops asked for again since (``generation``), changes nothing; nor does a run that
another node has taken over (``membership``). Whatever goes wrong ends as a recorded reason, never as a job
that hangs (DESIGN I9).
"""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

import structlog
from sqlalchemy import Connection, Engine, Row, select, update

from node import __version__
from node.config import NodeConfig
from node.database import deliveries, insert_if_new, jobs, series, write_transaction
from node.deliver import Deliverer
from node.errors import DeliveryError, NodeError
from node.files import fsync_folder
from node.metrics import Metrics
from node.receive.series import instance_paths
from node.run.membership import Membership
from node.run.worker_pool import NODE_STOPPING, OnProgress, WorkerPool
from pipelines.errors import InferenceUnavailable
from pipelines.request import SUMMARY, Request

log = structlog.get_logger(__name__)

#: a job that waits for Triton asks again at least this often
MAX_WAIT_FOR_TRITON_SECONDS = 60.0
#: how often a job that waits for Triton looks whether it was cancelled
TRITON_LOOK_SECONDS = 2.0
#: the job is not to blame for these: they don't count against ``run.max_attempts``
BLAMELESS = (InferenceUnavailable.code, NODE_STOPPING)
#: a run that another node took over is done again after so long, if its workflow is still ours
TAKEN_OVER_SECONDS = 1.0
#: the states in which a step has something to do
ACTIVE = ("queued", "running", "delivering")


class _TakenOver(Exception):
    """Another node goes on with what this run began."""


class Next(TypedDict):
    """What a step asks of the workflow: deliver to ``destinations``, and/or the same step again later.

    failures: how many of the attempts so far count against ``run.max_attempts``.
    """

    destinations: list[str]
    retry_in_seconds: float | None
    failures: int


STOP = Next(destinations=[], retry_in_seconds=None, failures=0)


@dataclass(frozen=True)
class Services:
    """What the steps work with."""

    config: NodeConfig
    engine: Engine
    pool: WorkerPool
    deliverers: Mapping[str, Deliverer]
    metrics: Metrics
    triton_url: Callable[[], str]
    #: whether Triton is ready within so many seconds; True as well when the node is stopping
    triton_ready: Callable[[float], bool] = lambda _seconds: True
    membership: Membership | None = None  # where nodes share the database


@dataclass(frozen=True)
class _Run:
    """One call of ``execute``: it counts while job and node stand as they did at its beginning."""

    job: Row[Any]
    epoch: int | None

    @property
    def folder(self) -> Path:
        """Of the result set, relative to data_dir."""
        return Path("results") / str(self.job.job_id)


class Steps:
    """The steps of all jobs of one node."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def epoch(self) -> int | None:
        """What a run that begins now begins with: others raise it when they take this node's jobs over."""
        membership = self._services.membership
        return None if membership is None else membership.epoch

    def execute(
        self, job_id: str, generation: int, attempt: int, failures: int, epoch: int | None = None
    ) -> Next:
        """Run the job's pipeline. attempt counts from 1; failures: those before that count; epoch: when the
        workflow was begun."""
        started = time.time()
        job = self._job(job_id)
        if job is None or job.generation != generation:
            return STOP
        run = _Run(job, epoch)
        begun = {"state": "running", "started_at": job.started_at or started}
        try:
            if not self._wait_for_triton(run) or not self._change(run, begun):
                return STOP
            if job.started_at is None:
                waited = started - job.created_at
                self._services.metrics.queue_wait_seconds.labels(job.pipeline).observe(waited)
            try:
                with _recorded():
                    summary = self._result_set(run)
            except NodeError as error:
                return self._execution_failed(run, error, attempt, failures)
            if not self._begin_delivering(run):
                return STOP
        except _TakenOver:
            # the workflow engine drops this answer when the workflow is another's, too; else it is done again
            log.warning("run_taken_over", job_id=job_id, attempt=attempt)
            return Next(destinations=[], retry_in_seconds=TAKEN_OVER_SECONDS, failures=failures)
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
        if self._is_delivered(job, destination):  # by a workflow that ended before it could say so
            self._finish_if_settled(job)
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

    def _wait_for_triton(self, run: _Run) -> bool:
        """Hold the job and its place in the queue while no Triton is ready: then those behind it begin in the
        order of their priorities. False when the job was cancelled meanwhile."""
        ready = self._services.triton_ready
        if ready(0.0):
            return True
        waits = {"reason_code": InferenceUnavailable.code, "reason": "waits for Triton to be ready"}
        if not self._change(run, waits):
            return False
        log.warning("job_waits_for_triton", job_id=run.job.job_id)
        while not ready(TRITON_LOOK_SECONDS):
            job = self._job(run.job.job_id)
            if job is None or job.generation != run.job.generation or job.state not in ACTIVE:
                return False
        return self._change(run, {"reason_code": None, "reason": None})

    def _begin_delivering(self, run: _Run) -> bool:
        """Note the result set and its deliveries; False if the job was cancelled meanwhile."""
        job = run.job
        with self._ours(run.epoch) as connection:
            values = {
                "state": "delivering",
                "result_dir": str(run.folder),
                "reason_code": None,
                "reason": None,
            }
            if not _change(connection, job, values):
                return False
            for destination in job.destinations:
                row = {
                    "job_id": job.job_id,
                    "destination": destination,
                    "state": "pending",
                    "updated_at": time.time(),
                }
                insert_if_new(connection, deliveries, row)
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
        summary = self._read_summary(Path(job.result_dir))
        folder = self._services.config.data_dir / job.result_dir
        deliverer.deliver([folder / result["path"] for result in summary["results"]])
        return len(summary["results"])

    def _result_set(self, run: _Run) -> dict[str, Any]:
        """Make the result set unless it is there; it appears under its name only when it is whole."""
        services, job, folder = self._services, run.job, run.folder
        config = services.config
        final = config.data_dir / folder
        if (final / SUMMARY).is_file():
            return self._read_summary(folder)
        # of this run alone: a cancelled generation's, or one that was taken over, may not have ended yet
        whose = "" if run.epoch is None else f"-{config.node_id}-{run.epoch}"
        partial = final.with_name(f"{final.name}.partial-{job.generation}{whose}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with services.engine.connect() as connection:
            paths = instance_paths(connection, config.data_dir, job.series_instance_uid, job.series_version)
        request = Request(
            pipeline=job.pipeline,
            paths=tuple(paths),
            out=partial,
            software_version=__version__,
            content_datetime=datetime.fromtimestamp(int(job.created_at), UTC),
            clinical_use=config.results.clinical_use,
            uid_root=config.results.uid_root,
        )
        try:
            summary = services.pool.run(
                request,
                _log_progress(job.job_id),
                triton_url=services.triton_url(),
                request_timeout_seconds=config.triton.request_timeout_seconds,
                access=config.triton.access(),
                priority=job.priority,
                step_timeout_seconds=config.run.step_timeout_seconds,
            )
            with self._ours(run.epoch):
                if (final / SUMMARY).is_file():  # the run of another generation ended first
                    return self._read_summary(folder)
                partial.replace(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        if run.epoch is not None:  # what runs of nodes that are gone left
            for left in final.parent.glob(f"{final.name}.partial-*"):
                shutil.rmtree(left, ignore_errors=True)
        fsync_folder(final.parent)
        for stage, seconds in summary["timings_seconds"].items():
            services.metrics.stage_seconds.labels(pipeline=job.pipeline, stage=stage).observe(seconds)
        return summary

    def _execution_failed(self, run: _Run, error: NodeError, attempt: int, failures: int) -> Next:
        config, job = self._services.config.run, run.job
        if error.code not in BLAMELESS:
            failures += 1
        if not error.retryable or failures >= config.max_attempts:
            if self._end(job, "failed", error.code, str(error), epoch=run.epoch):
                log.error(
                    "job_failed", job_id=job.job_id, code=error.code, reason=str(error), hint=error.hint
                )
            return STOP
        limit = MAX_WAIT_FOR_TRITON_SECONDS if error.code in BLAMELESS else config.step_timeout_seconds
        delay = min(config.retry_seconds * 2 ** min(attempt - 1, 20), limit)
        if not self._change(run, {"state": "queued", "reason_code": error.code, "reason": str(error)}):
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

    def _is_delivered(self, job: Row[Any], destination: str) -> bool:
        this = (deliveries.c.job_id == job.job_id, deliveries.c.destination == destination)
        with self._services.engine.connect() as connection:
            state = connection.execute(select(deliveries.c.state).where(*this)).scalar_one_or_none()
        return state == "delivered"

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

    def _end(
        self, job: Row[Any], state: str, code: str | None, reason: str | None, *, epoch: int | None = None
    ) -> bool:
        """End a job; False if it had ended already, which two deliveries that end together may both try."""
        values = {"state": state, "finished_at": time.time(), "reason_code": code, "reason": reason}
        if not self._change(_Run(job, epoch), values):
            return False
        counter = self._services.metrics.jobs_finished
        counter.labels(pipeline=job.pipeline, state=state, code=code or "none").inc()
        return True

    def _job(self, job_id: str) -> Row[Any] | None:
        with self._services.engine.connect() as connection:
            return connection.execute(select(jobs).where(jobs.c.job_id == job_id)).one_or_none()

    def _change(self, run: _Run, values: dict[str, Any]) -> bool:
        with self._ours(run.epoch) as connection:
            return _change(connection, run.job, values)

    @contextmanager
    def _ours(self, epoch: int | None) -> Iterator[Connection]:
        """A transaction in which a run that began with this epoch is ours to finish, and nobody can take it
        over before the transaction's end. Raises _TakenOver."""
        membership = self._services.membership
        with write_transaction(self._services.engine) as connection:
            if membership is not None and epoch is not None and not membership.is_current(connection, epoch):
                raise _TakenOver
            yield connection

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

    def _read_summary(self, folder: Path) -> dict[str, Any]:
        text = (self._services.config.data_dir / folder / SUMMARY).read_text(encoding="utf-8")
        summary: dict[str, Any] = json.loads(text)
        return summary


def _change(connection: Connection, job: Row[Any], values: dict[str, Any]) -> bool:
    """Change a job that is still active in its generation; False, and nothing changed, if it isn't."""
    current = (jobs.c.job_id == job.job_id, jobs.c.generation == job.generation, jobs.c.state.in_(ACTIVE))
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


def _log_progress(job_id: str) -> OnProgress:
    """Log the start of each stage, and every tenth of its work."""
    last: dict[str, int] = {}

    def on_progress(stage: str, done: int, total: int) -> None:
        tenth = done * 10 // total if total else 0
        if last.get(stage) != tenth:
            last[stage] = tenth
            log.info("job_progress", job_id=job_id, stage=stage, done=done, total=total)

    return on_progress
