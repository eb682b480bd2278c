"""Health, metrics, the API and the ops page, over HTTP."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from sqlalchemy import Engine, insert

from node.config import WebConfig
from node.database import deliveries, instances, jobs, series
from node.metrics import Metrics
from node.web.app import WebServer, WebStartError, create_app
from node.web.now import measure
from tests.unit.node.rows import instance_row, job_row, series_row

UID = "1.2.826.0.1.3680043.8.498.1"


@pytest.fixture
def failing() -> dict[str, str | None]:
    return {"listener": None, "triton": None}


@pytest.fixture
def client(engine: Engine, failing: dict[str, str | None]) -> Iterator[httpx.Client]:
    checks = {name: lambda name=name: failing[name] for name in failing}
    server = WebServer(WebConfig(port=0), create_app(engine, Metrics("1.2.3"), checks))
    server.start()
    url = f"http://127.0.0.1:{server.port}"
    with httpx.Client(base_url=url) as client:
        yield client
    server.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_a_port_in_use_is_named(engine: Engine, client: httpx.Client) -> None:
    server = WebServer(WebConfig(port=client.base_url.port or 0), create_app(engine, Metrics("1.2.3"), {}))
    with pytest.raises(WebStartError, match=f"web 127.0.0.1:{client.base_url.port}: Address already in use"):
        server.start()
    server.stop()


def test_answers_are_not_held_back(engine: Engine) -> None:
    """By Nagle's algorithm, for the 40 ms after which a client acknowledges the first half of one."""
    server = WebServer(WebConfig(port=0), create_app(engine, Metrics("1.2.3"), {}))
    server.start()
    assert server._socket is not None
    assert server._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    server.stop()


def fill(engine: Engine) -> None:
    decision = {
        "matched": [],
        "reason_code": "modality",
        "routes": [
            {
                "route": "chest",
                "pipeline": "p",
                "matches": False,
                "why": "modality is <b>MR</b>, wanted CT",
                "explanation": {},
            }
        ],
    }
    with engine.begin() as connection:
        connection.execute(
            insert(series).values(
                series_row(
                    series_instance_uid=UID,
                    calling_ae_title="<script>alert(1)",
                    instance_count=7,
                    evidence={
                        "rule": "missing_limit",
                        "instances": 7,
                        "expected": 9,
                        "expected_by": "c_find",
                        "missing_instances": 2,
                        "missing_positions": {"count": 1},
                        "query": {"error": "fetch: <refused>"},
                    },
                    decision=decision,
                )
            )
        )
        connection.execute(
            insert(jobs).values(
                job_row(
                    series_instance_uid=UID,
                    state="failed",
                    reason_code="geometry_tilted",
                    reason="the gantry is tilted",
                )
            )
        )
        connection.execute(
            insert(deliveries).values(
                job_id="j1",
                destination="pacs",
                state="pending",
                attempts=3,
                last_error="no answer",
                updated_at=1,
            )
        )
        connection.execute(
            insert(instances).values(
                instance_row(
                    path="spool/quarantine/x.dcm",
                    state="quarantined",
                    reason_code="missing_uid",
                    reason="SeriesInstanceUID is missing or empty",
                )
            )
        )


def test_health(client: httpx.Client) -> None:
    assert client.get("/healthz").status_code == 200


def test_readiness_names_what_fails(client: httpx.Client, failing: dict[str, str | None]) -> None:
    answer = client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {"ready": True, "checks": ["database", "listener", "triton"], "failing": {}}
    failing["triton"] = "Triton isn't ready yet"
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["failing"] == {"triton": "Triton isn't ready yet"}
    assert client.get("/healthz").status_code == 200
    assert "Triton isn&#39;t ready yet" in client.get("/").text


def test_metrics_count_states_in_the_database(client: httpx.Client, engine: Engine) -> None:
    fill(engine)
    text = client.get("/metrics").text
    assert 'pacsnode_series{state="routed"} 1.0' in text
    assert 'pacsnode_jobs{state="failed"} 1.0' in text
    assert 'pacsnode_jobs{state="queued"} 0.0' in text
    assert 'pacsnode_build_info{version="1.2.3"} 1.0' in text


def test_a_scrape_tells_what_waits_and_for_how_long(engine: Engine) -> None:
    now = time.time()
    rows = [job_row(job_id=name, state="delivering", created_at=now - 50) for name in ("d1", "d2")]
    rows += [job_row(job_id="c", state="cancelled"), job_row(job_id="r", state="retry", created_at=now - 9)]
    with engine.begin() as connection:
        for row in rows:
            connection.execute(insert(jobs).values(row))
            for name, state in (("pacs", "stored"), ("vna", "delivered")):
                values = {"job_id": row["job_id"], "destination": name, "state": state, "updated_at": now}
                connection.execute(insert(deliveries).values(values))
        waiting = series_row(state="open", last_instance_at=now - 20)
        connection.execute(insert(series).values(waiting))
    metrics = Metrics("1")
    measure(engine, metrics, ["pacs", "vna", "other"])
    value = metrics.registry.get_sample_value
    found = {name: value("pacsnode_deliveries_waiting", {"destination": name}) for name in ("pacs", "vna")}
    assert found == {"pacs": 2.0, "vna": 0.0}
    ages = {"completeness": 20, "routing": 0, "run": 9, "delivery": 50}
    for what, seconds in ages.items():
        age = value("pacsnode_spool_age_seconds", {"waiting_for": what})
        assert age == pytest.approx(seconds, abs=5) and (age or 0) >= seconds, what
    measure(engine, metrics, ["vna"])
    assert value("pacsnode_deliveries_waiting", {"destination": "other"}) is None, "it is no more"


def test_lists(client: httpx.Client, engine: Engine) -> None:
    fill(engine)
    (one,) = client.get("/api/series").json()
    assert (one["series_instance_uid"], one["decision"]["reason_code"]) == (UID, "modality")
    (job,) = client.get("/api/jobs", params={"limit": 5}).json()
    assert job["deliveries"][0]["last_error"] == "no answer"
    assert client.get("/api/jobs", params={"limit": 0}).status_code == 422


def test_the_page_says_why_and_escapes(client: httpx.Client, engine: Engine) -> None:
    assert "Nothing received yet" in client.get("/").text
    fill(engine)
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    for text in (
        UID,
        "unmatched",
        "modality is &lt;b&gt;MR&lt;/b&gt;, wanted CT",
        "geometry_tilted",
        "the gantry is tilted",
        "no answer",
        "SeriesInstanceUID is missing or empty",
    ):
        assert text in page.text
    assert "<script>" not in page.text
    for text in ("7 of 9 came, by c find", "1 slice positions are empty", "fetch: &lt;refused&gt;"):
        assert text in page.text
