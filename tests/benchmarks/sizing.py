"""How much of what a hospital group needs: a discrete-event simulation of the node, from 1 hospital to 1,000.

Series arrive by hour and kind, are received, judged, routed, run by workers that ask Triton, and
delivered; workers die and destinations refuse. Stage times are those that docs/benchmarks.md has of our
own benchmarks; what isn't measured is an assumption, and named so in docs/scaling.md.

    python -m tests.benchmarks.sizing [--hospitals N ...] [--triton gpu|8-cores|2-cores] [--limit 60]

For each number of hospitals it looks for the fewest workers and Triton servers by which 99 % of the
results are in the archive within --limit seconds of their series' last instance, from 8 to 12 o'clock.
One database and one judging listener serve a cell; --cell says how many hospitals are in one at most.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import simpy

Returned = TypeVar("Returned")
#: of a simulated process
Work = Generator[simpy.Event, object, Returned]

#: share of a day's series that begin in each hour; assumption: two peaks, a quiet night
HOURS = (9, 7, 6, 6, 7, 10, 22, 48, 82, 92, 93, 85, 68, 74, 80, 76, 62, 44, 34, 29, 24, 19, 14, 9)
FROM_HOUR, TO_HOUR = 8, 12
#: results of the first part of an hour aren't counted: the queues were empty
WARM_UP_SECONDS = 900.0
#: slices that are asked of Triton before another job's turn
CHUNK = 64
#: mornings are simulated until so many results are expected: of one hospital a morning has ten
LEAST_RESULTS = 1500
#: one thread of one listener judges and routes for a cell; busier than that in the peak hour, it is too slow
JUDGE_BUSY = 0.8
MOST = 512


@dataclass(frozen=True)
class Kind:
    """Series that a PACS routes to us; lognormal sizes. matched: a route's pipeline runs on it."""

    name: str
    a_day: float
    median: float
    sigma: float
    least: int
    most: int
    bytes_each: int
    matched: bool

    def size(self, rng: random.Random) -> int:
        return round(min(max(rng.lognormvariate(math.log(self.median), self.sigma), self.least), self.most))

    def _sizes(self) -> list[int]:
        rng = random.Random(0)  # noqa: S311 - a simulation
        return [self.size(rng) for _ in range(4000)]

    @property
    def mean(self) -> float:
        """Of sizes, as they are drawn."""
        sizes = self._sizes()
        return sum(sizes) / len(sizes)

    def percentile(self, share: float) -> int:
        return int(percentile(self._sizes(), share))


#: of one hospital; assumption: a general hospital of some 400 beds whose PACS routes chest studies to us
KINDS = (
    Kind("chest CT, thin axial", 30, 300, 0.45, 60, 800, 526_000, True),
    Kind("chest CT, other series", 90, 80, 0.6, 1, 400, 526_000, False),
    Kind("chest radiographs", 100, 2, 0.3, 1, 4, 15_000_000, False),
)


@dataclass(frozen=True)
class Times:
    """Seconds. Measured: docs/benchmarks.md (70 slices 8.1 s, 133 slices 12.3 s, of which models 8.2 s)."""

    receive_slice: float = 0.2 / 133  # the receiver's CPU seconds
    judge_series: float = 0.02
    judge_slice: float = 0.0021  # header 0.05 ms, facts 1.04 ms, and 1 ms of a network file system (assumed)
    quiet: float = 5.0  # series.released_quiet_seconds
    job: float = 3.5  # a worker's for a job beside the models, queue and delivery included …
    job_slice: float = 0.0045  # … and for each slice
    triton_slice: float = 0.0617  # all models, by the embedded Triton on two processors
    takeover: float = 20.0  # assumed: 15 s until a worker is known to be gone, and 5 to begin again
    worker_lives: float = 86_400.0  # assumed
    refused: float = 0.002  # assumed share of deliveries that a PACS refuses once
    retry: float = 5.0


#: Triton servers -> how much faster than two processors. Assumptions but for the first: not measured.
TRITONS = {"2-cores": 1.0, "8-cores": 4.0, "gpu": 12.0}


@dataclass(frozen=True)
class Plant:
    """How many of each; a worker runs one job."""

    listeners: int
    workers: int
    tritons: int


@dataclass(frozen=True)
class Series:
    at: float
    kind: Kind
    slices: int


@dataclass
class Outcome:
    """turnaround: from the last instance to the result's delivery. waits: for a place, by what was waited
    for.
    """

    turnaround: list[float] = field(default_factory=list)
    waits: dict[str, list[float]] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)

    mornings: int = 0

    def add(self, other: Outcome) -> None:
        """Another morning."""
        self.turnaround += other.turnaround
        for place, waits in other.waits.items():
            self.waits.setdefault(place, []).extend(waits)
            self.busy[place] = self.busy.get(place, 0.0) + other.busy[place]
        self.mornings += 1

    def p(self, share: float) -> float:
        return percentile(self.turnaround, share)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is no less than this share of them; 0 of none."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)] if values else 0.0


