"""A process with a ``JobEngine`` whose steps write down what they are asked: something to kill.

``python -m tests.unit.node.run.engine_process DATA_DIR [JOB_ID …]`` starts the engine, writes which of the
jobs it knows to ``DATA_DIR/known``, enqueues them all and runs until its stdin closes. Every call of a step
is a line of ``DATA_DIR/calls``, with ``--node-id`` before it. What the steps answer is in the job's id:
``retry``, ``hang`` (until ``DATA_DIR/go`` is there), ``refuse`` (the first delivery to ``b``), ``locked``
(the database can't be written when it is first run and first delivered to ``b``), ``unnoted`` (what its first
generation's step answers can't be noted). At a line on stdin it forgets what has ended;
``DATA_DIR/forgotten`` says how much that was.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

from dbos._dbos import _get_dbos_instance
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from node.config import DatabaseConfig
from node.database import open_database
from node.postgres import SessionLock, postgres_engine
from node.run import membership
from node.run.boundary import STOP, Next
from node.run.engine import WORKFLOW_VERSION, JobEngine, Limits, Sharing
from node.run.left import LeftWatch
from node.run.membership import Membership, Takeover
from node.run.steps import Steps

RETRY_SECONDS = 0.5
GRACE_SECONDS = 2.0
LEFT_SECONDS = 1.0


class RecordedSteps(Steps):
    """Writes down what it is asked; there is no node behind it."""

    def __init__(self, data_dir: Path, node_id: str, ours: Membership | None) -> None:
        self._data_dir = data_dir
        self._node_id = node_id
        self._membership = ours
        self._failed: set[str] = set()

    def epoch(self) -> int | None:
        return None if self._membership is None else self._membership.epoch

    def execute(
        self, job_id: str, generation: int, attempt: int, failures: int, epoch: int | None = None
    ) -> Next:
        self._write(f"execute {job_id} {generation} {attempt} {failures}")
        if "retry" in job_id and attempt < 3:
            return Next(destinations=[], retry_in_seconds=RETRY_SECONDS, failures=failures + 1)
        self._fail_once("locked", job_id)
        if "unnoted" in job_id and generation == 0:
            raise RuntimeError("ends the workflow")
        while "hang" in job_id and not (self._data_dir / "go").exists():
            time.sleep(0.02)
        return Next(destinations=["a", "b"], retry_in_seconds=None, failures=failures)

    def deliver(self, job_id: str, destination: str, generation: int, attempt: int) -> Next:
        self._write(f"deliver {job_id} {generation} {destination} {attempt}")
        if destination == "b":
            self._fail_once("locked", job_id + destination)
        if "refuse" in job_id and destination == "b" and attempt == 1:
            return Next(destinations=[], retry_in_seconds=RETRY_SECONDS, failures=0)
        return STOP

    def _fail_once(self, what: str, name: str) -> None:
        if what in name and name not in self._failed:
            self._failed.add(name)
            raise OperationalError("UPDATE", {}, sqlite3.OperationalError("database is locked"))

    def _write(self, line: str) -> None:
        with (self._data_dir / "calls").open("a") as stream:
            stream.write(f"{time.time()} {self._node_id} {line}".replace("  ", " ") + "\n")


class CutOff(SessionLock):
    """A lock whose node can't reach the database once a file is there."""

    def __init__(self, engine: Engine, name: str, file: Path) -> None:
        super().__init__(engine, name)
        self._file = file

    def hold(self) -> bool:
        if self._file.exists():
            self.release()
            raise OperationalError("SELECT", {}, ConnectionError("cut off"))
        return super().hold()


@contextmanager
def shared(arguments: Namespace) -> Iterator[tuple[Sharing, Membership]]:
    """A node among others on a PostgreSQL database."""
    membership.GRACE_SECONDS, membership.LOOK_SECONDS = GRACE_SECONDS, 0.2
    database = DatabaseConfig(url=arguments.database, password_file=arguments.password_file)
    node_id = arguments.node_id
    engine = open_database(arguments.data_dir, database, application_name=f"lock {node_id}")
    ours = Membership(engine, node_id, "worker", arguments.version)
    ours._lock = CutOff(engine, ours._lock.name, arguments.data_dir / f"cut-{node_id}")
    ours.start()
    yield Sharing(postgres_engine(database, application_name=f"workflows {node_id}"), node_id), ours
    ours.stop()


def main(arguments: Namespace) -> None:
    with ExitStack() as stack:
        sharing = ours = None
        if arguments.database is not None:
            sharing, ours = stack.enter_context(shared(arguments))
        steps = RecordedSteps(arguments.data_dir, arguments.node_id, ours)
        engine = JobEngine(
            arguments.data_dir,
            steps,
            Limits(2, {"limited": 1}),
            destinations={"a": 2, "b": 2},
            sharing=sharing,
            version=arguments.version,
        )
        if arguments.recovers_nothing:  # as when the database can't be written at that moment
            stack.enter_context(patch("dbos._dbos.startup_recovery_thread"))
        engine.start()
        if arguments.overclaim:  # as if the threads of what was begun never got to run
            begun = _get_dbos_instance()._active_workflows_set
            stack.enter_context(patch.object(begun, "count_for_queue", return_value=0))
        left_watch = LeftWatch(
            engine, lambda job, generation: engine.enqueue(job, 100, generation + 1, "chest"), LEFT_SECONDS
        )
        left_watch.start()

        def begin_again(alive: Collection[str]) -> None:
            for job_id in engine.abandon_old(alive):
                engine.enqueue(job_id, 100, 1, "chest")

        if sharing is None:
            begin_again(())
        else:
            takeover = Takeover(
                sharing.database,
                arguments.node_id,
                engine.hand_on,
                has_work=engine.has_work,
                on_versions=begin_again,
            )
            takeover.start()
            stack.callback(takeover.stop)
        known = engine.enqueued([(job_id, 0) for job_id in arguments.jobs])
        (arguments.data_dir / "known").write_text(" ".join(sorted(known)))
        for job_id in arguments.jobs:
            engine.enqueue(job_id, 100, 0, "limited" if "limited" in job_id else "chest")
        for _line in sys.stdin:
            forgotten = engine.forget(time.time(), 1000)
            (arguments.data_dir / "forgotten").write_text(str(forgotten))
        left_watch.stop()
        engine.stop()


def _arguments() -> Namespace:
    parser = ArgumentParser()
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("jobs", nargs="*")
    parser.add_argument("--database")
    parser.add_argument("--password-file", type=Path)
    parser.add_argument("--node-id", default="")
    parser.add_argument("--recovers-nothing", action="store_true")
    parser.add_argument("--version", default=WORKFLOW_VERSION)
    parser.add_argument("--overclaim", action="store_true", help="The engine thinks that nothing runs.")
    return parser.parse_args()


if __name__ == "__main__":
    main(_arguments())
