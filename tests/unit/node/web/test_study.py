"""A study's page: one sentence that says why there is no result, and its life in order."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, insert

from node.config import WebConfig
from node.database import deliveries, instances, jobs, series
from node.metrics import Metrics
from node.run.operations import show_job
from node.web.app import create_app
from node.web.sources import Sources
from node.web.study import find_study
from node.web.users import Users, write_users
from tests.unit.node.rows import instance_row, job_row, series_row

STUDY = "1.2"
ACCESSED: list[tuple[str, ...]] = []
ROUTE = {"route": "chest", "pipeline": "p", "matches": False, "why": "modality is MR, wanted <CT>"}


def add(
    engine: Engine,
    *,
    job: dict[str, Any] | None = None,
    sent: tuple[dict[str, Any], ...] = (),
    **version: Any,
) -> None:
    with engine.begin() as connection:
        connection.execute(insert(series), [series_row(study_instance_uid=STUDY, **version)])
        if job is not None:
            connection.execute(insert(jobs), [job_row(study_instance_uid=STUDY, **job)])
        for row in sent:
            base = {"job_id": "j1", "attempts": 1, "updated_at": 30.0}
            connection.execute(insert(deliveries), [base | row])


MATCHED = {"routes": [{**ROUTE, "matches": True, "why": "all facts fit"}], "matched": ["chest"]}
ROUTED: dict[str, Any] = {
    "state": "routed",
    "completed_at": 12.0,
    "evidence": {"rule": "association_release"},
    "decision": MATCHED,
}
DELIVERED = {"destination": "pacs", "state": "delivered"}
FAILED = {
    "destination": "gone",
    "state": "failed",
    "attempts": 2,
    "last_error": "no answer",
    "reason_code": "destination_down",
}
MISSING = {"reason_code": "geometry_missing_slices", "reason": "9 slices are missing"}


@pytest.mark.parametrize(
    ("rows", "sentence", "tone"),
    [
        ({"state": "open"}, "No result yet, because more instances may come.", "busy"),
        (
            {**ROUTED, "decision": {"routes": [ROUTE], "matched": []}},
            "No result, because no route matches: chest: modality is MR, wanted <CT>.",
            "warn",
        ),
        (
            {**ROUTED, "decision": {"routes": [], "matched": []}},
            "No result, because no route matches: no routes are configured.",
            "warn",
        ),
        (
            {**ROUTED, "job": {"state": "queued", "reason": "Triton isn't ready"}},
            "No result yet, because chest_ct_pneumonia is queued: Triton isn't ready.",
            "busy",
        ),
        (
            {**ROUTED, "job": {"state": "failed", **MISSING}},
            "No result, because chest_ct_pneumonia failed: the series is incomplete: 9 slices are missing.",
            "bad",
        ),
        (
            {**ROUTED, "job": {"state": "failed", **MISSING}, "sent": (DELIVERED,)},  # of what says so
            "No result, because chest_ct_pneumonia failed: the series is incomplete: 9 slices are missing.",
            "bad",
        ),
        (
            {**ROUTED, "job": {"state": "failed", "reason_code": "delivery_failed", "reason": "no answer"}}
            | {"sent": (DELIVERED, FAILED)},
            "The results of chest_ct_pneumonia are at pacs only, "
            "because chest_ct_pneumonia failed at gone: the destination is down: no answer.",
            "bad",
        ),
        (
            {**ROUTED, "job": {"state": "delivering"}, "sent": ({**FAILED, "state": "pending"},)},
            "No result yet, because chest_ct_pneumonia is delivering: "
            "gone: the destination is down: no answer.",
            "busy",
        ),
        (
            {
                **ROUTED,
                "job": {"state": "cancelled", "reason_code": "cancelled", "reason": "ops asked for it"},
            },
            "No result of chest_ct_pneumonia, because it was cancelled: ops asked for it.",
            "warn",
        ),
        (
            {**ROUTED, "job": {"state": "done"}, "sent": (DELIVERED,)},
            "The results of chest_ct_pneumonia are at pacs.",
            "good",
        ),
        (
            {**ROUTED, "job": {"state": "done"}},
            "The results of chest_ct_pneumonia are kept here.",
            "good",
        ),
    ],
)
def test_one_sentence_says_why(
    engine: Engine, tmp_path: Path, rows: dict[str, Any], sentence: str, tone: str
) -> None:
    add(engine, **rows)
    study = find_study(engine, tmp_path, STUDY)
    assert study is not None
    assert [(one.sentence, one.tone) for one in study.series] == [(sentence, tone)]


def test_its_life_is_in_order(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "results/j1").mkdir(parents=True)
    (tmp_path / "results/j1/summary.json").write_text(json.dumps({"timings_seconds": {"lungs": 1.25}}))
    os.utime(tmp_path / "results/j1/summary.json", (20.0, 20.0))
    job = {
        "state": "done",
        "created_at": 13.0,
        "started_at": 14.5,
        "finished_at": 31.0,
        "result_dir": "results/j1",
    }
    add(engine, **ROUTED, opened_at=10.0, last_instance_at=11.0, job=job, sent=(DELIVERED,))
    study = find_study(engine, tmp_path, STUDY)
    assert study is not None
    events = [(event.what, event.why) for event in study.series[0].events]
    assert [what for what, _ in events] == [
        "first instance",
        "last instance",
        "complete",
        "route chest matches",
        "chest_ct_pneumonia queued",
        "chest_ct_pneumonia started",
        "chest_ct_pneumonia made results",
        "pacs: delivered",
        "chest_ct_pneumonia done",
    ]
    assert ("chest_ct_pneumonia started", "after 1.5 s in the queue") in events
    assert ("chest_ct_pneumonia made results", "lungs 1.2 s") in events
    assert ("complete", "by association release") in events


def asking(engine: Engine, folder: Path, role: str) -> httpx.AsyncClient:
    users, token = Users().with_token("someone", role)  # type: ignore[arg-type]
    write_users(folder / "users.yaml", users)
    config = WebConfig(users=folder / "users.yaml")
    sources = Sources(data_dir=folder, accessed=lambda *what: ACCESSED.append(what))
    app = create_app(engine, Metrics("1"), {}, config=config, sources=sources)
    transport = httpx.ASGITransport(app=app, client=("192.0.2.7", 4000))
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.AsyncClient(transport=transport, base_url="http://node", headers=headers)


@pytest.mark.anyio
async def test_the_page_escapes_and_asks(engine: Engine, tmp_path: Path) -> None:
    add(engine, **ROUTED, job={"state": "failed", "reason": "<b>broken</b>"})
    with engine.begin() as connection:
        row = instance_row(study_instance_uid=STUDY, state="quarantined", reason="no <SOP class>")
        connection.execute(insert(instances), [row])
    async with asking(engine, tmp_path, "operator") as client:
        page = (await client.get(f"/studies/{STUDY}")).text
        assert "&lt;b&gt;broken&lt;/b&gt;" in page and "<b>broken" not in page
        assert "no &lt;SOP class&gt;" in page
        assert "Run again: chest_ct_pneumonia" in page
        asked = await client.post(f"/studies/{STUDY}/jobs/j1/retry")
        assert (asked.status_code, asked.headers["Location"]) == (303, f"/studies/{STUDY}")
        assert show_job(engine, "j1")["state"] == "retry"
        again = await client.post(f"/studies/{STUDY}/jobs/j1/retry")
        assert again.status_code == 409 and "retry is for jobs that are failed" in again.text
        assert (await client.post(f"/studies/{STUDY}/jobs/j1/delete")).status_code == 404
        assert (await client.get("/studies/9.9")).status_code == 404
        told = (await client.get(f"/api/studies/{STUDY}")).json()
        (job,) = told["series"][0]["jobs"]
        assert (job["job_id"], job["state"], job["asks"]) == ("j1", "retry", ["cancel"])


@pytest.mark.anyio
async def test_a_study_of_which_nothing_could_be_filed_says_so(engine: Engine, tmp_path: Path) -> None:
    with engine.begin() as connection:
        row = instance_row(study_instance_uid=STUDY, state="quarantined", reason="no SOP class")
        connection.execute(insert(instances), [row])
    async with asking(engine, tmp_path, "viewer") as client:
        page = (await client.get(f"/studies/{STUDY}")).text
    assert "No result, because all that came of it is in quarantine." in page and "no SOP class" in page


@pytest.mark.anyio
async def test_who_only_sees_has_no_buttons(engine: Engine, tmp_path: Path) -> None:
    add(engine, **ROUTED, job={"state": "failed"})
    async with asking(engine, tmp_path, "viewer") as client:
        assert "Run again" not in (await client.get(f"/studies/{STUDY}")).text
        assert (await client.post(f"/studies/{STUDY}/jobs/j1/retry")).status_code == 403
