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

from pydicom.uid import MultiFrameTrueColorSecondaryCaptureImageStorage, SecondaryCaptureImageStorage
from sqlalchemy import Engine, select

from node.database import IS_QUARANTINED, instances, jobs, series
from node.reasons import Reason, incomplete, of_delivery, of_instance, of_job, unmatched
from node.run.operations import with_deliveries
from pipelines.request import SUMMARY

Tone = Literal["good", "busy", "warn", "bad"]

RETRIED = ("failed", "cancelled", "done")
CANCELLED = ("queued", "retry", "running", "delivering")
_FURTHEST = ("failed", "retry", "queued", "running", "delivering", "cancelled", "done")
_OF_A_ROUTE = ("route", "pipeline", "matches", "why")
PICTURE_CLASSES = (SecondaryCaptureImageStorage, MultiFrameTrueColorSecondaryCaptureImageStorage)
_TITLES = {
    "picture": "Result picture",
    "triage_picture": "Result picture",
    "estimates_picture": "Result picture",
    "rotation": "3D view (first frame)",
    "inpainted": "As if without the lesions",
    "montage": "Slices with findings",
    "no_result_picture": "Why there is no result",
}


@dataclass(frozen=True)
class Event:
    """at: seconds since the epoch."""

    at: float
    what: str
    why: str
    tone: Tone = "good"


@dataclass(frozen=True)
class Delivery:
    """One result set to one destination. detail: its last error, or what the destination said of objects."""

    destination: str
    state: str
    attempts: int
    updated_at: float
    detail: str


@dataclass(frozen=True)
class Picture:
    """An image among the results. number: its place in the result set."""

    number: int
    title: str


@dataclass(frozen=True)
class Job:
    """asks: what can be asked of it now.  stages: how long each took, seconds.  conclusion: its results in a
    sentence, estimates: what it says of the case, by name; both empty while there is no result."""

    job_id: str
    pipeline: str
    route: str
    state: str
    asks: tuple[Literal["retry", "cancel"], ...]
    stages: dict[str, float]
    deliveries: tuple[Delivery, ...]
    pictures: tuple[Picture, ...]
    conclusion: str
    estimates: dict[str, float]


@dataclass(frozen=True)
class Series:
    """One version of a series. sentence: whether there is a result, and if not, why not; reasons: what it is
    made of, with their codes.  routes: the verdict of each, facts: what they were judged by; both empty until
    it is routed."""

    series_instance_uid: str
    version: int
    sentence: str
    tone: Tone
    reasons: tuple[Reason, ...]
    events: tuple[Event, ...]
    jobs: tuple[Job, ...]
    routes: tuple[dict[str, Any], ...]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Quarantined:
    """An instance that couldn't be used. path: relative to data_dir."""

    path: str
    reason: Reason


