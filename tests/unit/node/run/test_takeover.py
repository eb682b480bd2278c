"""Several nodes on one PostgreSQL database: a node that is gone, one that is stopped, one that is cut off."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.config import DatabaseConfig
from tests.integration.receiving import wait_for
from tests.postgres import PostgresCluster
from tests.unit.node.run.engine_process import GRACE_SECONDS
from tests.unit.node.run.test_engine import Start, calls, start

__all__ = ["start"]  # a fixture

LONG_ENOUGH = 2 * GRACE_SECONDS


@pytest.fixture
def database(postgres: PostgresCluster) -> Iterator[DatabaseConfig]:
    with postgres.database() as database:
        yield database


class Cluster:
    """Nodes by their ids."""

    def __init__(self, data_dir: Path, start: Start, database: DatabaseConfig) -> None:
        self._data_dir, self._start, self._database = data_dir, start, database

    def node(self, node_id: str, *jobs: str, version: str = "1") -> subprocess.Popen[bytes]:
        url, password_file = str(self._database.url), str(self._database.password_file)
        options = ["--database", url, "--password-file", password_file, "--node-id", node_id]
        return self._start(*jobs, *options, "--version", version)

    def finish(self) -> None:
        """Let what hangs end."""
        (self._data_dir / "go").touch()

    def executed(self, job: str) -> list[str]:
        """Who executed it, in order."""
        return [call.split()[0] for call in calls(self._data_dir) if f"execute {job} " in call]

    def deliveries(self, job: str) -> list[str]:
        return sorted(call.split(" ", 1)[1] for call in calls(self._data_dir) if f"deliver {job} " in call)

    def wait_executed(self, job: str, *by: str, seconds: float = 60) -> None:
        wait_for(lambda: self.executed(job) == list(by), seconds=seconds, what=f"{job} executed by {by}")

    def wait_delivered_once(self, job: str, generation: int = 0) -> None:
        wanted = [f"deliver {job} {generation} {name} 1" for name in "ab"]
        wait_for(lambda: self.deliveries(job) == wanted, seconds=60, what=f"{job} delivered")
        time.sleep(0.5)
        assert self.deliveries(job) == wanted


@pytest.fixture
def cluster(tmp_path: Path, start: Start, database: DatabaseConfig) -> Cluster:
    return Cluster(tmp_path, start, database)


def test_a_node_that_is_gone_and_one_that_is_stopped(cluster: Cluster) -> None:
    """Killed: its job goes on elsewhere. Stopped for longer than that takes: it is waited for."""
    first = cluster.node("n1", "hang1", "plain")
    cluster.wait_executed("hang1", "n1")
    cluster.wait_delivered_once("plain")
    second = cluster.node("n2")
    first.send_signal(signal.SIGKILL)
    first.wait()
    cluster.wait_executed("hang1", "n1", "n2")
    assert cluster.executed("plain") == ["n1"], "what was finished isn't repeated"
    second.send_signal(signal.SIGSTOP)
    cluster.node("n3")
    time.sleep(LONG_ENOUGH + 3)
    assert cluster.executed("hang1") == ["n1", "n2"], "a node that lives is left alone"
    cluster.finish()
    second.send_signal(signal.SIGCONT)
    cluster.wait_delivered_once("hang1")
    assert cluster.executed("hang1") == ["n1", "n2"]


def test_a_node_that_is_cut_off_and_goes_on(
    tmp_path: Path, cluster: Cluster, postgres: PostgresCluster, database: DatabaseConfig
) -> None:
    """Connections that break are made again, and nobody takes over. One that can't be made for long: another
    goes on with its job, and what it still does counts for nothing."""
    cluster.node("n1", "hang1")
    cluster.wait_executed("hang1", "n1")
    cluster.node("n2")
    assert postgres.break_connections(database, "lock n1") > 0
    postgres.break_connections(database, "workflows n1")
    time.sleep(LONG_ENOUGH)
    assert cluster.executed("hang1") == ["n1"]
    (tmp_path / "cut-n1").touch()
    wait_for(lambda: len(cluster.executed("hang1")) == 2, seconds=60, what="a takeover")
    cluster.finish()
    cluster.wait_delivered_once("hang1")
    assert len(cluster.executed("hang1")) == 2


def test_versions_live_side_by_side_until_the_old_one_is_gone(cluster: Cluster) -> None:
    old = cluster.node("old", "hang1", version="0")
    cluster.wait_executed("hang1", "old")
    cluster.node("new")
    time.sleep(LONG_ENOUGH)
    assert cluster.executed("hang1") == ["old"]
    old.send_signal(signal.SIGKILL)
    old.wait()
    cluster.wait_executed("hang1", "old", "new")
    cluster.finish()
    cluster.wait_delivered_once("hang1", generation=1)
