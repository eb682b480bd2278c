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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection, Engine, Row, select, update

from node import __version__
from node.config import NodeConfig
from node.database import deliveries, insert_if_new, jobs, write_transaction
from node.deliver.gate import Gate
from node.errors import NodeError
from node.files import fsync_folder
from node.metrics import Metrics
from node.receive.series import instance_paths
from node.run.boundary import ACTIVE, STOP, Next, recorded
from node.run.delivering import Delivering
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


class _TakenOver(Exception):
    """Another node goes on with what this run began."""


@dataclass(frozen=True)
class Services:
    """What the steps work with."""

    config: NodeConfig
    engine: Engine
    pool: WorkerPool
    gates: Mapping[str, Gate]
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
        self._delivering = Delivering(
            services.config.data_dir, services.engine, services.gates, services.metrics
        )

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
                with recorded(_TakenOver):
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
        """One turn to hand the job's result set to one destination: see ``delivering``.

        attempt: tells the turn's workflow from the others'; how many attempts there were, the row knows.
        """
        log.debug("delivery_turn", job_id=job_id, destination=destination, turn=attempt)
        return self._delivering.deliver(job_id, destination, generation)

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
                step_timeout_seconds=config.run.step_timeout_seconds,
            )
            with self._ours(run.epoch):
                if (final / SUMMARY).is_file():  # the run of another generation ended first
                    return self._read_summary(folder)
                partial.replace(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
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

    def _read_summary(self, folder: Path) -> dict[str, Any]:
        text = (self._services.config.data_dir / folder / SUMMARY).read_text(encoding="utf-8")
        summary: dict[str, Any] = json.loads(text)
        return summary


def _change(connection: Connection, job: Row[Any], values: dict[str, Any]) -> bool:
    """Change a job that is still active in its generation; False, and nothing changed, if it isn't."""
    current = (jobs.c.job_id == job.job_id, jobs.c.generation == job.generation, jobs.c.state.in_(ACTIVE))
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
