"""Jobs as durable workflows: a job id in, its steps run to their end however often the process dies.

The only module that knows DBOS. Every attempt is a workflow of its own with a name that says which, so
enqueueing it twice is harmless; an attempt that must be repeated enqueues its successor with a delay, so
waiting holds neither a thread nor a place in the queue. Workflow arguments are strings and numbers, kept
as JSON.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

import structlog
from dbos import (
    DBOS,
    DBOSConfig,
    DBOSConfiguredInstance,
    DBOSPortableJSONSerializer,
    SetEnqueueOptions,
    SetWorkflowID,
    WorkflowStatus,
)
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from node.commitment_requests import Delivery
from node.errors import NodeError
from node.failpoints import failpoint
from node.run.boundary import Next
from node.run.steps import Steps

log = structlog.get_logger(__name__)

#: part of a workflow's identity: workflows of another number are not continued; their jobs begin again under
#: this one (``JobEngine.abandon_old``). Raise it when the order of steps in a workflow changes.
WORKFLOW_VERSION = "1"
EXECUTOR_ID = "node"
#: of a queue of deliveries, and of one of runs: a job waits for half of it until the queue looks again
POLLING_SECONDS = 0.1
RUN_POLLING_SECONDS = 0.05
RUN_QUEUE = "run"


#: SQLite's ``synchronous``: a transaction is on disk when it is committed
_SYNCHRONOUS_FULL = 2
#: names in one question for workflows
_NAMES_AT_ONCE = 1000
_UNFINISHED = ["PENDING", "ENQUEUED", "DELAYED"]
_FINISHED = ["SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]
_BROKEN = ["ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]


def delivery_queue(destination: str) -> str:
    """The queue of one destination: a dead one holds nobody else's."""
    return f"deliver-{destination}"


def run_name(job_id: str, generation: int, attempt: int = 1) -> str:
    """Of the workflow that is one attempt to run a job."""
    return f"run-{job_id}-{generation}-{attempt}"


@dataclass(frozen=True)
class _Attempt:
    """Which attempt to run a job; ``failures`` before it count against ``run.max_attempts``."""

    attempt: int = 1
    failures: int = 0
    delay_seconds: float | None = None


FIRST = _Attempt()


class _Repeated(TypedDict):
    retries_allowed: bool
    interval_seconds: float
    backoff_rate: float
    max_attempts: int
    should_retry: Callable[[BaseException], bool]


def _database_fails(error: BaseException) -> bool:
    return isinstance(error, OperationalError)


#: A step records whatever goes wrong, unless the database can't be written. A workflow that ended by that
#: would leave a job that hangs; DBOS waits 1, 2, 4 … seconds, an hour at most, for about ten hours.
_UNTIL_THE_DATABASE_ANSWERS = _Repeated(
    retries_allowed=True,
    interval_seconds=1.0,
    backoff_rate=2.0,
    max_attempts=22,
    should_retry=_database_fails,
)


