"""Jobs as durable workflows: a job id in, its steps run to their end however often the process dies.

The only module that knows DBOS. Every attempt is a workflow of its own with a name that says which, so
enqueueing it twice is harmless; an attempt that must be repeated enqueues its successor with a delay, so
waiting holds neither a thread nor a place in the queue. Workflow arguments are strings and numbers, kept
as JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
)
from sqlalchemy.exc import OperationalError

from node.commitment_requests import Delivery
from node.run.steps import Next, Steps

log = structlog.get_logger(__name__)

#: part of a workflow's identity: workflows of another number are not recovered. Raise it when the order of
#: steps in a workflow changes.
WORKFLOW_VERSION = "1"
EXECUTOR_ID = "node"
POLLING_SECONDS = 0.1
RUN_QUEUE = "run"


def delivery_queue(destination: str) -> str:
    """The queue of one destination: a dead one holds nobody else's."""
    return f"deliver-{destination}"


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

    def __init__(self, steps: Steps) -> None:
        super().__init__("jobs")
        self._steps = steps

    @DBOS.workflow(name="run_job")
    def run_job(self, job_id: str, priority: int, generation: int, attempt: int, failures: int) -> None:
        outcome = self.execute(job_id, generation, attempt, failures)
        if outcome["retry_in_seconds"] is not None:
            again = _Attempt(attempt + 1, outcome["failures"], outcome["retry_in_seconds"])
            self.enqueue_run(job_id, priority, generation, again)
        for destination in outcome["destinations"]:
            self.enqueue_delivery(job_id, destination, generation)

    @DBOS.workflow(name="deliver_job")
    def deliver_job(self, job_id: str, destination: str, generation: int, attempt: int) -> None:
        outcome = self.deliver(job_id, destination, generation, attempt)
        if outcome["retry_in_seconds"] is not None:
            delay = outcome["retry_in_seconds"]
            self.enqueue_delivery(job_id, destination, generation, attempt + 1, delay)

    @DBOS.step(name="execute", **_UNTIL_THE_DATABASE_ANSWERS)
    def execute(self, job_id: str, generation: int, attempt: int, failures: int) -> Next:
        return self._steps.execute(job_id, generation, attempt, failures)

    @DBOS.step(name="deliver", **_UNTIL_THE_DATABASE_ANSWERS)
    def deliver(self, job_id: str, destination: str, generation: int, attempt: int) -> Next:
        return self._steps.deliver(job_id, destination, generation, attempt)

    def enqueue_run(self, job_id: str, priority: int, generation: int, which: _Attempt = FIRST) -> None:
        """Enqueue one attempt to run a job; again with the same arguments does nothing."""
        name = f"run-{job_id}-{generation}-{which.attempt}"
        with SetWorkflowID(name), SetEnqueueOptions(priority=priority, delay_seconds=which.delay_seconds):
            DBOS.enqueue_workflow(
                RUN_QUEUE, self.run_job, job_id, priority, generation, which.attempt, which.failures
            )

    def enqueue_delivery(
        self,
        job_id: str,
        destination: str,
        generation: int,
        attempt: int = 1,
        delay_seconds: float | None = None,
    ) -> None:
        """Enqueue one attempt to deliver a job's results; again with the same arguments does nothing."""
        name = f"deliver-{job_id}-{generation}-{destination}-{attempt}"
        with SetWorkflowID(name), SetEnqueueOptions(delay_seconds=delay_seconds):
            queue = delivery_queue(destination)
            DBOS.enqueue_workflow(queue, self.deliver_job, job_id, destination, generation, attempt)


class JobEngine:
    """Starts and stops the workflow engine of this process. At most one a process: DBOS is a singleton."""

    def __init__(
        self, data_dir: Path, steps: Steps, *, workers: int, destinations: Mapping[str, int]
    ) -> None:
        """destinations: how many deliveries at once to each."""
        self._database = data_dir / "workflows.sqlite"
        self._workers = workers
        self._destinations = dict(destinations)
        config: DBOSConfig = {
            "name": "pacsnode",
            "system_database_url": f"sqlite:///{self._database}",
            "executor_id": EXECUTOR_ID,
            "application_version": WORKFLOW_VERSION,
            "serializer": DBOSPortableJSONSerializer(),  # the default pickles
            "log_level": "WARNING",
            "scheduler_polling_interval_sec": 3600.0,
        }
        DBOS(config=config)
        self._workflows = JobWorkflows(steps)

    def start(self) -> None:
        """Continue what was under way when the last process ended, and take new jobs."""
        DBOS.launch()
        _register_queue(RUN_QUEUE, self._workers)
        for destination, at_once in self._destinations.items():
            _register_queue(delivery_queue(destination), at_once)

    def stop(self) -> None:
        """Stop taking work; what is under way continues after the next start."""
        DBOS.destroy()

    def enqueue_turn(self, delivery: Delivery, turn: int) -> None:
        """Enqueue a turn of a delivery; again with the same arguments does nothing."""
        self._workflows.enqueue_delivery(delivery.job_id, delivery.destination, delivery.generation, turn)

    def enqueue(self, job_id: str, priority: int, generation: int) -> None:
        """Enqueue a job for its first attempt; again with the same arguments does nothing."""
        self._workflows.enqueue_run(job_id, priority, generation)


def _register_queue(name: str, at_once: int) -> None:
    DBOS.register_queue(
        name, worker_concurrency=at_once, polling_interval_sec=POLLING_SECONDS, on_conflict="always_update"
    )
