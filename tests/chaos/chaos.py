"""kill -9 of anything at any moment while studies arrive; then what must hold: DESIGN I1, I3 and I4.

In: a setup, a seed, numbers of series and kills.  Out: a report whose faults are all zero.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from node.database import instances, jobs, open_database, series
from pipelines.request import SUMMARY
from tests.chaos.load import Senders, make_series
from tests.chaos.world import NodeVictim, Setup, Victim, World


@dataclass(frozen=True)
class Plan:
    """seconds_between: kills, at most.  settle_seconds: how long everything may take after the last one."""

    setup: Setup
    seed: int
    series: int
    kills: int
    seconds_between: float = 4.0
    settle_seconds: float = 300.0
    for_good: bool = True


@dataclass
class Report:
    """Counts; all but the first three are faults."""

    kills: int = 0
    unexpected_exits: int = 0
    jobs: int = 0
    lost_instances: int = 0
    duplicate_result_sets: int = 0
    stuck_jobs: int = 0
    invalid_objects: int = 0
    missing_objects: int = 0

    @property
    def faults(self) -> dict[str, int]:
        return {
            name: count
            for name, count in asdict(self).items()
            if count and name not in ("kills", "unexpected_exits", "jobs")
        }


def run(plan: Plan, folder: Path, say: Callable[[str], object] = lambda _line: None) -> Report:
    """One whole run."""
    rng = random.Random(plan.seed)  # noqa: S311
    report = Report()
    made = make_series(folder / "series", plan.series, plan.seed)
    with ExitStack() as stack:
        world = World(folder, plan.setup, stack)
        _wait_up(world)
        folders = [next(iter(files.values())).parent for files in made.values()]
        pause = plan.kills * plan.seconds_between / max(1, plan.series)
        senders = Senders(folders, world.ports, rng, pause)
        stack.callback(senders.stop)
        _kill(world, plan, rng, report, say)
        say("settling")
        _settle(world, senders, made, plan, report)
        _count(world, made, report)
    return report


def _wait_up(world: World) -> None:
    """All nodes answer: what is killed while it starts for the very first time has nothing to lose."""
    deadline = time.monotonic() + 300
    for victim in (*world.listeners, *world.workers):
        while not victim.node._web_answers():
            assert time.monotonic() < deadline, f"{victim.name} doesn't start"
            time.sleep(0.2)


def _kill(world: World, plan: Plan, rng: random.Random, report: Report, say: Callable[[str], object]) -> None:
    while report.kills < plan.kills:
        time.sleep(rng.uniform(0.1, plan.seconds_between))
        victim = rng.choice(world.victims)
        say(f"kill {report.kills + 1}: {victim.name}")
        victim.kill()
        report.kills += 1
        if plan.for_good and _may_go(world, victim) and report.kills > plan.kills // 3:
            say(f"{victim.name} is gone for good")
            world.workers.remove(victim)
            continue
        time.sleep(rng.uniform(0.0, 1.5))
        victim.start()
        _supervise(world, report)


def _may_go(world: World, victim: Victim) -> bool:
    """One worker, once."""
    everyone = len(world.workers) == world.setup.workers
    return isinstance(victim, NodeVictim) and victim in world.workers and everyone and len(world.workers) > 1


def _supervise(world: World, report: Report) -> None:
    for victim in world.victims:
        if victim.look():
            report.unexpected_exits += 1


def _settle(
    world: World, senders: Senders, made: dict[str, dict[str, Path]], plan: Plan, report: Report
) -> None:
    deadline = time.monotonic() + plan.settle_seconds
    while time.monotonic() < deadline and (senders.busy or not _is_settled(world, made)):
        _supervise(world, report)
        time.sleep(0.5)


def _is_settled(world: World, made: dict[str, dict[str, Path]]) -> bool:
    """Every series is routed, and all jobs have ended."""
    try:
        rows, found = _rows(world, series), _rows(world, jobs)
    except SQLAlchemyError:
        return False
    routed = {row["series_instance_uid"] for row in rows if row["state"] == "routed"}
    waiting = [row for row in rows if row["state"] != "routed"]
    ended = all(job["state"] in ("done", "failed") for job in found)
    return routed == set(made) and not waiting and ended


def _rows(world: World, table: Any) -> list[dict[str, Any]]:
    engine = open_database(world.data_dir, world.database)
    try:
        with engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(select(table))]
    finally:
        engine.dispose()


def _count(world: World, made: dict[str, dict[str, Path]], report: Report) -> None:
    stored = {
        row["sop_instance_uid"]: world.data_dir / row["path"]
        for row in _rows(world, instances)
        if row["state"] == "stored"
    }
    sent = {uid: path for files in made.values() for uid, path in files.items()}
    report.lost_instances = sum(
        uid not in stored or dcmread(stored[uid]) != dcmread(path) for uid, path in sent.items()
    )
    found = _rows(world, jobs)
    report.jobs = len(found)
    report.stuck_jobs = sum(job["state"] != "done" for job in found) + len(
        set(made) - {job["series_instance_uid"] for job in found}
    )
    expected: dict[str, Path] = {}
    for job in found:
        if job["state"] == "done":
            results = world.data_dir / job["result_dir"]
            summary = json.loads((results / SUMMARY).read_text())
            expected |= {r["sop_instance_uid"]: results / r["path"] for r in summary["results"]}
    held = world.orthanc.pacs.instances()
    report.duplicate_result_sets = len(
        {tags["SeriesInstanceUID"] for uid, tags in held.items() if uid not in expected}
    )
    report.missing_objects = len(set(expected) - set(held))
    report.invalid_objects = sum(not _is_whole(world, uid, path) for uid, path in expected.items())


def _is_whole(world: World, uid: str, path: Path) -> bool:
    """Whether the archive has what the node made."""
    try:
        content = world.orthanc.pacs.fetch(uid)
        return content is None or dcmread(BytesIO(content)) == dcmread(path)
    except (InvalidDicomError, httpx.HTTPError):
        return False
