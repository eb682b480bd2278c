"""Jobs over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine, insert

from node.config import WebConfig
from node.database import jobs, open_database
from node.metrics import Metrics
from node.run.operations import show_job
from node.web.app import create_app
from node.web.users import Users, write_users
from tests.unit.node.rows import job_row


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(tmp_path)
    with engine.begin() as connection:
        connection.execute(insert(jobs), [job_row(job_id="a1" * 32, state="failed")])
    yield engine
    engine.dispose()


@pytest.fixture
def client(engine: Engine, tmp_path: Path) -> httpx.AsyncClient:
    users, token = Users().with_token("ops", "operator")
    write_users(tmp_path / "users.yaml", users)
    app = create_app(engine, Metrics("1"), {}, config=WebConfig(users=tmp_path / "users.yaml"))
    transport = httpx.ASGITransport(app=app, client=("192.0.2.7", 4000))
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.AsyncClient(transport=transport, base_url="http://node", headers=headers)


@pytest.mark.anyio
async def test_retry_and_cancel(client: httpx.AsyncClient, engine: Engine) -> None:
    job_id = "a1" * 32
    assert (await client.get("/api/jobs/a1")).json()["state"] == "failed"
    answer = await client.post("/api/jobs/a1/retry")
    assert (answer.status_code, answer.json()) == (200, {"job_id": job_id, "asked": "retry"})
    assert show_job(engine, job_id)["state"] == "retry"
    assert (await client.post(f"/api/jobs/{job_id}/cancel")).status_code == 200
    assert show_job(engine, job_id)["state"] == "cancelled"


@pytest.mark.anyio
async def test_what_can_t_be_done_is_said(client: httpx.AsyncClient) -> None:
    missing = await client.post("/api/jobs/ffff/retry")
    assert missing.status_code == 404
    assert missing.json()["code"] == "job_not_found"
    assert "pacsnode jobs list" in missing.json()["hint"]
    ended = await client.post("/api/jobs/a1/cancel")
    assert ended.status_code == 409
    assert "is failed; cancel is for jobs that are queued" in ended.json()["error"]


@pytest.mark.anyio
async def test_who_only_sees_can_t_change(engine: Engine, tmp_path: Path) -> None:
    users, token = Users().with_token("eyes", "viewer")
    write_users(tmp_path / "users.yaml", users)
    app = create_app(engine, Metrics("1"), {}, config=WebConfig(users=tmp_path / "users.yaml"))
    transport = httpx.ASGITransport(app=app, client=("192.0.2.7", 4000))
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://node", headers=headers) as client:
        assert (await client.get("/api/jobs/a1")).status_code == 200
        assert (await client.post("/api/jobs/a1/retry")).status_code == 403
