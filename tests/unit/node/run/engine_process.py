"""A process with a ``JobEngine`` whose steps write down what they are asked: something to kill.

``python -m tests.unit.node.run.engine_process DATA_DIR [JOB_ID …]`` starts the engine, enqueues the jobs and
runs until its stdin closes. Every call of a step is a line of ``DATA_DIR/calls``. What the steps answer is in
the job's id: ``retry``, ``hang`` (until ``DATA_DIR/go`` is there), ``refuse`` (the first delivery to ``b``),
``locked`` (the database can't be written when it is first run and first delivered to ``b``).
"""

from __future__ import annotations

import sqlite3
import sys
import time
from pathlib import Path

from sqlalchemy.exc import OperationalError

from node.run.engine import JobEngine
from node.run.steps import STOP, Next

RETRY_SECONDS = 0.5


class RecordedSteps:
    """The interface of ``node.run.steps.Steps``."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._failed: set[str] = set()

    def execute(self, job_id: str, generation: int, attempt: int, failures: int) -> Next:
        self._write(f"execute {job_id} {generation} {attempt} {failures}")
        if "retry" in job_id and attempt < 3:
            return Next(destinations=[], retry_in_seconds=RETRY_SECONDS, failures=failures + 1)
        self._fail_once("locked", job_id)
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
            stream.write(f"{time.time()} {line}\n")


def main(data_dir: Path, jobs: list[str]) -> None:
    engine = JobEngine(data_dir, RecordedSteps(data_dir), workers=2, destinations={"a": 2, "b": 2})
    engine.start()
    for job_id in jobs:
        engine.enqueue(job_id, 100, 0)
    sys.stdin.read()
    engine.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
