"""Completeness: which rule completes a series when, over restarts too."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import update

from node.database import series
from node.receive.series import FILING_SECONDS, instance_paths
from tests.unit.node.receive.conftest import Bench
from tests.unit.node.receive.test_spool import incoming


def store(bench: Bench, number: int, association: str = "a1", uid: str = "1.2.3") -> None:
    bench.store(replace(incoming(uid, number), association_id=association))


def states(bench: Bench) -> list[tuple[int, str]]:
    return [(row["version"], row["state"]) for row in bench.series_rows()]


def test_released_and_quiet(bench: Bench) -> None:
    store(bench, 1)
    bench.now += 10
    bench.tracker.association_ended("a1", released=True)
    bench.now += 4.9
    assert 0 < bench.tracker.check() <= 0.11
    assert bench.completed == []
    bench.now += 0.2
    bench.check()
    assert bench.completed == [("1.2.3", 1)]
    evidence = bench.series_rows()[0]["evidence"]
    assert evidence["rule"] == "association_release"
    assert evidence["quiet_seconds"] == 15.1
    assert evidence["instances"] == 1
    assert evidence["associations"] == {"open": [], "released": 1, "aborted": 0, "lost": 0}


def test_quiet_while_the_association_stays_open(bench: Bench) -> None:
    store(bench, 1)
    bench.now += 20
    store(bench, 2)
    bench.now += 29
    bench.check()
    assert bench.completed == []
    bench.now += 1
    bench.check()
    assert bench.series_rows()[0]["evidence"]["rule"] == "quiet_time"


def test_hard_limit(bench: Bench) -> None:
    for number in range(145):
        store(bench, number)
        bench.now += 25
        bench.check()
    assert bench.series_rows()[0]["evidence"]["rule"] == "hard_limit"


def test_every_association_must_be_released(bench: Bench) -> None:
    store(bench, 1, "a1")
    store(bench, 2, "a2")
    bench.tracker.association_ended("a1", released=True)
    bench.now += 6
    bench.check()
    assert bench.completed == []
    bench.tracker.association_ended("a2", released=False)
    bench.now += 6
    bench.check()
    assert bench.completed == []  # an abort is no release: quiet time decides
    bench.now += 24
    bench.check()
    assert bench.completed == [("1.2.3", 1)]


def test_a_new_association_takes_the_release_back(bench: Bench) -> None:
    store(bench, 1, "a1")
    bench.tracker.association_ended("a1", released=True)
    bench.now += 4
    store(bench, 2, "a2")
    bench.now += 6
    bench.check()
    assert bench.completed == []
    bench.tracker.association_ended("a2", released=True)
    bench.now += 5
    bench.check()
    assert bench.completed == [("1.2.3", 1)]


def test_sending_again_keeps_an_open_series_open(bench: Bench) -> None:
    store(bench, 1, "a1")
    bench.tracker.association_ended("a1", released=False)
    bench.now += 25
    store(bench, 1, "a2")  # the sender came back and starts over
    bench.now += 25
    bench.check()
    assert bench.completed == []
    assert bench.series_rows()[0]["instance_count"] == 1


def test_sending_again_after_completion_changes_nothing(bench: Bench) -> None:
    store(bench, 1)
    bench.now += 31
    bench.check()
    store(bench, 1, "a2")
    assert states(bench) == [(1, "complete")]


def test_late_instances_make_versions_with_all_instances_so_far(bench: Bench) -> None:
    for number in (1, 2, 3):
        store(bench, number, f"a{number}")
        bench.now += 31
        bench.check()
    assert bench.completed == [("1.2.3", 1), ("1.2.3", 2), ("1.2.3", 3)]
    assert [row["instance_count"] for row in bench.series_rows()] == [1, 2, 3]
    with bench.engine.connect() as connection:
        counts = [len(instance_paths(connection, bench.data_dir, "1.2.3", v)) for v in (1, 2, 3)]
    assert counts == [1, 2, 3]
    assert bench.metrics.registry.get_sample_value("pacsnode_series_opened_total") == 3
    assert bench.metrics.registry.get_sample_value("pacsnode_series_late_total") == 2


@pytest.mark.parametrize(("filing", "counts"), [(0.2, 0.2), (60.0, FILING_SECONDS)])
def test_filing_is_quiet_time_for_a_moment(bench: Bench, filing: float, counts: float) -> None:
    """What another association sent of the series may lag as well."""
    store(bench, 1, "a1")
    ended_at = bench.now
    bench.now += filing
    bench.tracker.association_ended("a1", released=True, at=ended_at)
    (row,) = bench.series_rows()
    assert row["released_at"] == pytest.approx(bench.now - counts)


def test_a_restart_keeps_the_timers_and_forgets_open_associations(bench: Bench) -> None:
    store(bench, 1, "a1", uid="1.2.3")
    store(bench, 1, "a2", uid="1.2.4")
    bench.tracker.association_ended("a2", released=True)
    bench.now += 4
    bench.restart()
    bench.now += 2
    bench.check()
    assert bench.completed == [("1.2.4", 1)]
    bench.now += 24
    bench.check()
    assert bench.completed == [("1.2.4", 1), ("1.2.3", 1)]
    rows = {row["series_instance_uid"]: row for row in bench.series_rows()}
    assert rows["1.2.3"]["evidence"]["associations"]["lost"] == 1
    assert rows["1.2.3"]["evidence"]["rule"] == "quiet_time"


def test_complete_but_unrouted_series_are_handed_over_again_after_a_restart(bench: Bench) -> None:
    store(bench, 1)
    bench.now += 31
    bench.check()
    bench.check()
    assert bench.completed == [("1.2.3", 1)]
    bench.restart()
    bench.check()
    assert bench.completed == [("1.2.3", 1)] * 2
    with bench.engine.begin() as connection:
        connection.execute(update(series).values(state="routed"))
    bench.restart()
    bench.check()
    assert len(bench.completed) == 2


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)  # of time, in which PostgreSQL is its own
def test_many_series_open_at_once(bench: Bench) -> None:
    for number in range(200):
        store(bench, 1, uid=f"1.2.{number}")
    assert bench.tracker.check() > 0
    bench.now += 30
    bench.check()
    assert len(bench.completed) == 200
