"""The list of studies: states, filters, pages, and that no query reads the whole table."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, event, insert

from node.config import WebConfig
from node.database import jobs, open_database, series
from node.metrics import Metrics
from node.web.app import create_app
from node.web.sources import Sources
from node.web.studies import Filter, Row, count_states, list_studies
from tests.unit.node.rows import job_row, series_row

MANY = 100_000
ROUTED = {
    "matched": ["chest"],
    "routes": [{"route": "chest", "pipeline": "p", "matches": True, "why": "all facts fit"}],
}
NOT_ROUTED = {
    "matched": [],
    "routes": [{"route": "chest", "pipeline": "p", "matches": False, "why": "modality is MR"}],
}


def study(number: int, state: str, **version: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Rows of one study with one series; state: of its series, or of its job."""
    uids = {"series_instance_uid": f"1.2.{number}.1", "study_instance_uid": f"1.2.{number}"}
    nothing = {"decision": None, "completed_at": None, "reason_code": None}
    times = {"opened_at": float(number), "last_instance_at": float(number), **nothing}
    if state in ("open", "complete"):
        return series_row(**uids, **times, state=state, **version), None
    if state == "unmatched":
        return series_row(
            **uids, **times | {"decision": NOT_ROUTED, "reason_code": "modality"}, **version
        ), None
    row = series_row(
        **uids, **times | {"decision": ROUTED, "completed_at": number, "reason_code": "none"}, **version
    )
    return row, job_row(**uids, job_id=f"j{number}", state=state, created_at=float(number))


def add(engine: Engine, *rows: tuple[dict[str, Any], dict[str, Any] | None]) -> None:
    with engine.begin() as connection:
        connection.execute(insert(series), [version for version, _ in rows])
        made = [job for _, job in rows if job is not None]
        if made:
            connection.execute(insert(jobs), made)


def states(rows: tuple[Row, ...]) -> list[tuple[str, str]]:
    return [(row.study_instance_uid, row.state) for row in rows]


def test_the_newest_come_first_each_with_its_state(engine: Engine) -> None:
    add(engine, study(1, "done"), study(2, "failed"), study(3, "unmatched"), study(4, "open"))
    page = list_studies(engine, Filter())
    assert states(page.rows) == [
        ("1.2.4", "open"),
        ("1.2.3", "unmatched"),
        ("1.2.2", "failed"),
        ("1.2.1", "done"),
    ]
    assert [row.tone for row in page.rows] == ["busy", "warn", "bad", "good"]
    assert page.rows[1].sentence == "No result, because no route matches: chest: modality is MR."
    assert page.next is None


@pytest.mark.parametrize("state", ["open", "complete", "unmatched", "running", "failed", "done", "cancelled"])
def test_each_filter_finds_its_own(engine: Engine, state: str) -> None:
    kinds = ("open", "complete", "unmatched", "running", "failed", "done", "cancelled")
    add(engine, *(study(number, kind) for number, kind in enumerate(kinds)))
    assert [row.state for row in list_studies(engine, Filter(state)).rows] == [state]


def test_by_sender_and_by_uid(engine: Engine) -> None:
    add(engine, study(1, "done"), study(2, "done", calling_ae_title="OTHER"))
    assert states(list_studies(engine, Filter(sender="OTHER")).rows) == [("1.2.2", "done")]
    assert states(list_studies(engine, Filter("done", sender="SCANNER")).rows) == [("1.2.1", "done")]
    for uid in ("1.2.1", "1.2.1.1"):
        assert states(list_studies(engine, Filter(uid=uid)).rows) == [("1.2.1", "done")]


def test_pages_show_each_study_once(engine: Engine) -> None:
    """Also one whose series came at different times."""
    add(engine, *(study(number, "done") for number in range(10)))
    again, _ = study(3, "done")
    add(engine, (again | {"series_instance_uid": "9.9", "last_instance_at": 7.5, "state": "open"}, None))
    seen: list[str] = []
    start = None
    for _ in range(5):
        page = list_studies(engine, Filter(before=start), size=3)
        seen += [row.study_instance_uid for row in page.rows]
        start = page.next
        if start is None:
            break
    assert seen == [f"1.2.{number}" for number in (9, 8, 3, 7, 6, 5, 4, 2, 1, 0)]


