"""Nodes on one database: ids, who is gone, and that a run which was taken over leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine, select, update

from node.database import nodes, open_database
from node.errors import ConfigError
from node.run import membership
from node.run.boundary import STOP
from node.run.membership import GRACE_SECONDS, Membership, Takeover
from node.run.steps import TAKEN_OVER_SECONDS, Steps
from node.run.worker_pool import PipelineFailed
from tests.postgres import PostgresCluster, until_free
from tests.unit.node.run.conftest import JOB, Bench


@pytest.fixture
def engine(tmp_path: Path, postgres: PostgresCluster) -> Iterator[Engine]:
    """PostgreSQL alone."""
    with postgres.database() as database:
        opened = open_database(tmp_path, database)
        yield opened
        opened.dispose()


def join(engine: Engine, node_id: str) -> Membership:
    ours = Membership(engine, node_id, "worker", "1")
    ours.start()
    return ours


def leave(engine: Engine, ours: Membership) -> None:
    """Stop it, and wait until the server has noticed."""
    ours.stop()
    until_free(engine, ours._lock.name)


def take_over(engine: Engine, node_id: str) -> None:
    """What another node does first."""
    with engine.begin() as connection:
        raised = {"epoch": nodes.c.epoch + 1}
        connection.execute(update(nodes).where(nodes.c.node_id == node_id).values(raised))


class Pair:
    """The same job at two nodes."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.members = {name: join(bench.engine, name) for name in ("n1", "n2")}
        self.steps = {name: self._steps(name) for name in self.members}
        self.epochs = {name: ours.epoch for name, ours in self.members.items()}

    def _steps(self, name: str) -> Steps:
        config = self.bench.config.model_copy(update={"node_id": name})
        services = self.bench.steps._services
        return Steps(replace(services, config=config, membership=self.members[name]))

    def execute(self, name: str) -> object:
        return self.steps[name].execute(JOB, 0, 1, 0, self.epochs[name])

    def results(self) -> list[str]:
        return sorted(path.name for path in (self.bench.data_dir / "results").iterdir())


@pytest.fixture
def pair(bench: Bench) -> Iterator[Pair]:
    pair = Pair(bench)
    yield pair
    for ours in pair.members.values():
        ours.stop()


AGAIN = {"destinations": [], "retry_in_seconds": TAKEN_OVER_SECONDS, "failures": 0}


def test_a_run_that_was_taken_over_makes_nothing_and_changes_nothing(pair: Pair) -> None:
    pair.bench.pool.script = [lambda _request: take_over(pair.bench.engine, "n1")]
    assert pair.execute("n1") == AGAIN
    assert pair.results() == []
    assert pair.bench.job()["state"] == "running"
    assert pair.bench.deliveries() == {}


def test_two_runs_of_a_job_at_once_make_one_result_set(pair: Pair) -> None:
    """The second begins and ends while the first, which was taken over, still runs."""
    done = []

    def meanwhile(_request: object) -> None:
        take_over(pair.bench.engine, "n1")
        done.append(pair.execute("n2"))

    left = pair.bench.data_dir / "results" / f"{JOB}.partial-0-n3-7"
    left.mkdir(parents=True)  # by a node that was killed
    pair.bench.pool.script = [meanwhile]
    assert pair.execute("n1") == AGAIN
    assert done == [{"destinations": ["a", "b"], "retry_in_seconds": None, "failures": 0}]
    assert pair.results() == [JOB]
    assert pair.bench.job()["state"] == "delivering"


def test_a_failure_of_a_run_that_was_taken_over_isnt_the_jobs(pair: Pair) -> None:
    def fail(_request: object) -> None:
        take_over(pair.bench.engine, "n1")
        raise PipelineFailed("broken", code="series_refused", retryable=False)

    pair.bench.pool.script = [fail]
    assert pair.execute("n1") == AGAIN
    assert (pair.bench.job()["state"], pair.bench.job()["reason"]) == ("running", None)


def test_what_begins_after_the_node_saw_that_it_was_taken_over_counts(pair: Pair) -> None:
    take_over(pair.bench.engine, "n1")
    assert pair.execute("n1") == AGAIN
    pair.members["n1"]._see()
    pair.epochs["n1"] = pair.steps["n1"].epoch() or 0
    assert pair.execute("n1") not in (AGAIN, STOP)


def test_an_id_belongs_to_one_node(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "START_SECONDS", 0.3)
    first = join(engine, "n1")
    with pytest.raises(ConfigError, match="node_id: 'n1' is in use"):
        join(engine, "n1")
    epoch = first.epoch
    leave(engine, first)
    again = join(engine, "n1")
    assert again.epoch > epoch
    again.stop()


def test_only_a_node_that_is_gone_for_long_enough_is_taken_over(engine: Engine) -> None:
    now = [1000.0]
    handed_on: list[str] = []
    alive: list[set[str]] = []
    swept: list[float] = []
    gone, lives = join(engine, "gone"), join(engine, "lives")

    def hand_on(node_id: str) -> int:
        handed_on.append(node_id)
        return 1

    watch = Takeover(
        engine,
        "lives",
        hand_on,
        on_versions=alive.append,
        on_gone=lambda: swept.append(now[0]),
        clock=lambda: now[0],
    )
    assert watch.look() == []
    leave(engine, gone)
    assert watch.look() == []
    now[0] += GRACE_SECONDS / 2
    back = join(engine, "gone")
    assert watch.look() == []
    leave(engine, back)
    assert watch.look() == []
    now[0] += GRACE_SECONDS - 0.1
    assert watch.look() == []
    assert alive[-1] == {"1"}
    assert swept == []
    now[0] += 0.2
    assert watch.look() == ["gone"]
    assert handed_on == ["gone"]
    watch.look()
    assert len(swept) == 1, "jobs that it wrote down and didn't enqueue are looked for once"
    with engine.connect() as connection:
        epochs = {row.node_id: row.epoch for row in connection.execute(select(nodes))}
    assert epochs["gone"] > back.epoch
    assert epochs["lives"] == lives.epoch
    lives.stop()