@DBOS.dbos_class()
class JobWorkflows(DBOSConfiguredInstance):
    """The two workflows of a job; ``generation`` counts how often ops asked for the job again."""

    def __init__(self, steps: Steps | None) -> None:
        """Without steps, to enqueue only."""
        super().__init__("jobs")
        self._places: dict[str, threading.BoundedSemaphore] = {}
        self._at_work: set[str] = set()
        self._lock = threading.Lock()
        if steps is not None:
            self._steps = steps

    @DBOS.workflow(name="run_job")
    def run_job(  # noqa: PLR0917 - workflow arguments are kept as a list
        self,
        job_id: str,
        priority: int,
        generation: int,
        attempt: int,
        failures: int,
        queue: str = RUN_QUEUE,
    ) -> None:
        with self._working():
            with self._place(queue):
                epoch = self._steps.epoch()
                failpoint("run_job.begun")
                outcome = self.execute(job_id, generation, attempt, failures, epoch)
            failpoint("run_job.executed")
            if outcome["retry_in_seconds"] is not None:
                again = _Attempt(attempt + 1, outcome["failures"], outcome["retry_in_seconds"])
                self.enqueue_run(job_id, priority, generation, again, queue)
            for destination in outcome["destinations"]:
                self.enqueue_delivery(job_id, destination, generation)

    @DBOS.workflow(name="deliver_job")
    def deliver_job(self, job_id: str, destination: str, generation: int, attempt: int) -> None:
        with self._working():
            with self._place(delivery_queue(destination)):
                failpoint("deliver_job.begun")
                outcome = self.deliver(job_id, destination, generation, attempt)
            failpoint("deliver_job.delivered")
            if outcome["retry_in_seconds"] is not None:
                delay = outcome["retry_in_seconds"]
                self.enqueue_delivery(job_id, destination, generation, attempt + 1, delay)

    @property
    def at_work(self) -> set[str]:
        """Names of the workflows that this process is running."""
        with self._lock:
            return set(self._at_work)

    @contextmanager
    def _working(self) -> Iterator[None]:
        name = str(DBOS.workflow_id)
        with self._lock:
            self._at_work.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._at_work.discard(name)

    def limit(self, queue: str, at_once: int) -> None:
        """How many of a queue may run at once in this process."""
        self._places[queue] = threading.BoundedSemaphore(at_once)

    def _place(self, queue: str) -> AbstractContextManager[object]:
        """One of the queue's, if need be when another gives its up: DBOS counts what it has begun from when
        its thread runs, so on a busy machine it begins more than it should."""
        return self._places.get(queue) or nullcontext()

    @DBOS.step(name="execute", **_UNTIL_THE_DATABASE_ANSWERS)
    def execute(self, job_id: str, generation: int, attempt: int, failures: int, epoch: int | None) -> Next:
        outcome = self._steps.execute(job_id, generation, attempt, failures, epoch)
        failpoint("execute.done")
        return outcome

    @DBOS.step(name="deliver", **_UNTIL_THE_DATABASE_ANSWERS)
    def deliver(self, job_id: str, destination: str, generation: int, attempt: int) -> Next:
        outcome = self._steps.deliver(job_id, destination, generation, attempt)
        failpoint("deliver.done")
        return outcome

    def enqueue_run(
        self,
        job_id: str,
        priority: int,
        generation: int,
        which: _Attempt = FIRST,
        queue: str = RUN_QUEUE,
    ) -> None:
        """Enqueue one attempt to run a job; again with the same arguments does nothing."""
        failpoint("run.enqueue")
        name = run_name(job_id, generation, which.attempt)
        with SetWorkflowID(name), SetEnqueueOptions(priority=priority, delay_seconds=which.delay_seconds):
            DBOS.enqueue_workflow(
                queue, self.run_job, job_id, priority, generation, which.attempt, which.failures, queue
            )
        failpoint("run.enqueued")

    def enqueue_delivery(
        self,
        job_id: str,
        destination: str,
        generation: int,
        attempt: int = 1,
        delay_seconds: float | None = None,
    ) -> None:
        """Enqueue one attempt to deliver a job's results; again with the same arguments does nothing."""
        failpoint("delivery.enqueue")
        name = f"deliver-{job_id}-{generation}-{destination}-{attempt}"
        with SetWorkflowID(name), SetEnqueueOptions(delay_seconds=delay_seconds):
            queue = delivery_queue(destination)
            DBOS.enqueue_workflow(queue, self.deliver_job, job_id, destination, generation, attempt)
        failpoint("delivery.enqueued")


@dataclass(frozen=True)
class Sharing:
    """An engine on a database that nodes share. runs: whether this one runs jobs, or only enqueues."""

    database: Engine
    executor_id: str
    runs: bool = True


@dataclass(frozen=True)
class Limits:
    """What runs at once in this process: pipelines, and of each pipeline that has a limit of its own."""

    workers: int
    by_pipeline: Mapping[str, int] = field(default_factory=dict)

    def queue_of(self, pipeline: str) -> str:
        """The queue of a pipeline's jobs."""
        return f"{RUN_QUEUE}-{pipeline}" if pipeline in self.by_pipeline else RUN_QUEUE


