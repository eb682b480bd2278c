"""The steps of a job: each idempotent, each returning what is to happen next as plain JSON values.

``execute`` runs the pipeline once (a result set that is already there is used as it is); ``deliver`` hands
it to one destination. Both may be killed anywhere and called again with the same arguments. A step of a job
that was cancelled, or that ops asked for again since (``generation``), changes nothing. Whatever goes wrong
ends as a recorded reason, never as a job that hangs (DESIGN I9).
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection, Engine, Row, select, update
from sqlalchemy.dialects.sqlite import insert

from node import __version__
from node.config import NodeConfig
from node.database import deliveries, jobs, write_transaction
from node.deliver.gate import Gate
from node.errors import NodeError
from node.files import fsync_folder
from node.metrics import Metrics
from node.receive.series import instance_paths
from node.run.boundary import ACTIVE, STOP, Next, recorded
from node.run.delivering import Delivering
from node.run.worker_pool import NODE_STOPPING, OnProgress, WorkerPool
from pipelines.errors import InferenceUnavailable
from pipelines.request import SUMMARY, Request

__all__ = ["STOP", "Next", "Services", "Steps"]

log = structlog.get_logger(__name__)

#: a job that waits for Triton asks again at least this often
MAX_WAIT_FOR_TRITON_SECONDS = 60.0
#: the job is not to blame for these: they don't count against ``run.max_attempts``
BLAMELESS = (InferenceUnavailable.code, NODE_STOPPING)


@dataclass(frozen=True)
class Services:
    """What the steps work with."""

    config: NodeConfig
    engine: Engine
    pool: WorkerPool
    gates: Mapping[str, Gate]
    metrics: Metrics
    triton_url: Callable[[], str]


class Steps:
    """The steps of all jobs of one node."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._delivering = Delivering(
            services.config.data_dir, services.engine, services.gates, services.metrics
        )

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
            with recorded():
                summary = self._result_set(job, folder)
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
        """One turn to hand the job's result set to one destination: see ``delivering``.

        attempt: tells the turn's workflow from the others'; how many attempts there were, the row knows.
        """
        log.debug("delivery_turn", job_id=job_id, destination=destination, turn=attempt)
        return self._delivering.deliver(job_id, destination, generation)

    def _begin_delivering(self, job: Row[Any], folder: Path) -> bool:
        """Note the result set and its deliveries; False if the job was cancelled meanwhile."""
        with write_transaction(self._services.engine) as connection:
            values = {"state": "delivering", "result_dir": str(folder), "reason_code": None, "reason": None}
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

    def _result_set(self, job: Row[Any], folder: Path) -> dict[str, Any]:
        """Make the result set unless it is there; it appears under its name only when it is whole."""
        services = self._services
        config = services.config
        final = config.data_dir / folder
        if (final / SUMMARY).is_file():
            return self._read_summary(folder)
        # of this generation alone: a cancelled one's run may not have ended yet
        partial = final.with_name(f"{final.name}.partial-{job.generation}")
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
                step_timeout_seconds=config.run.step_timeout_seconds,
            )
            if (final / SUMMARY).is_file():  # the run of another generation ended first
                return self._read_summary(folder)
            partial.replace(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        fsync_folder(final.parent)
        for stage, seconds in summary["timings_seconds"].items():
            services.metrics.stage_seconds.labels(pipeline=job.pipeline, stage=stage).observe(seconds)
        return summary

    def _execution_failed(self, job: Row[Any], error: NodeError, attempt: int, failures: int) -> Next:
        run = self._services.config.run
        if error.code not in BLAMELESS:
            failures += 1
        if not error.retryable or failures >= run.max_attempts:
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

    def _read_summary(self, folder: Path) -> dict[str, Any]:
        text = (self._services.config.data_dir / folder / SUMMARY).read_text(encoding="utf-8")
        summary: dict[str, Any] = json.loads(text)
        return summary


def _change(connection: Connection, job_id: str, generation: int, values: dict[str, Any]) -> bool:
    """Change a job that is still active in this generation; False, and nothing changed, if it isn't."""
    current = (jobs.c.job_id == job_id, jobs.c.generation == generation, jobs.c.state.in_(ACTIVE))
    return connection.execute(update(jobs).where(*current).values(**values)).rowcount == 1


def _log_progress(job_id: str) -> OnProgress:
    """Log the start of each stage, and every tenth of its work."""
    last: dict[str, int] = {}

    def on_progress(stage: str, done: int, total: int) -> None:
        tenth = done * 10 // total if total else 0
        if last.get(stage) != tenth:
            last[stage] = tenth
            log.info("job_progress", job_id=job_id, stage=stage, done=done, total=total)

    return on_progress