def arrivals(hospitals: int, seed: int, kinds: Sequence[Kind] = KINDS) -> Iterator[Series]:
    """A Poisson process for each hour, from FROM_HOUR to TO_HOUR; times from 0."""
    rng = random.Random(seed)  # noqa: S311 - a simulation
    found = []
    for number, hour in enumerate(range(FROM_HOUR, TO_HOUR)):
        for kind in kinds:
            rate = hospitals * kind.a_day * HOURS[hour] / sum(HOURS) / 3600
            at = rng.expovariate(rate)
            while at < 3600:
                found.append(Series(number * 3600 + at, kind, kind.size(rng)))
                at += rng.expovariate(rate)
    yield from sorted(found, key=lambda one: one.at)


class Site:
    """A cell at work."""

    def __init__(self, plant: Plant, times: Times, seed: int) -> None:
        self._env = simpy.Environment()
        self._times = times
        self._rng = random.Random(seed)  # noqa: S311 - a simulation
        self._places = {
            "listener": simpy.Resource(self._env, plant.listeners),
            "judge": simpy.Resource(self._env, 1),
            "worker": simpy.Resource(self._env, plant.workers),
            "triton": simpy.Resource(self._env, plant.tritons),
        }
        self.outcome = Outcome(waits={p: [] for p in self._places}, busy=dict.fromkeys(self._places, 0.0))

    def run(self, series: Iterable[Series]) -> Outcome:
        self._env.process(self._begin(series))
        self._env.run()
        return self.outcome

    def _begin(self, series: Iterable[Series]) -> Work[None]:
        for one in series:
            yield self._env.timeout(max(one.at - self._env.now, 0.0))
            self._env.process(self._live(one))

    def _hold(self, place: str, seconds: float) -> Work[None]:
        asked = self._env.now
        with self._places[place].request() as turn:
            yield turn
            self.outcome.waits[place].append(self._env.now - asked)
            self.outcome.busy[place] += seconds
            yield self._env.timeout(seconds)

    def _live(self, one: Series) -> Work[None]:
        times = self._times
        yield from self._hold("listener", one.slices * times.receive_slice)
        last = self._env.now
        yield self._env.timeout(times.quiet)
        yield from self._hold("judge", times.judge_series + one.slices * times.judge_slice)
        if not one.kind.matched:
            return
        while not (yield from self._job(one.slices)):
            yield self._env.timeout(times.takeover)
        while self._rng.random() < times.refused:
            yield self._env.timeout(self._rng.uniform(0, times.retry))
        if one.at >= WARM_UP_SECONDS:
            self.outcome.turnaround.append(self._env.now - last)

    def _job(self, slices: int) -> Work[bool]:
        """A worker's attempt; returns whether the worker lived to its end."""
        asked = self._env.now
        with self._places["worker"].request() as turn:
            yield turn
            began = self._env.now
            self.outcome.waits["worker"].append(began - asked)
            for first in range(0, slices, CHUNK):
                part = min(CHUNK, slices - first)
                yield from self._hold("triton", part * self._times.triton_slice)
            yield self._env.timeout(self._times.job + slices * self._times.job_slice)
            took = self._env.now - began
            self.outcome.busy["worker"] += took
            return self._rng.random() >= took / self._times.worker_lives


def simulate(hospitals: int, plant: Plant, times: Times, seed: int = 1) -> Outcome:
    """Mornings of one cell."""
    a_morning = hospitals * sum(kind.a_day for kind in KINDS if kind.matched) * _morning()
    total = Outcome()
    for number in range(math.ceil(LEAST_RESULTS / a_morning)):
        total.add(Site(plant, times, seed + number).run(arrivals(hospitals, seed + number)))
    return total


def _morning() -> float:
    """The share of a day."""
    return sum(HOURS[FROM_HOUR:TO_HOUR]) / sum(HOURS)