class JobEngine:
    """Starts and stops the workflow engine of this process. At most one a process: DBOS is a singleton."""

    def __init__(
        self,
        data_dir: Path,
        steps: Steps | None,
        limits: Limits,
        *,
        destinations: Mapping[str, int],
        sharing: Sharing | None = None,
        version: str = WORKFLOW_VERSION,
    ) -> None:
        """destinations: how many deliveries at once to each. Without ``sharing`` the workflows are in
        ``data_dir/workflows.sqlite``."""
        self._limits = limits
        self._destinations = dict(destinations)
        self._runs = sharing is None or sharing.runs
        self._version = version
        self._executor_id = EXECUTOR_ID if sharing is None else sharing.executor_id
        self._suspects: set[tuple[str, int | None]] = set()
        self._broken: set[str] = set()
        config: DBOSConfig = {
            "name": "pacsnode",
            "executor_id": self._executor_id,
            "application_version": version,
            "serializer": DBOSPortableJSONSerializer(),  # the default pickles
            "log_level": "WARNING",
            "scheduler_polling_interval_sec": 3600.0,
        }
        if sharing is None:
            _write_ahead(data_dir / "workflows.sqlite")
            config["system_database_url"] = f"sqlite:///{data_dir / 'workflows.sqlite'}"
        else:
            config["system_database_engine"] = sharing.database
        DBOS(config=config)
        self._workflows = JobWorkflows(steps)
        for queue, at_once in self._run_queues().items():
            self._workflows.limit(queue, at_once)

    def start(self) -> None:
        """Continue what was under way when the last process ended, and take new jobs.

        Raises NodeError when the database can't be written.
        """
        try:
            self._start()
        except OperationalError as error:
            raise NodeError(
                f"the workflows' database can't be written: {error.orig}",
                code="io_error",
                hint="is the disk full, or PostgreSQL down?",
                retryable=True,
            ) from error

    def _start(self) -> None:
        if not self._runs:
            DBOS.listen_queues([])
        DBOS.launch()
        if not self._runs:
            return
        for queue, at_once in self._run_queues().items():
            _register_queue(queue, at_once, RUN_POLLING_SECONDS)
        self.deliver_to(self._destinations)

    def deliver_to(self, destinations: Mapping[str, int]) -> None:
        """Take deliveries of these destinations, too: so many at once of each. Also while it runs."""
        for destination, at_once in destinations.items() if self._runs else ():
            queue = delivery_queue(destination)
            self._workflows.limit(queue, at_once)
            _register_queue(queue, at_once, POLLING_SECONDS)

    def _run_queues(self) -> dict[str, int]:
        """The queues of pipelines in this process, and how many of each."""
        own = {self._limits.queue_of(name): at_once for name, at_once in self._limits.by_pipeline.items()}
        return {RUN_QUEUE: self._limits.workers, **own}

    def stop(self) -> None:
        """Stop taking work; what is under way continues after the next start."""
        DBOS.destroy()

    def enqueue_turn(self, delivery: Delivery, turn: int) -> None:
        """Enqueue a turn of a delivery; again with the same arguments does nothing."""
        self._workflows.enqueue_delivery(delivery.job_id, delivery.destination, delivery.generation, turn)

    def enqueue(self, job_id: str, priority: int, generation: int, pipeline: str) -> None:
        """Enqueue a job for its first attempt; again with the same arguments does nothing."""
        self._workflows.enqueue_run(job_id, priority, generation, queue=self._limits.queue_of(pipeline))

    def enqueued(self, generations: Sequence[tuple[str, int]]) -> set[str]:
        """Of (job id, generation), the ids whose first attempt was enqueued, whatever became of it."""
        found: set[str] = set()
        for start in range(0, len(generations), _NAMES_AT_ONCE):
            names = {run_name(*each): each[0] for each in generations[start : start + _NAMES_AT_ONCE]}
            there = DBOS.list_workflows(workflow_ids=list(names), load_input=False, load_output=False)
            found.update(names[workflow.workflow_id] for workflow in there)
        return found

    def has_work(self, executor_id: str) -> bool:
        """Whether an executor began what it hasn't ended."""
        found = DBOS.list_workflows(
            status="PENDING", executor_id=executor_id, limit=1, load_input=False, load_output=False
        )
        return bool(found)

    def hand_on(self, executor_id: str) -> int:
        """Put what an executor that is gone was running back into its queues; returns how many."""
        left = _pending(executor_id)
        _resume(left)
        failpoint("hand_on.resumed")
        return len(left)

    def forget(self, before: float, limit: int) -> int:
        """Delete workflows that ended before then, the oldest first; returns how many."""
        ended = DBOS.list_workflows(
            status=_FINISHED,
            completed_before=datetime.fromtimestamp(before, UTC).isoformat(),
            limit=limit,
            load_input=False,
            load_output=False,
        )
        if ended:
            DBOS.delete_workflows([workflow.workflow_id for workflow in ended])
        return len(ended)

    def resume_left(self) -> list[str]:
        """Put back what we began and nobody runs, seen so twice in a row; returns the workflows' names.

        The engine takes up what the last process left once, at its start, and a workflow's thread ends when
        its outcome can't be written: without this, a full disk at that moment would leave a job that hangs.
        """
        at_work = self._workflows.at_work
        idle = [one for one in _pending(self._executor_id) if one.workflow_id not in at_work]
        left = [one for one in idle if (one.workflow_id, one.dequeued_at) in self._suspects]
        self._suspects = {(one.workflow_id, one.dequeued_at) for one in idle}
        _resume(left)
        names = [one.workflow_id for one in left]
        if names:
            log.warning("workflows_left", workflows=len(names), hint="nobody ran them; they go on now")
        return names

    def broken(self) -> set[tuple[str, int]]:
        """Jobs, and their generations, of which a workflow ended by an error since this was last asked.

        A step records whatever goes wrong; what ends a workflow is that what follows couldn't be enqueued, or
        a step's answer not be noted. Nobody goes on with it: the job has to begin again.
        """
        ended = DBOS.list_workflows(status=_BROKEN, load_input=False, load_output=False)
        names = {workflow.workflow_id for workflow in ended}
        new = [name.split("-") for name in names - self._broken]
        self._broken = names
        return {(parts[1], int(parts[2])) for parts in new if parts[0] in ("run", "deliver")}

    def abandon_old(self, alive: Collection[str] = ()) -> list[str]:
        """Cancel the workflows of other versions than this and those ``alive``; returns the jobs that they
        were of, each to be begun again as a new generation."""
        known = {version["version_name"] for version in DBOS.list_application_versions()}
        others = sorted(known - {self._version, *alive})
        if not others:  # a backlog of our own isn't read
            return []
        unfinished = DBOS.list_workflows(
            status=_UNFINISHED, app_version=others, load_input=False, load_output=False
        )
        old = [workflow.workflow_id for workflow in unfinished if "-" in workflow.workflow_id]
        if not old:
            return []
        DBOS.cancel_workflows(old)
        log.warning("workflows_of_another_version", workflows=len(old), hint="their jobs begin again")
        return sorted({name.split("-")[1] for name in old})


