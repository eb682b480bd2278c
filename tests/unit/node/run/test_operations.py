"""What ops ask of jobs: list, show, retry, cancel, and the watch that hands retries on."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import insert
from structlog.testing import capture_logs

from node.database import deliveries
from node.run import operations
from node.run.operations import (
    AskedWatch,
    JobNotFound,
    JobStateConflict,
    cancel_job,
    list_jobs,
    retry_job,
    show_job,
)
from tests.integration.receiving import wait_for
from tests.unit.node.run.conftest import JOB, Bench


def test_list_is_newest_first_with_deliveries(bench: Bench) -> None:
    bench.add_job("j2", created_at=2000.0, state="done")
    bench.add_job("j3", created_at=1500.0, state="done")
    bench.steps.execute(JOB, 0, 1, 0)
    found = list_jobs(bench.engine)
    assert [job["job_id"] for job in found] == ["j2", "j3", JOB]
    assert [[d["destination"] for d in job["deliveries"]] for job in found] == [[], [], ["a", "b"]]
    assert [job["job_id"] for job in list_jobs(bench.engine, limit=1)] == ["j2"]
    assert [job["job_id"] for job in list_jobs(bench.engine, state="done")] == ["j2", "j3"]
    assert list_jobs(bench.engine, state="nonsense") == []


def test_show_by_prefix(bench: Bench) -> None:
    bench.add_job("abc123")
    assert show_job(bench.engine, "abc")["job_id"] == "abc123"
    bench.steps.execute(JOB, 0, 1, 0)
    shown = show_job(bench.engine, JOB)
    assert [(d["destination"], d["state"]) for d in shown["deliveries"]] == [
        ("a", "pending"),
        ("b", "pending"),
    ]


def test_a_prefix_of_several_or_no_jobs(bench: Bench) -> None:
    bench.add_job("j2")
    with pytest.raises(JobNotFound, match="2 jobs have an id that begins with 'j'") as raised:
        show_job(bench.engine, "j")
    assert "jobs list" in raised.value.hint
    with pytest.raises(JobNotFound, match="no jobs"):
        show_job(bench.engine, "x")


@pytest.mark.parametrize("pattern", ["%", "_1", "j_", "%1", "j%", "\\", "/"])
def test_wildcards_are_plain_characters(bench: Bench, pattern: str) -> None:
    with pytest.raises(JobNotFound, match="no jobs"):
        cancel_job(bench.engine, pattern, "ops")
    assert bench.job()["state"] == "queued"


@pytest.mark.parametrize("state", ["failed", "cancelled", "done"])
def test_retry_asks_again_and_forgets_how_it_ended(bench: Bench, state: str) -> None:
    bench.set_job(state=state, finished_at=1.0, reason_code="x", reason="y")
    row = {"job_id": JOB, "destination": "a", "state": "failed", "updated_at": 1.0}
    with bench.engine.begin() as connection:
        connection.execute(insert(deliveries).values(**row))
    assert retry_job(bench.engine, "j") == JOB
    job = bench.job()
    assert [job[name] for name in ("state", "finished_at", "reason_code", "reason")] == [
        "retry",
        None,
        None,
        None,
    ]
    assert bench.deliveries() == {}


@pytest.mark.parametrize("state", ["queued", "retry", "running", "delivering"])
def test_retry_is_for_jobs_that_ended(bench: Bench, state: str) -> None:
    bench.set_job(state=state)
    with pytest.raises(JobStateConflict, match=f"job {JOB} is {state}; retry is for jobs that are failed"):
        retry_job(bench.engine, JOB)
    assert bench.job()["state"] == state


@pytest.mark.parametrize("state", ["queued", "retry", "running", "delivering"])
def test_cancel_ends_a_job(bench: Bench, state: str) -> None:
    bench.set_job(state=state)
    before = time.time()
    assert cancel_job(bench.engine, JOB, "ops") == JOB
    job = bench.job()
    assert (job["state"], job["reason_code"]) == ("cancelled", "cancelled")
    assert job["reason"] == "ops asked for it"
    assert job["finished_at"] >= before


def test_what_was_cancelled_is_counted_and_logged_once(bench: Bench) -> None:
    bench.set_job(state="running")
    cancel_job(bench.engine, JOB, "ops")
    counted: list[tuple[str, str]] = []
    watches = [
        AskedWatch(bench.engine, lambda _job_id: None, lambda *what: counted.append(what)) for _ in range(2)
    ]
    with capture_logs() as logs:
        for watch in (*watches, *watches):
            watch.look()
    assert counted == [("chest", "cancelled")]
    (line,) = logs
    assert (line["event"], line["job_id"]) == ("job_cancelled", JOB)
    assert (line["code"], line["reason"]) == ("cancelled", "it was cancelled: ops asked for it")


@pytest.mark.parametrize("state", ["failed", "cancelled", "done"])
def test_cancel_is_for_jobs_that_have_not_ended(bench: Bench, state: str) -> None:
    bench.set_job(state=state)
    with pytest.raises(JobStateConflict, match=f"job {JOB} is {state}; cancel is for"):
        cancel_job(bench.engine, JOB, "ops")


def test_the_watch_hands_retries_on_as_a_new_generation(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "POLL_SECONDS", 0.02)
    bench.add_job("other", state="cancelled")
    enqueued: list[tuple[str, str, int]] = []

    def enqueue(job_id: str) -> None:
        job = bench.job(job_id)
        enqueued.append((job_id, job["state"], job["generation"]))

    def wait_for_generation(number: int) -> None:
        wait_for(lambda: (JOB, "queued", number) in enqueued)

    watch = AskedWatch(bench.engine, enqueue)
    watch.start()
    try:
        for generation in (1, 2):
            bench.set_job(state="failed")
            retry_job(bench.engine, JOB)
            wait_for_generation(generation)
        time.sleep(0.1)
    finally:
        watch.stop()
    assert enqueued == [(JOB, "queued", 1), (JOB, "queued", 2)]


def test_a_retry_delivers_the_same_results_again(bench: Bench) -> None:
    for generation in (0, 1):
        for name in bench.steps.execute(JOB, generation, 1, 0)["destinations"]:
            bench.steps.deliver(JOB, name, generation, 1)
        assert bench.job()["state"] == "done"
        retry_job(bench.engine, JOB)
        bench.set_job(state="queued", generation=generation + 1)
    assert len(bench.pool.requests) == 1
    assert [len(destination.delivered) for destination in bench.destinations.values()] == [2, 2]
