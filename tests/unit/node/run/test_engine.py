"""The workflow engine in a process of its own, as it is in the node: order, retries, and kill -9."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from node.run.forgetting import AT_ONCE, KEPT_SECONDS, ForgetWatch
from tests.integration.receiving import wait_for
from tests.unit.node.run.engine_process import LEFT_SECONDS, RETRY_SECONDS

ROOT = Path(__file__).parents[4]
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start an engine with these jobs; it is ended with the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def started(*jobs: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.unit.node.run.engine_process", str(tmp_path), *jobs]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT))
        return processes[-1]

    yield started
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def calls(data_dir: Path) -> list[str]:
    path = data_dir / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split(" ", 1)[1] for line in lines]


def when(data_dir: Path, call: str) -> float:
    lines = (data_dir / "calls").read_text().splitlines()
    return next(float(line.split()[0]) for line in lines if line.endswith(call))


def wait_for_calls(data_dir: Path, *wanted: str) -> None:
    wait_for(lambda: set(wanted) <= set(calls(data_dir)), seconds=60, what=f"{wanted}")


def test_jobs_run_once_are_retried_with_delay_and_delivered_everywhere(tmp_path: Path, start: Start) -> None:
    process = start("plain", "plain", "retry", "refuse", "locked")
    wait_for_calls(
        tmp_path,
        "deliver plain 0 b 1",
        "deliver retry 0 a 1",
        "deliver retry 0 b 1",
        "deliver refuse 0 b 2",
        "deliver locked 0 a 1",
    )
    wait_for(lambda: calls(tmp_path).count("deliver locked 0 b 1") == 2, what="a database that answers")
    with closing(sqlite3.connect(tmp_path / "workflows.sqlite")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    time.sleep(0.5)  # whatever would run twice has had its time
    assert sorted(calls(tmp_path)) == sorted(
        [
            "execute plain 0 1 0",
            "deliver plain 0 a 1",
            "deliver plain 0 b 1",
            "execute retry 0 1 0",
            "execute retry 0 2 1",
            "execute retry 0 3 2",
            "deliver retry 0 a 1",
            "deliver retry 0 b 1",
            "execute refuse 0 1 0",
            "deliver refuse 0 a 1",
            "deliver refuse 0 b 1",
            "deliver refuse 0 b 2",
            "execute locked 0 1 0",
            "execute locked 0 1 0",
            "deliver locked 0 a 1",
            "deliver locked 0 b 1",
            "deliver locked 0 b 1",
        ]
    )
    waited = when(tmp_path, "execute retry 0 2 1") - when(tmp_path, "execute retry 0 1 0")
    assert waited >= RETRY_SECONDS
    assert when(tmp_path, "deliver refuse 0 b 2") - when(tmp_path, "deliver refuse 0 b 1") >= RETRY_SECONDS
    process.communicate(b"", timeout=30)
    assert process.returncode == 0


def test_kill_9_in_the_middle_of_a_step(tmp_path: Path, start: Start) -> None:
    """The step that was under way is done again, one whose successors were begun isn't; what is enqueued
    again after the restart stays one job."""
    process = start("plain", "hang")
    wait_for_calls(tmp_path, "execute hang 0 1 0", "deliver plain 0 a 1", "deliver plain 0 b 1")
    process.send_signal(signal.SIGKILL)
    process.wait()
    start("plain", "hang", "new")
    wait_for(lambda: calls(tmp_path).count("execute hang 0 1 0") == 2, seconds=60)
    # a start enqueues what the engine doesn't know
    wait_for(lambda: (tmp_path / "known").read_text() == "hang plain", seconds=60)
    (tmp_path / "go").touch()
    wait_for_calls(tmp_path, "deliver hang 0 a 1", "deliver hang 0 b 1")
    time.sleep(0.5)
    assert [calls(tmp_path).count(f"execute {job} 0 1 0") for job in ("plain", "hang")] == [1, 2]
    assert [calls(tmp_path).count(f"deliver hang 0 {name} 1") for name in "ab"] == [1, 1]


def test_what_was_not_taken_up_at_the_start_is_taken_up_later_and_nothing_that_runs(
    tmp_path: Path, start: Start
) -> None:
    process = start("hang")
    wait_for_calls(tmp_path, "execute hang 0 1 0")
    process.send_signal(signal.SIGKILL)
    process.wait()
    start("--recovers-nothing")
    wait_for(lambda: calls(tmp_path).count("execute hang 0 1 0") == 2, seconds=60, what="it to be taken up")
    time.sleep(4 * LEFT_SECONDS)  # it is running: nobody begins it a third time
    assert calls(tmp_path).count("execute hang 0 1 0") == 2
    (tmp_path / "go").touch()
    wait_for_calls(tmp_path, "deliver hang 0 a 1", "deliver hang 0 b 1")


def test_a_job_whose_workflow_broke_begins_again_once(tmp_path: Path, start: Start) -> None:
    start("unnoted")
    wait_for_calls(tmp_path, "execute unnoted 0 1 0", "deliver unnoted 1 a 1", "deliver unnoted 1 b 1")
    time.sleep(3 * LEFT_SECONDS)
    assert calls(tmp_path).count("execute unnoted 1 1 0") == 1
    assert not [call for call in calls(tmp_path) if " unnoted 2 " in call]


def test_kill_9_while_a_retry_waits(tmp_path: Path, start: Start) -> None:
    process = start("retry")
    wait_for_calls(tmp_path, "execute retry 0 1 0")
    time.sleep(RETRY_SECONDS / 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    start()
    wait_for_calls(tmp_path, "execute retry 0 3 2", "deliver retry 0 a 1", "deliver retry 0 b 1")


def test_a_job_of_another_workflow_version_begins_again(tmp_path: Path, start: Start) -> None:
    old = start("hang", "--version", "0")
    wait_for_calls(tmp_path, "execute hang 0 1 0")
    old.send_signal(signal.SIGKILL)
    old.wait()
    (tmp_path / "go").touch()
    start()
    wait_for_calls(tmp_path, "execute hang 1 1 0", "deliver hang 1 a 1", "deliver hang 1 b 1")
    assert calls(tmp_path).count("execute hang 0 1 0") == 1


@pytest.mark.parametrize("options", [(), ("--overclaim",)], ids=["as counted", "however it counts"])
def test_a_pipelines_own_limit(tmp_path: Path, start: Start, options: tuple[str, ...]) -> None:
    """Of two workers, one at most runs the pipeline that is limited to one."""
    start("hang-limited-1", "hang-limited-2", "plain", *options)
    wait_for_calls(tmp_path, "execute plain 0 1 0", "deliver plain 0 a 1")
    time.sleep(0.5)
    assert len([call for call in calls(tmp_path) if "execute hang-limited" in call]) == 1
    (tmp_path / "go").touch()
    wait_for_calls(tmp_path, "execute hang-limited-1 0 1 0", "execute hang-limited-2 0 1 0")


def test_what_ended_is_forgotten_and_what_is_under_way_goes_on(tmp_path: Path, start: Start) -> None:
    process = start("plain", "retry", "hang")
    wait_for_calls(tmp_path, "deliver plain 0 b 1", "deliver retry 0 a 1", "deliver retry 0 b 1")
    wait_for_calls(tmp_path, "deliver plain 0 a 1", "execute hang 0 1 0")
    wait_for(lambda: statuses(tmp_path).count("SUCCESS") == 8, seconds=60, what="workflows to end")
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()
    wait_for(lambda: statuses(tmp_path) == ["PENDING"], seconds=60, what="them to be forgotten")
    wait_for((tmp_path / "forgotten").exists, seconds=60)
    assert (tmp_path / "forgotten").read_text() == "8"
    (tmp_path / "go").touch()
    wait_for_calls(tmp_path, "deliver hang 0 a 1", "deliver hang 0 b 1")


def statuses(data_dir: Path) -> list[str]:
    with closing(sqlite3.connect(data_dir / "workflows.sqlite", timeout=30)) as connection:
        return [row[0] for row in connection.execute("SELECT status FROM workflow_status")]


def test_forgetting_goes_on_until_nothing_is_due() -> None:
    asked: list[tuple[float, int]] = []
    left = [AT_ONCE, AT_ONCE, 3]

    def forget(before: float, limit: int) -> int:
        asked.append((before, limit))
        return left.pop(0)

    assert ForgetWatch(forget).look() == 2 * AT_ONCE + 3
    assert {limit for _, limit in asked} == {AT_ONCE}
    assert all(0 <= time.time() - KEPT_SECONDS - before < 60 for before, _ in asked)
