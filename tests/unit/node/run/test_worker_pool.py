"""Real worker processes: typed failures, crashes, timeouts and the end of the pool."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from node.errors import WorkerCrashed
from node.run.worker_pool import NODE_STOPPING, PipelineFailed, WorkerPool
from node.triton_server import free_port
from pipelines.request import Request
from tests.integration.receiving import wait_for

PIPELINE = "chest_ct_pneumonia"
Progress = Callable[[str, int, int], None]


class Pool(WorkerPool):
    """A pool of one worker. A run of PIPELINE stays in its first stage: the server that it asks takes the
    connection and never answers."""

    def __init__(self) -> None:
        super().__init__(1)
        self._silent = socket.create_server(("127.0.0.1", 0))

    def stop(self) -> None:
        super().stop()
        self._silent.close()

    @property
    def pid(self) -> int:
        return self._started[-1].pid

    def start_run(
        self,
        pipeline: str = PIPELINE,
        *,
        on_progress: Progress = lambda *_: None,
        port: int = 0,
        step_timeout_seconds: float = 60.0,
    ) -> dict[str, Any]:
        request = Request(
            pipeline=pipeline,
            paths=(),
            out=Path("unused"),
            software_version="0",
            content_datetime=datetime(2026, 1, 1, tzinfo=UTC),
        )
        return self.run(
            request,
            on_progress,
            triton_url=f"127.0.0.1:{port or self._silent.getsockname()[1]}",
            request_timeout_seconds=30.0,
            step_timeout_seconds=step_timeout_seconds,
        )

    def unknown_pipeline(self) -> None:
        """A run that ends at once, by the worker's own answer."""
        with pytest.raises(PipelineFailed, match="'nonsense' isn't known") as raised:
            self.start_run("nonsense")
        assert (raised.value.code, raised.value.retryable) == ("unknown_pipeline", False)


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    pool.stop()


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_typed_failures_cross_the_process_boundary_and_the_worker_stays(pool: Pool) -> None:
    pool.unknown_pipeline()
    before = pool.pid
    stages = []
    with pytest.raises(PipelineFailed, match="model lungs at") as raised:
        pool.start_run(port=free_port(), on_progress=lambda *event: stages.append(event))
    assert (raised.value.code, raised.value.retryable) == ("triton_unavailable", True)
    assert stages == [("check", 0, 0)]
    assert pool.pid == before and not gone(before)


def test_a_worker_that_was_started_early_takes_the_first_run(pool: Pool) -> None:
    pool.start()
    pid = pool.pid
    pool.unknown_pipeline()
    assert pool.pid == pid


def test_a_killed_worker_is_reported_and_replaced(pool: Pool) -> None:
    with pytest.raises(WorkerCrashed, match=r"worker \d+ ended with code -9") as raised:
        pool.start_run(on_progress=lambda *_: os.kill(pool.pid, signal.SIGKILL))
    assert (raised.value.code, raised.value.retryable) == ("worker_crashed", True)
    dead = pool.pid
    pool.unknown_pipeline()
    assert pool.pid != dead and gone(dead)


def test_a_worker_that_died_idle_is_replaced(pool: Pool) -> None:
    pool.unknown_pipeline()
    dead = pool.pid
    os.kill(dead, signal.SIGKILL)
    wait_for(lambda: not pool._started[-1].alive)
    pool.unknown_pipeline()
    assert pool.pid != dead


def test_a_run_that_takes_too_long_is_killed(pool: Pool) -> None:
    pool.unknown_pipeline()  # the worker is warm: the time goes into the run
    with pytest.raises(WorkerCrashed, match="the pipeline took longer than 1 s") as raised:
        pool.start_run(step_timeout_seconds=1.0)
    assert (raised.value.code, raised.value.retryable) == ("step_timeout", True)
    assert "run.step_timeout_seconds" in raised.value.hint
    assert gone(pool.pid)
    pool.unknown_pipeline()


def test_a_worker_whose_run_was_left_is_not_used_again(pool: Pool) -> None:
    """Else the next run would be given the answer of the one before."""

    def broken(*_: object) -> None:
        raise RuntimeError("the log is full")

    with pytest.raises(RuntimeError):
        pool.start_run(on_progress=broken)
    left = pool.pid
    assert gone(left)
    pool.unknown_pipeline()
    assert pool.pid != left


def test_stop_ends_what_runs_and_what_waits(pool: Pool) -> None:
    raised: list[WorkerCrashed] = []
    running = threading.Event()

    def run() -> None:
        try:
            pool.start_run(on_progress=lambda *_: running.set())
        except WorkerCrashed as error:
            raised.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]  # one has the worker, one waits for it
    for thread in threads:
        thread.start()
    assert running.wait(30)
    started = time.monotonic()
    pool.stop()
    for thread in threads:
        thread.join(30)
    assert time.monotonic() - started < 10
    assert [(error.code, error.retryable) for error in raised] == [(NODE_STOPPING, True)] * 2
    assert gone(pool.pid)
    with pytest.raises(WorkerCrashed, match="the node is stopping"):
        pool.start_run(port=free_port())


def test_smaller_priorities_get_a_worker_first() -> None:
    pool = WorkerPool(1)
    held, order = pool._take(100), []
    waiting = []
    for priority in (300, 100, 200, 100):

        def wait(priority: int = priority) -> None:
            worker = pool._take(priority)
            order.append(priority)
            pool._give_back(worker)

        waiting.append(threading.Thread(target=wait))
        waiting[-1].start()
    wait_for(lambda: len(pool._waiting) == 4)
    pool._give_back(held)
    for thread in waiting:
        thread.join(10)
    assert order == [100, 100, 200, 300]


def test_a_candidates_process_stands_back_and_doesnt_warm_up() -> None:
    pool = WorkerPool(1, nice=19, warm=False)
    pool.start()
    try:
        (worker,) = pool._started
        assert os.getpriority(os.PRIO_PROCESS, worker.pid) == 19
        arguments = worker._process.args
        assert isinstance(arguments, list) and arguments[-1] == "--cold"
        assert json.loads(worker._events.get(timeout=120) or "") == {"event": "ready"}
    finally:
        pool.stop()
