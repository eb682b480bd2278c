"""Kills of anything, at any moment and at every step boundary, on bad networks and full disks, while studies
arrive; then what must hold: DESIGN I1, I3 and I4.

In: a setup, a seed, how many random kills.  Out: a report whose faults are none.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from node.database import jobs, open_database
from node.errors import NodeError
from node.run.operations import retry_job
from tests.chaos.faults import Faults
from tests.chaos.load import Load, Series
from tests.chaos.verdict import Verdict, judge, rows, unfinished
from tests.chaos.world import Setup, World

START_SECONDS = 300.0
BACKLOG = 6
LOOK_SECONDS = 1.0
#: once all is through, what should not come any more has so long to come
AFTER_SECONDS = 3.0


@dataclass(frozen=True)
class Plan:
    """kills: at random moments; beside them each of ``boundaries``.  seconds_between: these, at most.

    full_disks: how many times.  backlog: senders wait while so many series aren't through.
    max_seconds: until all faults are through.  settle_seconds: after the last one, that nothing more gets
        through.
    """

    setup: Setup
    seed: int
    kills: int
    boundaries: Collection[str] = ()
    seconds_between: float = 8.0
    full_disks: int = 0
    max_seconds: float = 900.0
    settle_seconds: float = 300.0
    for_good: bool = True
    backlog: int = BACKLOG


@dataclass
class Report:
    """What was done, and what came of it."""

    kills: int = 0
    kills_by: dict[str, int] = field(default_factory=dict)
    boundaries_reached: list[str] = field(default_factory=list)
    boundaries_missed: list[str] = field(default_factory=list)
    network_faults: dict[str, int] = field(default_factory=dict)
    times_disk_full: int = 0
    noticed_full_disk: dict[str, int] = field(default_factory=dict)
    sent_again: int = 0
    started_again: int = 0
    seconds: float = 0.0
    settled_seconds: float = 0.0
    verdict: Verdict = field(default_factory=Verdict)

    @property
    def faults(self) -> dict[str, Any]:
        return self.verdict.faults

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run(plan: Plan, folder: Path, say: Callable[[str], object] = lambda _line: None) -> Report:
    """One whole run."""
    rng = random.Random(plan.seed)  # noqa: S311
    started = time.monotonic()
    with ExitStack() as stack:
        world = World(folder, plan.setup, plan.seed, stack)
        _wait_up(world)
        load: Load | None = None
        backlog = Backlog(world, plan.backlog, lambda: load.sent if load is not None else [])
        load = Load(Series(folder / "series", plan.seed), world.ports, rng, backlog.is_full)
        stack.callback(load.stop)
        faults = Faults(
            world,
            load,
            rng,
            plan.boundaries,
            say=say,
            retry=lambda: _retry_any(world, rng),
            is_working=lambda: _is_working(world),
        )
        give_up_at = time.monotonic() + plan.max_seconds
        part = plan.kills // 3 if plan.for_good and plan.setup.shared else 0
        full = plan.full_disks // 3 if part else 0
        pace = plan.seconds_between
        if part:
            half_way = time.monotonic() + plan.max_seconds / 3
            faults.run(part, seconds_between=pace, full_disks=full, give_up_at=half_way)
            faults.lose_one_worker()
        faults.run(
            plan.kills - part, seconds_between=pace, full_disks=plan.full_disks - full, give_up_at=give_up_at
        )
        load.end()
        faults.end()
        say("settling")
        settling = time.monotonic()
        _settle(world, load, faults, plan)
        report = Report(
            kills=faults.done.total,
            kills_by=dict(sorted(faults.done.kills.items())),
            boundaries_reached=sorted(faults.done.reached),
            boundaries_missed=faults.missed,
            network_faults=world.network.counts,
            times_disk_full=faults.done.times_full,
            noticed_full_disk=faults.noticed.so_far(),
            sent_again=load.attempts - len(load.sent),
            started_again=faults.done.ended_by_itself,
            settled_seconds=round(time.monotonic() - settling, 1),
            verdict=judge(world, load.sent),
        )
    report.seconds = round(time.monotonic() - started, 1)
    return report


class Backlog:
    """Whether enough series are on their way; looked up every so often."""

    def __init__(self, world: World, limit: int, sent: Callable[[], list[Any]]) -> None:
        self._world, self._limit, self._sent = world, limit, sent
        self._looked_at = 0.0
        self._count: int | None = None

    def is_full(self, times: int) -> bool:
        if time.monotonic() - self._looked_at > LOOK_SECONDS:
            self._looked_at = time.monotonic()
            self._count = unfinished(self._world, self._sent())
        return self._count is None or self._count >= self._limit * times


def _wait_up(world: World) -> None:
    """All nodes answer: what is killed while it starts for the very first time has nothing to lose."""
    deadline = time.monotonic() + START_SECONDS
    for victim in world.nodes:
        while not victim.node._web_answers():
            assert time.monotonic() < deadline, f"{victim.name} doesn't start"
            time.sleep(0.2)


def _retry_any(world: World, rng: random.Random) -> None:
    """Ask for a job again that is done, as ops would: nothing new comes of it."""
    try:
        done = [row["job_id"] for row in rows(world, jobs) if row["state"] == "done"]
        if done:
            engine = open_database(world.data_dir, world.database)
            try:
                retry_job(engine, rng.choice(done))
            finally:
                engine.dispose()
    except (SQLAlchemyError, NodeError):
        pass  # the database is down, or its disk full


def _is_working(world: World) -> bool:
    try:
        return any(row["state"] == "running" for row in rows(world, jobs))
    except (SQLAlchemyError, NodeError):
        return False


def _settle(world: World, load: Load, faults: Faults, plan: Plan) -> None:
    left: int | None = None
    deadline = time.monotonic() + plan.settle_seconds
    while time.monotonic() < deadline:
        now = unfinished(world, load.sent)
        if now == 0 and not load.busy:
            break
        if now is not None and (left is None or now < left):  # a busy machine takes its time
            left, deadline = now, time.monotonic() + plan.settle_seconds
        faults.wait(0.5)
    faults.wait(AFTER_SECONDS)
