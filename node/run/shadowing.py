"""Candidates: run on the input of jobs that are done, compared with what was delivered, delivered nowhere.

In: ``shadow`` of the configuration; a row in ``shadows`` for each job that is done.  Out: a result set in
``data_dir/shadows/<job>/<candidate>``, how far it agrees with the live one, and metrics of that.

A candidate runs while no job of any node waits or runs, in a process of its own that stands back for others.
When a job comes, the process is killed, and the run is done again later. So all that a job can lose by a
candidate is what Triton still computes of the requests under way. Whatever goes wrong is recorded in the row
and nowhere else. This module knows no destination; nothing delivers what isn't a job's ``result_dir``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection, Engine, Row, exists, select, update
from sqlalchemy.exc import SQLAlchemyError

from node import __version__
from node.config import NodeConfig, ShadowConfig
from node.database import insert_if_new, jobs, series, shadows, write_transaction
from node.errors import ConfigError, NodeError
from node.files import fsync_folder
from node.metrics import ShadowMetrics
from node.postgres import SessionLock
from node.receive.series import instance_paths
from node.run.boundary import recorded
from node.run.worker_pool import WorkerPool
from node.watch import Watch
from pipelines.errors import InferenceUnavailable
from pipelines.registry import PIPELINES
from pipelines.request import SUMMARY, Request, Shadow

log = structlog.get_logger(__name__)

FOLDER = "shadows"
#: between two looks for something to do, and for a job to give way to
LOOK_SECONDS = 2.0
YIELD_SECONDS = 0.2
#: a candidate's process stands back for all others of the machine
NICE = 19
#: the states of a job that a candidate gives way to; deliveries need no models
_BEFORE_A_CANDIDATE = ("queued", "retry", "running")


def check_candidates(config: NodeConfig) -> None:
    """Raises ConfigError where a candidate names a pipeline that isn't known."""
    for name, candidate in config.shadow.items():
        for field, pipeline in (
            ("pipeline", candidate.pipeline),
            ("candidate_pipeline", candidate.candidate_pipeline),
        ):
            if pipeline is not None and pipeline not in PIPELINES:
                raise ConfigError(
                    f"shadow.{name}.{field}: {pipeline!r} isn't known; "
                    f"allowed are {', '.join(sorted(PIPELINES))}"
                )


def note_done(connection: Connection, candidates: Mapping[str, ShadowConfig], job: Row[Any]) -> None:
    """Let the candidates of a job's pipeline run; with the transaction in which the job is done."""
    for name, candidate in candidates.items():
        if candidate.pipeline == job.pipeline and _drawn(job.job_id, name) < candidate.share:
            row = {"job_id": job.job_id, "candidate": name, "state": "waiting", "created_at": time.time()}
            insert_if_new(connection, shadows, row)


