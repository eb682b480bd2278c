"""The simulation behind docs/scaling.md: against queueing theory, and the document against it."""

from __future__ import annotations

import math
import random
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from tests.benchmarks.sizing import (
    HEAD,
    KINDS,
    TRITONS,
    Plant,
    Series,
    Site,
    Times,
    arrivals,
    fewest,
    instances,
    markdown,
    row,
)

TEXT = (Path(__file__).parents[3] / "docs/scaling.md").read_text()
#: a job takes 10 s, whatever it is, and nothing else takes time
PLAIN = Times(
    receive_slice=0,
    judge_series=0,
    judge_slice=0,
    quiet=0,
    job=10.0,
    job_slice=0,
    triton_slice=0,
    worker_lives=math.inf,
    refused=0,
)


def times(triton: str) -> Times:
    return replace(Times(), triton_slice=Times().triton_slice / TRITONS[triton])


def poisson(rate: float, count: int) -> list[Series]:
    rng, at, found = random.Random(7), 1000.0, []  # noqa: S311 - a simulation
    for _ in range(count):
        at += rng.expovariate(rate)
        found.append(Series(at, KINDS[0], 100))
    return found


def test_waiting_is_that_of_pollaczek_and_khinchine() -> None:
    """M/D/1: the mean wait is rho * s / (2 (1 - rho))."""
    outcome = Site(Plant(1, 1, 1), PLAIN, 1).run(poisson(0.07, 20_000))
    wait = statistics.mean(outcome.turnaround) - 10.0
    assert wait == pytest.approx(0.7 * 10.0 / (2 * 0.3), rel=0.08)
    assert outcome.busy["worker"] == pytest.approx(200_000)


def test_jobs_that_share_triton_take_longer_and_a_second_server_helps() -> None:
    shared = replace(PLAIN, job=0, triton_slice=0.1)
    two = [Series(1000.0, KINDS[0], 640)] * 2
    (first, second) = Site(Plant(1, 2, 1), shared, 1).run(two).turnaround
    assert second == pytest.approx(128.0)
    assert first == pytest.approx(128.0 - 6.4), "they take turns"
    assert Site(Plant(1, 2, 2), shared, 1).run(two).turnaround == pytest.approx([64.0, 64.0])


def test_a_worker_that_dies_costs_the_takeover_and_the_job_again() -> None:
    mortal = replace(PLAIN, worker_lives=20.0)
    outcome = Site(Plant(1, 400, 1), mortal, 1).run([Series(1000.0, KINDS[0], 9)] * 400)
    again = [round((seconds - 10.0) / 30.0) for seconds in outcome.turnaround]
    assert outcome.turnaround == pytest.approx([10.0 + 30.0 * n for n in again])
    assert 0.4 < statistics.mean(n > 0 for n in again) < 0.6, "one attempt in two"


def test_what_comes_is_what_a_day_has() -> None:
    found = list(arrivals(200, seed=3))
    assert len(found) / 4 / 3600 == pytest.approx(sum(k.a_day for k in KINDS) * 200 * 0.088 / 3600, rel=0.03)
    assert found == sorted(found, key=lambda one: one.at)
    assert instances(10) == pytest.approx(10 * instances(1))


def test_more_hospitals_never_need_less() -> None:
    small, _ = fewest(5, times("gpu"), 60.0)
    large, outcome = fewest(200, times("gpu"), 60.0)
    assert large.workers >= small.workers
    assert outcome.p(0.99) <= 60.0


@pytest.mark.parametrize(("triton", "hospitals"), [("gpu", 10), ("gpu", 100), ("8-cores", 1)])
def test_the_document_has_what_the_simulation_says(triton: str, hospitals: int) -> None:
    assert TEXT.count(markdown(HEAD)) == 2
    assert markdown(row(hospitals, times(triton), 60.0, 250)) in TEXT


def test_the_document_names_the_bottlenecks_as_the_simulation_does() -> None:
    plain = re.sub(r"\s+", " ", TEXT)
    with pytest.raises(ValueError, match="would be busy 113 % of the peak hour") as judge:
        fewest(1000, times("gpu"), 60.0)
    assert "would be busy 113 % of the peak hour" in plain
    assert "judges" in str(judge.value)
    with pytest.raises(ValueError, match="one series in a hundred has 800 slices: 63 s"):
        fewest(1, times("2-cores"), 60.0)
    assert "one series in a hundred has 800 slices, which take 63 s" in plain
