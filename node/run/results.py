"""The result sets of jobs on disk: made once, in every encoding that a destination wants, and read back.

In: a job's row.  Out: ``data_dir/results/<job>``, which appears under its name only when it is whole; the
files that a destination gets of it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Engine, Row, select

from node import __version__
from node.config import DeliveryOptions, NodeConfig
from node.database import deliveries, jobs
from node.deliver.gate import Gate
from node.errors import DeliveryError, NodeError
from node.failpoints import failpoint
from node.files import fsync_folder
from node.metrics import Metrics
from node.receive.series import instance_paths
from node.run.boundary import Run, ours
from node.run.membership import Membership
from node.run.worker_pool import OnProgress, WorkerPool
from pipelines.encoding import DEFAULT, Encoding
from pipelines.request import SUMMARY, NoResult, Request
from pipelines.summary import objects_for, was_made_for

log = structlog.get_logger(__name__)

#: a later version waits for the job of an earlier one, whose results it supersedes
PREDECESSOR_RUNNING = "predecessor_running"


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

    def options_of(self, destination: str) -> DeliveryOptions | None:
        """As they are configured now; None when it isn't any more."""
        gate = self.gates.get(destination)
        return None if gate is None else gate.options


class ResultSets:
    """Those of one node."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def is_made(self, run: Run) -> bool:
        """Whether the job's set is there as its destinations want it."""
        return self._is_there(run.folder, self._encodings(run.job))

    def result_set(self, run: Run) -> dict[str, Any]:
        """Make the job's set unless it is there, as its destinations want it; returns its summary.

        Raises TakenOver.
        """
        job = run.job
        wanted = self._encodings(job)
        if self.is_made(run):
            return self.read_summary(run.folder)
        request = self._request(
            job,
            encodings=tuple(encoding.name for encoding in wanted if encoding != DEFAULT),
            predecessor=self._predecessor(job),
            reject=any(one.replace == "reject" for one in self._destinations(job)),
        )
        summary = self._make(run, request, lambda: self.is_made(run))
        for stage, seconds in summary["timings_seconds"].items():
            stages = self._services.metrics.stage_seconds
            stages.labels(pipeline=job.pipeline, stage=stage).observe(seconds)
        return summary

    def no_result(self, run: Run, code: str, reason: str) -> None:
        """Make the set that says why there is none. Raises TakenOver."""
        kind = self._services.config.results.no_result
        if kind != "none":
            request = self._request(run.job, no_result=NoResult(code, reason, kind))
            self._make(run, request, lambda: False)

    def files_for(self, job: Row[Any], destination: str) -> list[Path]:
        """The files that a destination gets of a job's set, in order.

        Raises DeliveryError: encoding_missing when the set was made before the destination wanted it so;
        predecessor_pending when what is to be rejected there hasn't arrived there yet.
        """
        config = self._services.config
        target = self._services.options_of(destination)
        if target is None:
            raise DeliveryError(
                f"destination {destination} is no longer configured",
                code="destination_removed",
                hint="configure it again and retry the job",
                retryable=False,
            )
        encoding = target.encoding
        folder = config.data_dir / job.result_dir
        summary = self.read_summary(Path(job.result_dir))
        if "no_result" not in summary and not was_made_for(summary, encoding):
            raise DeliveryError(
                f"destination {destination}: the results were made before it wanted {encoding.name}",
                code="encoding_missing",
                hint="`pacsnode jobs retry` makes them again",
                retryable=False,
            )
        entries = objects_for(summary, encoding)
        if target.replace == "reject" and (note := summary.get("rejections", {}).get(encoding.name)):
            self._wait_for_predecessors(job, destination)
            entries.append(note)
        return [folder / str(entry["path"]) for entry in entries]

    def read_summary(self, folder: Path) -> dict[str, Any]:
        text = (self._services.config.data_dir / folder / SUMMARY).read_text(encoding="utf-8")
        summary: dict[str, Any] = json.loads(text)
        return summary

    def _is_there(self, folder: Path, wanted: list[Encoding]) -> bool:
        if not (self._services.config.data_dir / folder / SUMMARY).is_file():
            return False
        summary = self.read_summary(folder)
        return "no_result" not in summary and all(was_made_for(summary, one) for one in wanted)

    def _destinations(self, job: Row[Any]) -> list[DeliveryOptions]:
        found = [self._services.options_of(name) for name in job.destinations]
        return [options for options in found if options is not None]

    def _encodings(self, job: Row[Any]) -> list[Encoding]:
        return sorted({one.encoding for one in self._destinations(job)}, key=lambda one: one.name)

    def _request(self, job: Row[Any], **how: Any) -> Request:
        config = self._services.config
        with self._services.engine.connect() as connection:
            paths = instance_paths(connection, config.data_dir, job.series_instance_uid, job.series_version)
        return Request(
            pipeline=job.pipeline,
            paths=tuple(paths),
            out=config.data_dir,  # ``_make`` says where
            software_version=__version__,
            content_datetime=datetime.fromtimestamp(int(job.created_at), UTC),
            clinical_use=config.results.clinical_use,
            uid_root=config.results.uid_root,
            **how,
        )

    def _make(self, run: Run, request: Request, is_there: Callable[[], bool]) -> dict[str, Any]:
        """Run the request; its set replaces one that doesn't do any more."""
        services, config = self._services, self._services.config
        final = config.data_dir / run.folder
        # of this run alone: a cancelled generation's, or one that was taken over, may not have ended yet
        whose = "" if run.epoch is None else f"-{config.node_id}-{run.epoch}"
        partial = final.with_name(f"{final.name}.partial-{run.job.generation}{whose}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            summary = services.pool.run(
                replace(request, out=partial),
                log_progress(run.job.job_id),
                triton_url=services.triton_url(),
                request_timeout_seconds=config.triton.request_timeout_seconds,
                access=config.triton.access(),
                priority=run.job.priority,
                on_request=services.metrics.requests_of(run.job.pipeline),
                step_timeout_seconds=config.run.step_timeout_seconds,
            )
            failpoint("results.made")
            with ours(services.engine, services.membership, run.epoch):
                if is_there():  # the run of another generation ended first
                    return self.read_summary(run.folder)
                shutil.rmtree(final, ignore_errors=True)
                partial.replace(final)
                failpoint("results.renamed")
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        failpoint("results.visible")
        if run.epoch is not None:  # what runs of nodes that are gone left
            for left in final.parent.glob(f"{final.name}.partial-*"):
                shutil.rmtree(left, ignore_errors=True)
        fsync_folder(final.parent)
        return summary

    def _earlier(self, job: Row[Any]) -> Any:
        same = (
            jobs.c.series_instance_uid == job.series_instance_uid,
            jobs.c.pipeline == job.pipeline,
            jobs.c.series_version < job.series_version,
        )
        return select(jobs).where(*same).order_by(jobs.c.series_version.desc())

    def _predecessor(self, job: Row[Any]) -> Path | None:
        """The folder of the newest earlier version's set.

        Raises NodeError (predecessor_running) while one may still be made: who supersedes it must name it.
        """
        with self._services.engine.connect() as connection:
            earlier = connection.execute(self._earlier(job)).all()
        for row in earlier:
            if row.state in ("queued", "retry", "running"):
                raise NodeError(
                    f"job {row.job_id} of version {row.series_version} of the series hasn't ended",
                    code=PREDECESSOR_RUNNING,
                    hint="nothing to do: this job goes on after it",
                    retryable=True,
                )
            if row.result_dir and (self._services.config.data_dir / row.result_dir / SUMMARY).is_file():
                return Path(self._services.config.data_dir / row.result_dir)
        return None

    def _wait_for_predecessors(self, job: Row[Any], destination: str) -> None:
        earlier = self._earlier(job).with_only_columns(jobs.c.job_id).order_by(None)
        pending = select(deliveries.c.job_id).where(
            deliveries.c.job_id.in_(earlier),
            deliveries.c.destination == destination,
            deliveries.c.state == "pending",
        )
        with self._services.engine.connect() as connection:
            row = connection.execute(pending).first()
        if row is not None:
            raise DeliveryError(
                f"destination {destination}: what is to be rejected, of job {row.job_id}, isn't there yet",
                code="predecessor_pending",
                hint="nothing to do: this delivery goes on after it",
                retryable=True,
            )


def log_progress(job_id: str) -> OnProgress:
    """Log the start of each stage, and every tenth of its work."""
    last: dict[str, int] = {}

    def on_progress(stage: str, done: int, total: int) -> None:
        if total == 0:
            failpoint(f"heard.{stage}")
        tenth = done * 10 // total if total else 0
        if last.get(stage) != tenth:
            last[stage] = tenth
            log.info("job_progress", job_id=job_id, stage=stage, done=done, total=total)

    return on_progress