def _drawn(job_id: str, candidate: str) -> float:
    """From 0 to 1, of each pair always the same."""
    digest = hashlib.sha256(f"{job_id} {candidate}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


@dataclass(frozen=True)
class Means:
    """What a candidate's run needs beside the configuration."""

    engine: Engine
    metrics: ShadowMetrics
    triton_url: Callable[[], str]
    triton_ready: Callable[[float], bool]
    make_pool: Callable[[], WorkerPool] = lambda: WorkerPool(1, nice=NICE, warm=False)


class ShadowWatch(Watch):
    """Runs what waits, one after the other, in one node at a time."""

    def __init__(self, config: NodeConfig, means: Means) -> None:
        super().__init__("shadow", LOOK_SECONDS)
        self._config = config
        self._means = means
        self._engine = means.engine
        self._ours = SessionLock(means.engine, FOLDER) if config.shared else None

    def stop(self) -> None:
        """The run that is under way is killed, and done again after the next start."""
        super().stop()
        if self._ours is not None:
            self._ours.release()

    def look(self) -> int:
        """Run candidates until a job comes; returns how many ended."""
        if self._ours is not None and not self._ours.hold():
            return 0
        ended = 0
        while not self.stopping.is_set() and self._may_run() and (row := self._next()) is not None:
            if self._try(row):
                ended += 1
            elif self._may_run():  # it is to be tried again, but not at once
                break
        return ended

    def _may_run(self) -> bool:
        return not self._jobs_wait() and self._means.triton_ready(0.0)

    def _jobs_wait(self) -> bool:
        with self._engine.connect() as connection:
            query = select(exists().where(jobs.c.state.in_(_BEFORE_A_CANDIDATE)))
            return bool(connection.execute(query).scalar_one())

    def _next(self) -> Row[Any] | None:
        """The one with the fewest attempts, then the oldest; of candidates that are still configured."""
        query = (
            select(shadows)
            .where(shadows.c.state == "waiting", shadows.c.candidate.in_(list(self._config.shadow)))
            .order_by(shadows.c.attempts, shadows.c.created_at)
            .limit(1)
        )
        with self._engine.connect() as connection:
            return connection.execute(query).one_or_none()

    def _try(self, row: Row[Any]) -> bool:
        """Whether the run has ended, by a result or for good without one."""
        candidate = self._config.shadow[row.candidate]
        with self._engine.connect() as connection:
            job = connection.execute(select(jobs).where(jobs.c.job_id == row.job_id)).one()
            purged = connection.execute(
                select(series.c.purged_at).where(
                    series.c.series_instance_uid == job.series_instance_uid,
                    series.c.version == job.series_version,
                )
            ).scalar_one()
            paths = instance_paths(
                connection, self._config.data_dir, job.series_instance_uid, job.series_version
            )
        live = self._config.data_dir / (job.result_dir or "")
        if purged is not None or not paths or job.result_dir is None or not (live / SUMMARY).is_file():
            shutil.rmtree(_partial(self._config.data_dir / _folder(row)), ignore_errors=True)
            return self._end(row, "skipped", ("input_gone", "its input or the live result is deleted"))
        request = Request(
            pipeline=candidate.candidate_pipeline or job.pipeline,
            paths=tuple(paths),
            out=live,  # ``_made`` says where
            software_version=__version__,
            content_datetime=datetime.fromtimestamp(int(job.created_at), UTC),
            clinical_use=False,
            uid_root=self._config.results.uid_root,
            shadow=Shadow(live, candidate.served()),
        )
        try:
            with recorded(_GaveWay):
                summary = self._made(row, request)
        except NodeError as error:
            return self._failed(row, error)
        except _GaveWay:
            self._means.metrics.runs.labels(candidate=row.candidate, outcome="interrupted").inc()
            log.info("shadow_gave_way", job_id=row.job_id, candidate=row.candidate)
            return False
        self._means.metrics.observe(row.candidate, summary["agreement"])
        return self._end(
            row, "done", (None, None), result_dir=str(_folder(row)), agreement=summary["agreement"]
        )

    def _made(self, row: Row[Any], request: Request) -> dict[str, Any]:
        """The summary of the candidate's set, which is made unless it is there. Raises _GaveWay."""
        final = self._config.data_dir / _folder(row)
        if not (final / SUMMARY).is_file():  # by a run that was killed before its row said so
            partial = _partial(final)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            try:
                self._run_pipeline(replace(request, out=partial))
                partial.replace(final)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            fsync_folder(final.parent)
        summary: dict[str, Any] = json.loads((final / SUMMARY).read_text(encoding="utf-8"))
        return summary

    def _run_pipeline(self, request: Request) -> None:
        pool = self._means.make_pool()
        with self._giving_way(pool) as gave_way:
            try:
                pool.run(
                    request,
                    lambda _stage, _done, _total: None,
                    triton_url=self._means.triton_url(),
                    request_timeout_seconds=self._config.triton.request_timeout_seconds,
                    access=self._config.triton.access(),
                    step_timeout_seconds=self._config.run.step_timeout_seconds,
                )
            except NodeError:
                if gave_way.is_set():
                    raise _GaveWay from None
                raise

    @contextmanager
    def _giving_way(self, pool: WorkerPool) -> Iterator[threading.Event]:
        """Kill what the pool runs as soon as a job wants to run, or the node is stopping; and its process in
        the end, for its memory."""
        gave_way, ended = threading.Event(), threading.Event()

        def watch() -> None:
            while not ended.wait(YIELD_SECONDS):
                if self._must_give_way():
                    gave_way.set()
                    pool.stop()
                    return

        thread = threading.Thread(target=watch, name="shadow-gives-way", daemon=True)
        thread.start()
        try:
            yield gave_way
        finally:
            ended.set()
            thread.join()
            pool.stop()

    def _must_give_way(self) -> bool:
        try:
            return self.stopping.is_set() or self._jobs_wait()
        except SQLAlchemyError:  # nobody can say whether a job waits
            return True

    def _failed(self, row: Row[Any], error: NodeError) -> bool:
        attempts = row.attempts + (error.code != InferenceUnavailable.code)
        if not error.retryable or attempts >= self._config.run.max_attempts:
            log.warning("shadow_failed", job_id=row.job_id, candidate=row.candidate, code=error.code)
            return self._end(row, "failed", (error.code, str(error)), attempts=attempts)
        self._record(row, attempts=attempts, reason_code=error.code, reason=str(error))
        return False

    def _end(self, row: Row[Any], state: str, why: tuple[str | None, str | None], **values: Any) -> bool:
        self._means.metrics.runs.labels(candidate=row.candidate, outcome=state).inc()
        log.info("shadow_ended", job_id=row.job_id, candidate=row.candidate, state=state, code=why[0])
        end = {"state": state, "finished_at": time.time(), "reason_code": why[0], "reason": why[1]}
        self._record(row, **end, **values)
        return True

    def _record(self, row: Row[Any], **values: Any) -> None:
        this = (shadows.c.job_id == row.job_id, shadows.c.candidate == row.candidate)
        with write_transaction(self._engine) as connection:
            connection.execute(update(shadows).where(*this).values(**values))


class _GaveWay(Exception):
    """A job came, or the node is stopping."""


def _folder(row: Row[Any]) -> Path:
    """Of a candidate's result set, relative to data_dir."""
    return Path(FOLDER) / str(row.job_id) / str(row.candidate)


def _partial(final: Path) -> Path:
    return final.with_name(f".{final.name}.partial")