def _pending(executor_id: str) -> list[WorkflowStatus]:
    """What an executor began and hasn't ended."""
    return DBOS.list_workflows(status="PENDING", executor_id=executor_id, load_input=False, load_output=False)


def _resume(workflows: Sequence[WorkflowStatus]) -> None:
    """Put workflows back into the queues that they came from."""
    by_queue: dict[str, list[str]] = {}
    for workflow in workflows:
        by_queue.setdefault(workflow.queue_name or RUN_QUEUE, []).append(workflow.workflow_id)
    for queue, names in by_queue.items():
        DBOS.resume_workflows(names, queue_name=queue)


def _register_queue(name: str, at_once: int, polling_seconds: float) -> None:
    DBOS.register_queue(
        name, worker_concurrency=at_once, polling_interval_sec=polling_seconds, on_conflict="always_update"
    )


def _write_ahead(path: Path) -> None:
    """Let the file have its changes in a log, which it remembers: one sync a transaction instead of several,
    and who reads doesn't wait for who writes. Not where SQLite was built to sync such a log later."""
    with closing(sqlite3.connect(path, timeout=30.0)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        if connection.execute("PRAGMA synchronous").fetchone()[0] < _SYNCHRONOUS_FULL:
            connection.execute("PRAGMA journal_mode = DELETE")