def fewest(hospitals: int, times: Times, limit: float) -> tuple[Plant, Outcome]:
    """The smallest cell whose 99th percentile is within the limit: from what is busy all the time upwards,
    always one more of what is waited for longest. Raises ValueError where even an idle one is too slow.
    """
    large = KINDS[0].percentile(0.99)
    alone = times.quiet + times.job + large * (times.judge_slice + times.job_slice + times.triton_slice)
    if alone > limit:
        raise ValueError(
            f"one series in a hundred has {large} slices: {alone:.0f} s, although nothing is waited for"
        )
    judging = peak(hospitals, lambda kind: times.judge_series + kind.mean * times.judge_slice)
    if judging > JUDGE_BUSY:
        raise ValueError(f"the listener that judges would be busy {100 * judging:.0f} % of the peak hour")
    jobs = peak(hospitals, lambda kind: 1.0 if kind.matched else 0.0)
    slices = peak(hospitals, lambda kind: kind.mean if kind.matched else 0.0)
    servers = max(1, math.ceil(slices * times.triton_slice / 0.9))
    workers = max(1, math.ceil(jobs * times.job + slices * (times.job_slice + times.triton_slice)))
    listeners = max(2 if hospitals > 1 else 1, math.ceil(instances(hospitals) * times.receive_slice / 0.5))
    plant = Plant(listeners, workers, servers)
    while plant.workers + plant.tritons < MOST:
        outcome = simulate(hospitals, plant, times)
        if outcome.p(0.99) <= limit:
            return plant, outcome
        job_waits = {name: percentile(outcome.waits[name], 0.99) for name in ("worker", "triton")}
        # a job waits for Triton chunk by chunk
        job_waits["triton"] *= KINDS[0].mean / CHUNK
        more = max(2, plant.workers // 20) if plant.workers > 40 else 1
        if job_waits["worker"] >= job_waits["triton"]:
            plant = replace(plant, workers=plant.workers + more)
        else:
            plant = replace(plant, tritons=plant.tritons + 1)
    raise ValueError(f"more than {MOST} workers and servers")


def peak(hospitals: int, of: Callable[[Kind], float]) -> float:
    """What comes a second in the busiest hour, by what each series counts."""
    hour = max(HOURS[FROM_HOUR:TO_HOUR]) / sum(HOURS) / 3600
    return sum(hospitals * kind.a_day * hour * of(kind) for kind in KINDS)


def instances(hospitals: int) -> float:
    """A second in the busiest hour."""
    return peak(hospitals, lambda kind: kind.mean)


def bytes_a_day(hospitals: int) -> float:
    return hospitals * sum(kind.a_day * kind.mean * kind.bytes_each for kind in KINDS)


#: rows that PostgreSQL writes for an instance, a series, a job: python -m tests.benchmarks.sizing_measured
#: --database
ROWS_INSTANCE, ROWS_SERIES, ROWS_JOB = 2.0, 4.0, 24.0
#: of one job's results
RESULT_BYTES = 60_000_000

HEAD = (
    "hospitals",
    "cells",
    "series/h",
    "instances/s",
    "Gbit/s in",
    "rows/s",
    "listeners",
    "workers",
    "Triton",
    "p50, p99 s",
    "busy: judge, workers, Triton",
    "TB a week",
)


def row(hospitals: int, times: Times, limit: float, cell: int) -> tuple[str, ...]:
    """The table's line: a cell is simulated, all cells are counted."""
    cells = math.ceil(hospitals / cell)
    each = math.ceil(hospitals / cells)
    plant, outcome = fewest(each, times, limit)
    horizon = 3600.0 * (TO_HOUR - FROM_HOUR) * outcome.mornings
    bytes_second = peak(hospitals, lambda kind: kind.mean * kind.bytes_each)
    rows = peak(hospitals, lambda k: k.mean * ROWS_INSTANCE + ROWS_SERIES + ROWS_JOB * k.matched)
    busy = (
        outcome.busy["judge"] / horizon,
        outcome.busy["worker"] / horizon / plant.workers,
        outcome.busy["triton"] / horizon / plant.tritons,
    )
    a_week = 7 * (bytes_a_day(hospitals) + hospitals * KINDS[0].a_day * RESULT_BYTES)
    return (
        f"{hospitals:,}",
        str(cells),
        f"{3600 * peak(hospitals, lambda kind: 1.0):,.0f}",
        f"{instances(hospitals):,.1f}",
        f"{8 * bytes_second / 1e9:.2f}",
        f"{rows:,.0f}",
        str(cells * plant.listeners),
        str(cells * plant.workers),
        str(cells * plant.tritons),
        f"{outcome.p(0.5):.0f}, {outcome.p(0.99):.0f}",
        ", ".join(f"{100 * share:.0f} %" for share in busy),
        f"{a_week / 1e12:,.1f}",
    )


def markdown(line: Iterable[str]) -> str:
    return f"| {' | '.join(line)} |"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hospitals", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--triton", choices=TRITONS, default="gpu")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds, 99th percentile")
    parser.add_argument("--cell", type=int, default=250, help="hospitals that share a database, at most")
    options = parser.parse_args(arguments)
    times = replace(Times(), triton_slice=Times().triton_slice / TRITONS[options.triton])
    print(markdown(HEAD))
    print("|---" * len(HEAD) + "|")
    for hospitals in options.hospitals:
        try:
            print(markdown(row(hospitals, times, options.limit, options.cell)), flush=True)
        except ValueError as error:
            print(f"{hospitals}: {error}")


if __name__ == "__main__":
    main()
