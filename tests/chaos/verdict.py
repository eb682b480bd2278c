"""What must hold at the end (DESIGN I1, I3, I4), by the nodes' database, their disk and the archive.

In: a world that has settled, and what was sent.  Out: counts, and names of what is missing or too much.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from node.database import instances, jobs, open_database, series
from node.errors import NodeError
from pipelines.request import SUMMARY
from tests.chaos.load import Sent
from tests.chaos.world import World
from tests.patients import served, told, words

LIGHT, WHOLE = "chest_ct_triage", "chest_ct_pneumonia"
ENDED = ("done", "failed", "cancelled")


@dataclass
class Verdict:
    """All zero and empty, but what says how much there was.

    refused_versions: jobs of versions of which a part had come, refused with a reason; a later one has its
        results.
    """

    series: int = 0
    instances: int = 0
    jobs: int = 0
    objects: int = 0
    refused_versions: int = 0
    lost_instances: int = 0
    duplicate_result_sets: int = 0
    stuck_jobs: int = 0
    invalid_objects: int = 0
    missing_objects: list[str] = field(default_factory=list)
    extra_objects: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    patients_told: list[str] = field(default_factory=list)

    @property
    def faults(self) -> dict[str, Any]:
        fields = ("lost_instances", "duplicate_result_sets", "stuck_jobs", "invalid_objects")
        named = ("missing_objects", "extra_objects", "stuck", "patients_told")
        return {name: getattr(self, name) for name in (*fields, *named) if getattr(self, name)}


def unfinished(world: World, sent: Sequence[Sent]) -> int | None:
    """How many of the series aren't through; None while the database doesn't answer."""
    try:
        versions, found = rows(world, series), rows(world, jobs)
    except (SQLAlchemyError, NodeError):
        return None
    waiting = {row["series_instance_uid"] for row in versions if row["state"] != "routed"}
    waiting |= {job["series_instance_uid"] for job in found if job["state"] not in ENDED}
    through = {row["series_instance_uid"] for row in versions} - waiting
    return len({one.uid for one in sent} - through) + len(waiting - {one.uid for one in sent})


def rows(world: World, table: Any) -> list[dict[str, Any]]:
    engine = open_database(world.data_dir, world.database)
    try:
        with engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(select(table))]
    finally:
        engine.dispose()


def judge(world: World, sent: Sequence[Sent]) -> Verdict:
    verdict = Verdict(series=len(sent), instances=sum(len(one.files) for one in sent))
    _judge_input(world, sent, verdict)
    expected = _judge_jobs(world, sent, verdict)
    _judge_archive(world, expected, verdict)
    _judge_telling(world, sent, verdict)
    return verdict


def _judge_input(world: World, sent: Sequence[Sent], verdict: Verdict) -> None:
    stored: dict[str, Path] = {}
    twice = 0
    for row in rows(world, instances):
        if row["state"] == "stored":
            twice += row["sop_instance_uid"] in stored
            stored[row["sop_instance_uid"]] = world.data_dir / row["path"]
    files = {uid: path for one in sent for uid, path in one.files.items()}
    verdict.lost_instances = twice + sum(
        uid not in stored or not _same(stored[uid].read_bytes(), path) for uid, path in files.items()
    )


def _judge_jobs(world: World, sent: Sequence[Sent], verdict: Verdict) -> dict[str, tuple[str, Path]]:
    """SOP Instance UID -> job and file of every object that is to be in the archive."""
    found = rows(world, jobs)
    verdict.jobs = len(found)
    done = [job for job in found if job["state"] == "done"]
    by_key: dict[tuple[str, str], int] = {}
    for job in done:
        key = (job["series_instance_uid"], job["pipeline"])
        by_key[key] = max(by_key.get(key, 0), job["series_version"])
    for job in found:
        if job["state"] == "done":
            continue
        later = by_key.get((job["series_instance_uid"], job["pipeline"]), 0) > job["series_version"]
        if later and job["state"] == "failed" and _is_refusal(job["reason_code"]):
            verdict.refused_versions += 1
        else:
            verdict.stuck.append(f"{job['job_id']}: {job['state']} {job['reason_code']} {job['reason']}")
    for one in sent:
        for pipeline in (LIGHT, WHOLE) if one.whole else (LIGHT,):
            if (one.uid, pipeline) not in by_key:
                verdict.stuck.append(f"no results of {pipeline} for series {one.uid}")
    verdict.stuck_jobs = len(verdict.stuck)
    expected = {}
    for job in done:
        results = world.data_dir / job["result_dir"]
        for entry in json.loads((results / SUMMARY).read_text())["results"]:
            expected[entry["sop_instance_uid"]] = (job["job_id"], results / entry["path"])
    return expected


def _is_refusal(code: str | None) -> bool:
    """Of a series that isn't whole (``SeriesRefused``)."""
    return code is not None and code.startswith(("geometry_", "no_lungs", "series_refused"))


def _judge_archive(world: World, expected: dict[str, tuple[str, Path]], verdict: Verdict) -> None:
    with httpx.Client(base_url=world.orthanc.pacs.url, timeout=120.0) as archive:
        listed = archive.get("/instances", params={"expand": ""}).json()
        held = {one["MainDicomTags"]["SOPInstanceUID"]: one for one in listed}
        verdict.objects = len(listed)
        verdict.missing_objects = sorted(set(expected) - set(held))
        verdict.extra_objects = sorted(set(held) - set(expected))
        verdict.duplicate_result_sets = len({held[uid]["ParentSeries"] for uid in verdict.extra_objects})
        for uid in set(expected) & set(held):
            answer = archive.get(f"/instances/{held[uid]['ID']}/file")
            verdict.invalid_objects += not _same(answer.content, expected[uid][1])


def _judge_telling(world: World, sent: Sequence[Sent], verdict: Verdict) -> None:
    """Neither logs nor metrics nor pages name a patient (DESIGN I8)."""
    texts = {}
    for victim in world.nodes:
        texts[f"{victim.name}'s log"] = victim.node.log_path.read_text(errors="replace")
        if victim.node.process is not None and victim.node.process.poll() is None:
            pages = served(f"http://127.0.0.1:{victim.node.web_port}")
            texts |= {f"{victim.name}'s {path}": text for path, text in pages.items()}
    images = (dcmread(next(iter(one.files.values())), stop_before_pixels=True) for one in sent)
    verdict.patients_told = told(texts, set().union(*map(words, images)))


def _same(content: bytes, path: Path) -> bool:
    """Whether these are the data set of the file."""
    try:
        return bool(dcmread(BytesIO(content)) == dcmread(path))
    except InvalidDicomError:
        return False