@dataclass(frozen=True)
class Study:
    """What came of one."""

    study_instance_uid: str
    series: tuple[Series, ...]
    quarantined: tuple[Quarantined, ...]

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
            select(instances.c.path, instances.c.reason_code, instances.c.reason).where(
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
    kept = tuple(Quarantined(row.path, of_instance(dict(row._mapping))) for row in quarantined)
    return Study(study_instance_uid, tuple(described), kept)


def _series(version: Mapping[str, Any], its_jobs: Sequence[Mapping[str, Any]], data_dir: Path) -> Series:
    said = verdict(version, its_jobs)
    events = [*_received(version), *_routed(version)]
    described = []
    for job in its_jobs:
        made = _read_summary(job, data_dir)
        events += _ran(job, made)
        described.append(_job(job, made))
    events.sort(key=lambda event: event.at)
    decision = version["decision"] or {}
    return Series(
        version["series_instance_uid"],
        version["version"],
        said.sentence,
        said.tone,
        said.reasons,
        tuple(events),
        tuple(described),
        tuple({key: route[key] for key in _OF_A_ROUTE} for route in decision.get("routes", ())),
        decision.get("facts", {}),
    )


@dataclass(frozen=True)
class _Made:
    """What is there of a job's results."""

    at: float
    summary: Mapping[str, Any]


def _read_summary(job: Mapping[str, Any], data_dir: Path) -> _Made | None:
    """None when there are no results, or not any more."""
    if job["result_dir"] is None:
        return None
    path = data_dir / job["result_dir"] / SUMMARY
    try:
        return _Made(path.stat().st_mtime, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _job(job: Mapping[str, Any], made: _Made | None) -> Job:
    asks: list[Literal["retry", "cancel"]] = []
    if job["state"] in RETRIED:
        asks.append("retry")
    if job["state"] in CANCELLED:
        asks.append("cancel")
    summary = made.summary if made is not None else {}
    return Job(
        job["job_id"],
        job["pipeline"],
        job["route"],
        job["state"],
        tuple(asks),
        dict(summary.get("timings_seconds", {})),
        tuple(_delivery(one) for one in job["deliveries"]),
        tuple(
            Picture(number, _TITLES.get(Path(result["path"]).stem, "Result picture"))
            for number, result in enumerate(summary.get("results", ()))
            if result["sop_class_uid"] in PICTURE_CLASSES
        ),
        summary.get("conclusion", ""),
        _estimates(summary),
    )


def _delivery(row: Mapping[str, Any]) -> Delivery:
    why = of_delivery(row)
    said = [why.sentence if why is not None else "", *(row["warnings"] or ())]
    detail = "; ".join(text for text in said if text)
    return Delivery(row["destination"], row["state"], row["attempts"], row["updated_at"], detail)


def _estimates(summary: Mapping[str, Any]) -> dict[str, float]:
    """Name -> probability, of either pipeline's summary."""
    by_model: Mapping[str, Mapping[str, float]] = summary.get("estimates", {})
    of_models = {
        f"{name} ({model})" if len(by_model) > 1 else name: p
        for model, case in by_model.items()
        for name, p in case.items()
    }
    return {**of_models, **summary.get("noisy_or", {})}


def state_of(version: Mapping[str, Any], its_jobs: Sequence[Mapping[str, Any]]) -> str:
    """How a series stands, in a word: its own state, or that of the job that is furthest from done."""
    if version["state"] != "routed":
        return str(version["state"])
    if not its_jobs:
        return "unmatched"
    return min((str(job["state"]) for job in its_jobs), key=_FURTHEST.index)


@dataclass(frozen=True)
class Verdict:
    """Whether there is a result, and if not, why not, in a sentence, and what that is made of."""

    sentence: str
    tone: Tone
    reasons: tuple[Reason, ...] = ()


def verdict(version: Mapping[str, Any], its_jobs: Sequence[Mapping[str, Any]]) -> Verdict:
    """Of a version of a series."""
    if version["state"] == "open":
        return Verdict("No result yet, because more instances may come.", "busy")
    if version["state"] == "complete":
        return Verdict("No result yet, because it is about to be routed.", "busy")
    missing = incomplete(version["evidence"] or {})
    if not its_jobs:
        why = unmatched(version["reason_code"], (version["decision"] or {}).get("routes", ()))
        return Verdict(f"No result, because {why.sentence}.", "warn", (why, *missing))
    of_each = [_verdict_of_job(job) for job in its_jobs]
    tones = [one.tone for one in of_each]
    worst = next(tone for tone in ("bad", "warn", "busy", "good") if tone in tones)
    reasons = [why for one in of_each for why in one.reasons]
    return Verdict(" ".join(one.sentence for one in of_each), worst, (*reasons, *missing))


def _verdict_of_job(job: Mapping[str, Any]) -> Verdict:
    pipeline, why = job["pipeline"], of_job(job)
    there = ", ".join(one["destination"] for one in job["deliveries"] if one["state"] == "delivered")
    away = tuple(one for one in map(of_delivery, job["deliveries"]) if one is not None)
    at = "; ".join(f"{one.where}: {one.sentence}" for one in away)
    match job["state"]:
        case "done":
            return Verdict(
                f"The results of {pipeline} are {f'at {there}' if there else 'kept here'}.", "good"
            )
        case "failed" if away and job["reason_code"] == "delivery_failed":
            kept = f"The results of {pipeline} are at {there} only" if there else "No result"
            return Verdict(f"{kept}, because {pipeline} failed at {at}.", "bad", away)
        case "failed" | "delivering" if why is not None:
            return Verdict(f"No result, because {pipeline} failed: {why.sentence}.", "bad", (why,))
        case "cancelled" if why is not None:
            return Verdict(f"No result of {pipeline}, because {why.sentence}.", "warn", (why,))
        case state:
            because = at or (why.sentence if why is not None else "")
            said = f"No result yet, because {pipeline} is {state}{': ' if because else ''}{because}."
            return Verdict(said, "busy", away or ((why,) if why is not None else ()))


def _received(version: Mapping[str, Any]) -> list[Event]:
    count = version["instance_count"]
    events = [
        Event(version["opened_at"], "first instance", f"from {version['calling_ae_title']}"),
        Event(version["last_instance_at"], "last instance", f"{count} instances"),
    ]
    evidence = version["evidence"] or {}
    if version["completed_at"] is not None:
        rule = str(evidence.get("rule", "")).replace("_", " ")
        missing = "; ".join(why.sentence for why in incomplete(evidence))
        although = f", although {missing}" if missing else ""
        tone: Tone = "warn" if missing else "good"
        events.append(Event(version["completed_at"], "complete", f"by {rule}{although}", tone))
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


def _ran(job: Mapping[str, Any], made: _Made | None) -> list[Event]:
    name = job["pipeline"]
    events = [Event(job["created_at"], f"{name} queued", f"by route {job['route']}")]
    if job["started_at"] is not None:
        waited = job["started_at"] - job["created_at"]
        events.append(Event(job["started_at"], f"{name} started", f"after {waited:.1f} s in the queue"))
    if made is not None:
        stages = made.summary["timings_seconds"].items()
        took = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in stages)
        events.append(Event(made.at, f"{name} made results", took))
    for one in job["deliveries"]:
        tones: dict[str, Tone] = {"delivered": "good", "failed": "bad"}
        tries = f"{one['attempts']} attempt{'s' if one['attempts'] != 1 else ''}"
        reason = of_delivery(one)
        why = f"{tries}: {reason.sentence}" if reason is not None else tries
        what = f"{one['destination']}: {one['state']}"
        events.append(Event(one["updated_at"], what, why, tones.get(one["state"], "busy")))
    if job["finished_at"] is not None:
        tone: Tone = {"done": "good", "failed": "bad"}.get(job["state"], "warn")  # type: ignore[assignment]
        ended = of_job(job)
        why = ended.sentence if ended is not None else ""
        events.append(Event(job["finished_at"], f"{name} {job['state']}", why, tone))
    return events
