"""Live updates: a page hears of what it shows, of nothing else, and of the end of its session."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine, insert, update

from node.config import WebConfig
from node.database import deliveries, jobs, series
from node.metrics import Metrics
from node.web import events
from node.web.app import WebServer, create_app
from node.web.sources import Sources
from node.web.users import Users, write_users
from tests.unit.node.rows import job_row, series_row

PASSWORD = "a long enough one"


@contextmanager
def serving(engine: Engine, users: Path | None = None) -> Iterator[tuple[str, threading.Event]]:
    """(URL, what ends the streams)."""
    sources = Sources()
    config = WebConfig(port=0, users=users, open_loopback=users is None)
    server = WebServer(config, create_app(engine, Metrics("1"), {}, sources=sources, config=config))
    server.start()
    try:
        yield f"http://127.0.0.1:{server.port}", sources.stopping
    finally:
        sources.stopping.set()
        server.stop()


def named(lines: Iterator[str]) -> Iterator[str]:
    return (line.removeprefix("event: ") for line in lines if line.startswith("event: "))


def change(engine: Engine, study: str, instances: int) -> None:
    with engine.begin() as connection:
        its = series.c.study_instance_uid == study
        connection.execute(
            update(series).where(its).values(instance_count=instances, last_instance_at=instances)
        )


def test_a_study_s_page_hears_of_its_study_only(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(events, "TICK_SECONDS", 0.02)
    with engine.begin() as connection:
        connection.execute(
            insert(series), [series_row(), series_row(series_instance_uid="9", study_instance_uid="9")]
        )
    pulse = events.Pulse(engine, lambda: ())
    before, all_before = pulse.of_study("1.2"), pulse.of_all()
    change(engine, "9", 5)
    assert pulse.of_study("1.2") == before
    with serving(engine) as (url, _), httpx.stream("GET", f"{url}/events?study=1.2", timeout=60) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.iter_lines()
        assert next(lines) == "retry: 3000"
        told = named(lines)
        for step in range(2):
            change(engine, "1.2", 7 + step)
            assert next(told) == "changed"
    pulse._looked_at = 0.0
    assert pulse.of_all() != all_before
    with engine.begin() as connection:
        before = pulse.of_study("1.2")
        connection.execute(insert(jobs), [job_row()])
        sent = {"job_id": "j1", "destination": "pacs", "state": "pending", "attempts": 0, "updated_at": 1.0}
        connection.execute(insert(deliveries), [sent])
    assert pulse.of_study("1.2") != before


def test_it_ends_with_the_session_and_with_the_node(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "TICK_SECONDS", 0.02)
    write_users(tmp_path / "users.yaml", Users().with_user("anna", "viewer", PASSWORD))
    with serving(engine, tmp_path / "users.yaml") as (url, stopping):
        assert httpx.get(f"{url}/events").status_code == 401
        form, headers = {"name": "anna", "password": PASSWORD}, {"Origin": url}
        cookies = httpx.post(f"{url}/login", data=form, headers=headers).cookies
        with httpx.stream("GET", f"{url}/events", cookies=cookies, timeout=60) as stream:
            lines = stream.iter_lines()
            assert next(lines) == "retry: 3000"
            httpx.post(f"{url}/logout", cookies=cookies, headers=headers)
            assert list(named(lines)) == ["ended"]
        cookies = httpx.post(f"{url}/login", data=form, headers=headers).cookies
        with httpx.stream("GET", f"{url}/events", cookies=cookies, timeout=60) as stream:
            lines = stream.iter_lines()
            assert next(lines) == "retry: 3000"
            stopping.set()
            assert list(named(lines)) == []


def test_streams_are_bounded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(events, "MOST_OF_ONE", 1)
    with serving(engine) as (url, _):
        with httpx.stream("GET", f"{url}/events", timeout=60) as stream:
            lines = stream.iter_lines()
            assert next(lines) == "retry: 3000"
            refused = httpx.get(f"{url}/events")
            assert refused.status_code == 503 and "too many pages" in refused.text
        for _ in range(200):  # what it held is free again once the server has seen that it is gone
            with httpx.stream("GET", f"{url}/events", timeout=60) as stream:
                if stream.status_code == 200:
                    break
        else:
            pytest.fail("the place of a page that is gone stays taken")