def test_results_say_more_of_a_study_than_a_scout_that_no_route_wants(engine: Engine) -> None:
    scout, _ = study(1, "unmatched")
    add(engine, study(1, "done"), (scout | {"series_instance_uid": "1.2.1.9", "last_instance_at": 9.0}, None))
    (row,) = list_studies(engine, Filter()).rows
    assert (row.state, row.instances) == ("done", 2)


#: of SQLite's virtual machine, between two looks
STEPS = 1000
STEPPED = [0]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """MANY studies: most done, one of a thousand unmatched, failed or open. STEPPED counts the steps."""
    engine = open_database(tmp_path_factory.mktemp("full"))
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"""
            WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < {MANY - 1})
            INSERT INTO series (series_instance_uid, version, study_instance_uid, calling_ae_title, state,
                instance_count, opened_at, last_instance_at, check_at, completed_at, decision, reason_code)
            SELECT '1.2.' || n || '.1', 1, '1.2.' || n, 'SCANNER', iif(n % 1000 = 2, 'open', 'routed'),
                300, n, n, 0, n, iif(n % 1000 = 0, :unmatched, :matched),
                CASE n % 1000 WHEN 2 THEN NULL WHEN 0 THEN 'modality' ELSE 'none' END
            FROM numbers""",  # noqa: S608
            {"matched": json.dumps(ROUTED), "unmatched": json.dumps(NOT_ROUTED)},
        )
        connection.exec_driver_sql(
            """
            INSERT INTO jobs (job_id, series_instance_uid, series_version, study_instance_uid, pipeline,
                route, destinations, priority, state, generation, created_at)
            SELECT 'j' || study_instance_uid, series_instance_uid, 1, study_instance_uid, 'p',
                'chest', '["pacs"]', 100,
                iif(last_instance_at % 1000 = 1, 'failed', 'done'), 0, last_instance_at
            FROM series WHERE reason_code = 'none'"""
        )
        connection.exec_driver_sql(
            """
            INSERT INTO deliveries (job_id, destination, state, attempts, updated_at)
            SELECT job_id, 'pacs', 'delivered', 1, created_at FROM jobs"""
        )
    engine.dispose()

    @event.listens_for(engine, "connect")
    def _count(connection: Any, _record: object) -> None:
        def stepped() -> int:
            STEPPED[0] += STEPS
            return 0

        connection.set_progress_handler(stepped, STEPS)

    yield engine
    engine.dispose()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "most_steps"),
    [
        ("/", 20 * MANY),  # it counts, of indexes
        ("/studies", MANY),
        ("/studies?state=failed", MANY),
        ("/studies?state=unmatched", MANY),
        ("/studies?sender=SCANNER", MANY),
        ("/studies?sender=NOBODY", MANY),
        (f"/studies?before={MANY // 2}~1.2.0", MANY),
        (f"/studies/1.2.{MANY // 2 + 5}", MANY),
        ("/destinations", MANY),
        ("/api/jobs", MANY),
    ],
)
async def test_pages_do_not_read_whole_tables(
    full: Engine, path: str, most_steps: int, tmp_path: Path
) -> None:
    """A row takes several steps, so that MANY steps don't read MANY rows."""
    app = create_app(full, Metrics("1"), {}, config=WebConfig(), sources=Sources(data_dir=tmp_path))
    transport = httpx.ASGITransport(app=app, client=("127.0.0.1", 4000))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        STEPPED[0], started = 0, time.perf_counter()
        answer = await client.get(path)
        took = time.perf_counter() - started
    print(f"{path}: {took * 1000:.0f} ms, {STEPPED[0]} steps")
    assert answer.status_code == 200
    assert STEPPED[0] < most_steps


def test_counts_come_of_all_studies(full: Engine) -> None:
    counts = count_states(full)
    assert counts.series == {"open": MANY // 1000, "routed": MANY - MANY // 1000}
    assert counts.jobs["failed"] == MANY // 1000
