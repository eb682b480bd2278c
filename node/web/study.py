"""What became of one study: its life from the first instance to the last delivery, as events in time.

In: rows of the database, and the summaries of results.  Out: a ``Study``: a sentence for each series that
says whether there is a result and why not, and the events. UIDs, codes and reasons; no patient data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Engine, select

from node.database import IS_QUARANTINED, instances, jobs, series
from node.run.operations import with_deliveries
from pipelines.request import SUMMARY

Tone = Literal["good", "busy", "warn", "bad"]

RETRIED = ("failed", "cancelled", "done")
CANCELLED = ("queued", "retry", "running", "delivering")


@dataclass(frozen=True)
class Event:
    """at: seconds since the epoch."""

    at: float
    what: str
    why: str
    tone: Tone = "good"


@dataclass(frozen=True)
class Job:
    """asks: what can be asked of it now."""

    job_id: str
    pipeline: str
    state: str
    asks: tuple[Literal["retry", "cancel"], ...]


@dataclass(frozen=True)
class Series:
    """One version of a series. sentence: whether there is a result, and if not, why not."""

    series_instance_uid: str
    version: int
    sentence: str
    tone: Tone
    events: tuple[Event, ...]
    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class Study:
    """quarantined: (path, reason) of its instances that couldn't be used."""

    study_instance_uid: str
    series: tuple[Series, ...]
    quarantined: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def find_study(engine: Engine, data_dir: Path, study_instance_uid: str) -> Study | None:
    """None when nothing of it was received."""
    with engine.connect() as connection:
        versions = connection.execute(
            select(series)
            .where(series.c.study_instance_uid == study_instance_uid)
            .order_by(series.c.opened_at, series.c.version)
        ).all()
        found = connection.execute(
            select(jobs).where(jobs.c.study_instance_uid == study_instance_uid).order_by(jobs.c.created_at)
        ).all()
        its_jobs = with_deliveries(connection, [dict(row._mapping) for row in found])
        quarantined = connection.execute(
            select(instances.c.path, instances.c.reason).where(
                instances.c.study_instance_uid == study_instance_uid, IS_QUARANTINED
            )
        ).all()
    if not versions and not quarantined:
        return None
    described = []
    for row in versions:
        version = dict(row._mapping)
        of_version = [
            job
            for job in its_jobs
            if (job["series_instance_uid"], job["series_version"])
            == (version["series_instance_uid"], version["version"])
        ]
        described.append(_series(version, of_version, data_dir))
    return Study(
        study_instance_uid, tuple(described), tuple((row.path, row.reason or "") for row in quarantined)
    )


def _series(version: Mapping[str, Any], its_jobs: Sequence[Mapping[str, Any]], data_dir: Path) -> Series:
    sentence, tone = _sentence(version, its_jobs)
    events = [*_received(version), *_routed(version)]
    for job in its_jobs:
        events += _ran(job, data_dir)
    events.sort(key=lambda event: event.at)
    return Series(
        version["series_instance_uid"],
        version["version"],
        sentence,
        tone,
        tuple(events),
        tuple(_job(job) for job in its_jobs),
    )


def _job(job: Mapping[str, Any]) -> Job:
    asks: list[Literal["retry", "cancel"]] = []
    if job["state"] in RETRIED:
        asks.append("retry")
    if job["state"] in CANCELLED:
        asks.append("cancel")
    return Job(job["job_id"], job["pipeline"], job["state"], tuple(asks))


def _sentence(version: Mapping[str, Any], its_jobs: Sequence[Mapping[str, Any]]) -> tuple[str, Tone]:
    if version["state"] == "open":
        return "No result yet, because more instances may come.", "busy"
    if version["state"] == "complete":
        return "No result yet, because it is about to be routed.", "busy"
    if not its_jobs:
        routes = (version["decision"] or {}).get("routes", ())
        why = "; ".join(f"{route['route']}: {route['why']}" for route in routes) or "no routes are configured"
        return f"No result, because no route matches: {why}.", "warn"
    said, tones = [], []
    for job in its_jobs:
        where = ", ".join(one["destination"] for one in job["deliveries"] if one["state"] == "delivered")
        reason = f": {job['reason']}" if job["reason"] else ""
        match job["state"]:
            case "done":
                said.append(f"The results of {job['pipeline']} are at {where}.")
                tones.append("good")
            case "failed":
                kept = f"The results of {job['pipeline']} are at {where} only" if where else "No result"
                said.append(f"{kept}, because {job['pipeline']} failed{reason}.")
                tones.append("bad")
            case "cancelled":
                said.append(f"No result, because {job['pipeline']} was cancelled.")
                tones.append("warn")
            case state:
                said.append(f"No result yet, because {job['pipeline']} is {state}{reason}.")
                tones.append("busy")
    worst = next(tone for tone in ("bad", "warn", "busy", "good") if tone in tones)
    return " ".join(said), worst


def _received(version: Mapping[str, Any]) -> list[Event]:
    count = version["instance_count"]
    events = [
        Event(version["opened_at"], "first instance", f"from {version['calling_ae_title']}"),
        Event(version["last_instance_at"], "last instance", f"{count} instances"),
    ]
    evidence = version["evidence"] or {}
    if version["completed_at"] is not None:
        rule = str(evidence.get("rule", "")).replace("_", " ")
        missing = "" if evidence.get("complete") is not False else ", although something is missing"
        tone: Tone = "warn" if missing else "good"
        events.append(Event(version["completed_at"], "complete", f"by {rule}{missing}", tone))
    return events


def _routed(version: Mapping[str, Any]) -> list[Event]:
    routes = (version["decision"] or {}).get("routes", ())
    return [
        Event(
            version["completed_at"],
            f"route {route['route']} {'matches' if route['matches'] else 'does not match'}",
            route["why"],
            "good" if route["matches"] else "warn",
        )
        for route in routes
    ]


def _ran(job: Mapping[str, Any], data_dir: Path) -> list[Event]:
    name = job["pipeline"]
    events = [Event(job["created_at"], f"{name} queued", f"by route {job['route']}")]
    if job["started_at"] is not None:
        waited = job["started_at"] - job["created_at"]
        events.append(Event(job["started_at"], f"{name} started", f"after {waited:.1f} s in the queue"))
    events += _results(job, data_dir)
    for one in job["deliveries"]:
        tones: dict[str, Tone] = {"delivered": "good", "failed": "bad"}
        tries = f"{one['attempts']} attempt{'s' if one['attempts'] != 1 else ''}"
        why = f"{tries}{': ' + one['last_error'] if one['last_error'] else ''}"
        what = f"{one['destination']}: {one['state']}"
        events.append(Event(one["updated_at"], what, why, tones.get(one["state"], "busy")))
    if job["finished_at"] is not None:
        tone: Tone = {"done": "good", "failed": "bad"}.get(job["state"], "warn")  # type: ignore[assignment]
        events.append(Event(job["finished_at"], f"{name} {job['state']}", job["reason"] or "", tone))
    return events


def _results(job: Mapping[str, Any], data_dir: Path) -> list[Event]:
    """When they were made, and how long each stage took, of a job whose results are still here."""
    if job["result_dir"] is None:
        return []
    path = data_dir / job["result_dir"] / SUMMARY
    try:
        summary, made_at = json.loads(path.read_text(encoding="utf-8")), path.stat().st_mtime
    except (OSError, ValueError):
        return []
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in summary["timings_seconds"].items())
    return [Event(made_at, f"{job['pipeline']} made results", stages)]
