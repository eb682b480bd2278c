"""The steps of a job: each idempotent, each returning what is to happen next as plain JSON values.

``execute`` runs the pipeline once (a result set that is already there is used as it is); ``deliver`` hands
it to one destination. Both may be killed anywhere and called again with the same arguments.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

import structlog
from sqlalchemy import Engine, Row, select, update
from sqlalchemy.dialects.sqlite import insert

from node import __version__
from node.config import NodeConfig
from node.database import deliveries, jobs, series, write_transaction
from node.deliver import Deliverer
from node.errors import DeliveryError, NodeError, WorkerCrashed
from node.metrics import Metrics
from node.receive.series import instance_paths
from node.run.worker_pool import OnProgress, PipelineFailed, WorkerPool
from pipelines.errors import InferenceUnavailable
from pipelines.process import SUMMARY, Request

log = structlog.get_logger(__name__)

#: a job that waits for Triton asks again at least this often
MAX_WAIT_FOR_TRITON_SECONDS = 60.0


class Next(TypedDict):
    """What a step asks of the workflow: deliver to ``destinations``, and/or the same step again later."""

    destinations: list[str]
    retry_in_seconds: float | None


STOP = Next(destinations=[], retry_in_seconds=None)


@dataclass(frozen=True)
class Services:
    """What the steps work with."""

    config: NodeConfig
    engine: Engine
    pool: WorkerPool
    deliverers: Mapping[str, Deliverer]
    metrics: Metrics
    triton_url: Callable[[], str]


class Steps:
    """The steps of all jobs of one node."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def execute(self, job_id: str, attempt: int) -> Next:
        """Run the job's pipeline; attempt counts from 1."""
        job = self._job(job_id)
        if job is None or job.state == "cancelled":
            return STOP
        started = time.time()
        self._set(job_id, state="running", started_at=job.started_at or started)
        if job.started_at is None:
            self._services.metrics.queue_wait_seconds.labels(job.pipeline).observe(started - job.created_at)
        folder = Path("results") / job_id
        try:
            summary = self._result_set(job, folder)
        except (PipelineFailed, WorkerCrashed) as error:
            return self._execution_failed(job, error, attempt)
        if self._state(job_id) == "cancelled":
            return STOP
        now = time.time()
        with write_transaction(self._services.engine) as connection:
            connection.execute(
                update(jobs)
                .where(jobs.c.job_id == job_id)
                .values(state="delivering", result_dir=str(folder), reason_code=None, reason=None)
            )
            for destination in job.destinations:
                row = {"job_id": job_id, "destination": destination, "state": "pending", "updated_at": now}
                connection.execute(insert(deliveries).values(row).on_conflict_do_nothing())
        log.info(
            "job_ran",
            job_id=job_id,
            series_instance_uid=job.series_instance_uid,
            case_type=summary["case_type"],
            noisy_or=summary["noisy_or"],
            regions=len(summary["findings"]),
            timings_seconds=summary["timings_seconds"],
        )
        return Next(destinations=list(job.destinations), retry_in_seconds=None)

    def deliver(self, job_id: str, destination: str, attempt: int) -> Next:
        """Hand the job's result set to one destination; attempt counts from 1."""
        job = self._job(job_id)
        if job is None or job.state == "cancelled":
            return STOP
        services = self._services
        context = {"job_id": job_id, "destination": destination, "attempt": attempt}
        summary = self._read_summary(Path(job.result_dir))
        folder = services.config.data_dir / job.result_dir
        started = time.monotonic()
        try:
            deliverer = services.deliverers.get(destination)
            if deliverer is None:
                raise DeliveryError(
                    f"destination {destination} is no longer configured",
                    code="destination_removed",
                    hint="configure it again and retry the job",
                    retryable=False,
                )
            deliverer.deliver([folder / result["path"] for result in summary["results"]])
        except DeliveryError as error:
            return self._delivery_failed(job, destination, error, attempt)
        services.metrics.delivery_seconds.labels(destination).observe(time.monotonic() - started)
        services.metrics.deliveries.labels(destination=destination, outcome="delivered").inc()
        log.info("delivered", **context, objects=len(summary["results"]))
        self._record_delivery(job_id, destination, state="delivered", attempts=attempt, last_error=None)
        self._finish_if_settled(job)
        return STOP

    def _result_set(self, job: Row[Any], folder: Path) -> dict[str, Any]:
        """Make the result set unless it is there; it appears under its name only when it is whole."""
        services = self._services
        config = services.config
        final = config.data_dir / folder
        if (final / SUMMARY).is_file():
            return self._read_summary(folder)
        partial = final.with_name(final.name + ".partial")
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
        summary = services.pool.run(
            request,
            _log_progress(job.job_id),
            triton_url=services.triton_url(),
            request_timeout_seconds=config.triton.request_timeout_seconds,
            step_timeout_seconds=config.run.step_timeout_seconds,
        )
        partial.replace(final)
        _fsync_folder(final.parent)
        for stage, seconds in summary["timings_seconds"].items():
            services.metrics.stage_seconds.labels(pipeline=job.pipeline, stage=stage).observe(seconds)
        return summary

    def _execution_failed(self, job: Row[Any], error: NodeError, attempt: int) -> Next:
        run = self._services.config.run
        waits_for_triton = error.code == InferenceUnavailable.code
        if error.retryable and (waits_for_triton or attempt < run.max_attempts):
            limit = MAX_WAIT_FOR_TRITON_SECONDS if waits_for_triton else run.step_timeout_seconds
            delay = min(run.retry_seconds * 2 ** min(attempt - 1, 20), limit)
            self._set(job.job_id, state="queued", reason_code=error.code, reason=str(error))
            log.warning(
                "job_retried",
                job_id=job.job_id,
                attempt=attempt,
                code=error.code,
                reason=str(error),
                retry_in_seconds=delay,
            )
            return Next(destinations=[], retry_in_seconds=delay)
        self._end(job, "failed", error.code, str(error))
        log.error("job_failed", job_id=job.job_id, code=error.code, reason=str(error), hint=error.hint)
        return STOP

    def _delivery_failed(self, job: Row[Any], destination: str, error: DeliveryError, attempt: int) -> Next:
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
        self._record_delivery(job.job_id, destination, state=state, attempts=attempt, last_error=str(error))
        if again:
            return Next(destinations=[], retry_in_seconds=delay)
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
            self._end(job, "failed", "delivery_failed", "; ".join(str(row.last_error) for row in failed))
            log.error("job_failed", job_id=job.job_id, code="delivery_failed")
            return
        self._end(job, "done", None, None)
        turnaround = time.time() - last_instance_at
        self._services.metrics.turnaround_seconds.labels(job.pipeline).observe(turnaround)
        log.info("job_done", job_id=job.job_id, turnaround_seconds=round(turnaround, 1))

    def _end(self, job: Row[Any], state: str, code: str | None, reason: str | None) -> None:
        self._set(job.job_id, state=state, finished_at=time.time(), reason_code=code, reason=reason)
        counter = self._services.metrics.jobs_finished
        counter.labels(pipeline=job.pipeline, state=state, code=code or "none").inc()

    def _job(self, job_id: str) -> Row[Any] | None:
        with self._services.engine.connect() as connection:
            return connection.execute(select(jobs).where(jobs.c.job_id == job_id)).one_or_none()

    def _state(self, job_id: str) -> str:
        with self._services.engine.connect() as connection:
            return str(connection.execute(select(jobs.c.state).where(jobs.c.job_id == job_id)).scalar_one())

    def _set(self, job_id: str, **values: Any) -> None:
        with write_transaction(self._services.engine) as connection:
            connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(**values))

    def _record_delivery(self, job_id: str, destination: str, **values: Any) -> None:
        with write_transaction(self._services.engine) as connection:
            connection.execute(
                update(deliveries)
                .where(deliveries.c.job_id == job_id, deliveries.c.destination == destination)
                .values(updated_at=time.time(), **values)
            )

    def _read_summary(self, folder: Path) -> dict[str, Any]:
        text = (self._services.config.data_dir / folder / SUMMARY).read_text(encoding="utf-8")
        summary: dict[str, Any] = json.loads(text)
        return summary


def _log_progress(job_id: str) -> OnProgress:
    """Log the start of each stage, and every tenth of its work."""
    last: dict[str, int] = {}

    def on_progress(stage: str, done: int, total: int) -> None:
        tenth = done * 10 // total if total else 0
        if last.get(stage) != tenth:
            last[stage] = tenth
            log.info("job_progress", job_id=job_id, stage=stage, done=done, total=total)

    return on_progress


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
