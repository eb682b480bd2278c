"""The steps of a job: each idempotent, each returning what is to happen next as plain JSON values.

``execute`` runs the pipeline once (a result set that is already there is used as it is); ``deliver`` hands
it to one destination. Both may be killed anywhere and called again with the same arguments. A step of a job
that was cancelled, or that ops asked for again since (``generation``), changes nothing; nor does a run that
another node has taken over (``membership``). Whatever goes wrong ends as a recorded reason, never as a job
that hangs (DESIGN I9).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from sqlalchemy import Connection, Row, select, update

from node.database import deliveries, insert_if_new, jobs
from node.errors import NodeError
from node.failpoints import failpoint
from node.reasons import Kind, worded
from node.run.boundary import ACTIVE, STOP, Next, Run, TakenOver, ours, recorded
from node.run.delivering import Delivering
from node.run.results import PREDECESSOR_RUNNING, ResultSets, Services
from node.run.shadowing import note_done
from node.run.worker_pool import NODE_STOPPING
from pipelines.errors import InferenceUnavailable

log = structlog.get_logger(__name__)

#: a job that waits for Triton asks again at least this often
MAX_WAIT_FOR_TRITON_SECONDS = 60.0
#: how often a job that waits for Triton looks whether it was cancelled
TRITON_LOOK_SECONDS = 2.0
#: the job is not to blame for these: they don't count against ``run.max_attempts``
BLAMELESS = (InferenceUnavailable.code, NODE_STOPPING, PREDECESSOR_RUNNING)
#: a run that another node took over is done again after so long, if its workflow is still ours
TAKEN_OVER_SECONDS = 1.0


class Steps:
    """The steps of all jobs of one node."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._results = ResultSets(services)
        self._delivering = Delivering(
            self._results,
            services.engine,
            services.gates,
            services.metrics,
            on_done=lambda connection, job: note_done(connection, services.config.shadow, job),
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
        run = Run(job, epoch)
        begun = {"state": "running", "started_at": job.started_at or started}
        try:
            may_begin = self._results.is_made(run) or self._wait_for_triton(run)
            if not may_begin or not self._change(run, begun):
                return STOP
            failpoint("job.running")
            if job.started_at is None:
                waited = started - job.created_at
                self._services.metrics.queue_wait_seconds.labels(job.pipeline).observe(waited)
            try:
                with recorded(TakenOver):
                    summary = self._results.result_set(run)
            except NodeError as error:
                return self._execution_failed(run, error, attempt, failures)
            if not self._begin_delivering(run):
                return STOP
            failpoint("job.delivering")
            if not job.destinations:  # the results are kept here, and that is all
                self._delivering.finish(job_id)
        except TakenOver:
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

    def _wait_for_triton(self, run: Run) -> bool:
        """Hold the job and its place in the queue while no Triton is ready: then those behind it begin in the
        order of their priorities. False when the job was cancelled meanwhile."""
        ready = self._services.triton_ready
        if ready(0.0):
            return True
        why = worded(Kind.WAITING, InferenceUnavailable.code, "the job waits for it")
        if not self._change(run, {"reason_code": why.code, "reason": "the job waits for it"}):
            return False
        self._services.metrics.job_retries.labels(pipeline=run.job.pipeline, code=why.code).inc()
        log.warning("job_waits_for_triton", job_id=run.job.job_id, code=why.code, reason=why.sentence)
        while not ready(TRITON_LOOK_SECONDS):
            job = self._job(run.job.job_id)
            if job is None or job.generation != run.job.generation or job.state not in ACTIVE:
                return False
        return self._change(run, {"reason_code": None, "reason": None})

    def _begin_delivering(self, run: Run, why: tuple[str | None, str | None] = (None, None)) -> bool:
        """Note the result set and its deliveries; False if the job was cancelled meanwhile.

        why: code and reason, of a set that only says why there is no result.
        """
        job = run.job
        with self._ours(run.epoch) as connection:
            values = {
                "state": "delivering",
                "result_dir": str(run.folder),
                "reason_code": why[0],
                "reason": why[1],
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

    def _execution_failed(self, run: Run, error: NodeError, attempt: int, failures: int) -> Next:
        config, job = self._services.config.run, run.job
        if error.code not in BLAMELESS:
            failures += 1
        if not error.retryable or failures >= config.max_attempts:
            if self._say_why(run, error):
                return Next(destinations=list(job.destinations), retry_in_seconds=None, failures=failures)
            if self._end(job, "failed", error.code, str(error), epoch=run.epoch):
                _log_failed(job, error)
            return STOP
        # what wasn't the job's fault doesn't make it wait longer for what is
        times, limit = failures, config.step_timeout_seconds
        if error.code in BLAMELESS:
            times, limit = attempt, MAX_WAIT_FOR_TRITON_SECONDS
        delay = min(config.retry_seconds * 2 ** min(times - 1, 20), limit)
        if not self._change(run, {"state": "queued", "reason_code": error.code, "reason": str(error)}):
            return STOP
        self._services.metrics.job_retries.labels(pipeline=job.pipeline, code=error.code).inc()
        log.warning(
            "job_retried",
            job_id=job.job_id,
            attempt=attempt,
            code=error.code,
            reason=worded(Kind.WAITING, error.code, str(error)).sentence,
            retry_in_seconds=delay,
        )
        return Next(destinations=[], retry_in_seconds=delay, failures=failures)

    def _say_why(self, run: Run, error: NodeError) -> bool:
        """Begin to deliver what says why there is no result, where that is wanted and can be made."""
        job = run.job
        if self._services.config.results.no_result == "none" or not job.destinations:
            return False
        why = worded(Kind.ENDED, error.code, str(error))
        try:
            with recorded(TakenOver):
                self._results.no_result(run, why.code, why.sentence)
        except NodeError as another:
            log.warning("no_result_not_made", job_id=job.job_id, code=another.code, reason=str(another))
            return False
        _log_failed(job, error)
        return self._begin_delivering(run, (error.code, str(error)))

    def _end(
        self, job: Row[Any], state: str, code: str | None, reason: str | None, *, epoch: int | None = None
    ) -> bool:
        """End a job; False if it had ended already, which two deliveries that end together may both try."""
        values = {"state": state, "finished_at": time.time(), "reason_code": code, "reason": reason}
        if not self._change(Run(job, epoch), values):
            return False
        counter = self._services.metrics.jobs_finished
        counter.labels(pipeline=job.pipeline, state=state, code=code or "none").inc()
        return True

    def _job(self, job_id: str) -> Row[Any] | None:
        with self._services.engine.connect() as connection:
            return connection.execute(select(jobs).where(jobs.c.job_id == job_id)).one_or_none()

    def _change(self, run: Run, values: dict[str, Any]) -> bool:
        with self._ours(run.epoch) as connection:
            return _change(connection, run.job, values)

    @contextmanager
    def _ours(self, epoch: int | None) -> Iterator[Connection]:
        with ours(self._services.engine, self._services.membership, epoch) as connection:
            yield connection


def _log_failed(job: Row[Any], error: NodeError) -> None:
    why = worded(Kind.ENDED, error.code, str(error))
    log.error("job_failed", job_id=job.job_id, code=why.code, reason=why.sentence, hint=error.hint)


def _change(connection: Connection, job: Row[Any], values: dict[str, Any]) -> bool:
    """Change a job that is still active in its generation; False, and nothing changed, if it isn't."""
    current = (jobs.c.job_id == job.job_id, jobs.c.generation == job.generation, jobs.c.state.in_(ACTIVE))
    return connection.execute(update(jobs).where(*current).values(**values)).rowcount == 1
