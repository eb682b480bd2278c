"""A process with a ``JobEngine`` whose steps write down what they are asked: something to kill.

``python -m tests.unit.node.run.engine_process DATA_DIR [JOB_ID …]`` starts the engine, enqueues the jobs and
runs until its stdin closes. Every call of a step is a line of ``DATA_DIR/calls``. What the steps answer is in
the job's id: ``retry``, ``hang`` (until ``DATA_DIR/go`` is there), ``refuse`` (the first delivery to ``b``).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from node.run.engine import JobEngine
from node.run.steps import STOP, Next

RETRY_SECONDS = 0.5


class RecordedSteps:
    """The interface of ``node.run.steps.Steps``."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    def execute(self, job_id: str, generation: int, attempt: int, failures: int) -> Next:
        self._write(f"execute {job_id} {generation} {attempt} {failures}")
        if "retry" in job_id and attempt < 3:
            return Next(destinations=[], retry_in_seconds=RETRY_SECONDS, failures=failures + 1)
        while "hang" in job_id and not (self._data_dir / "go").exists():
            time.sleep(0.02)
        return Next(destinations=["a", "b"], retry_in_seconds=None, failures=failures)

    def deliver(self, job_id: str, destination: str, generation: int, attempt: int) -> Next:
        self._write(f"deliver {job_id} {generation} {destination} {attempt}")
        if "refuse" in job_id and destination == "b" and attempt == 1:
            return Next(destinations=[], retry_in_seconds=RETRY_SECONDS, failures=0)
        return STOP

    def _write(self, line: str) -> None:
        with (self._data_dir / "calls").open("a") as stream:
            stream.write(f"{time.time()} {line}\n")


def main(data_dir: Path, jobs: list[str]) -> None:
    engine = JobEngine(data_dir, RecordedSteps(data_dir), workers=2, destinations=["a", "b"])
    engine.start()
    for job_id in jobs:
        engine.enqueue(job_id, 100, 0)
    sys.stdin.read()
    engine.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
