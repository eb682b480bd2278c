"""What each destination gets: its encoding, what supersedes, and why there is no result."""

from __future__ import annotations

import json
import shutil
from typing import Any, Literal

import pytest
from sqlalchemy import insert

from node.database import deliveries, series, write_transaction
from node.run.boundary import STOP
from node.run.results import PREDECESSOR_RUNNING
from node.run.worker_pool import PipelineFailed
from pipelines.request import NoResult
from tests.unit.node.rows import series_row
from tests.unit.node.run.conftest import JOB, OBJECTS, SERIES, Bench

LATE = "j2"


def names(bench: Bench, destination: str) -> list[list[str]]:
    return [[path.name for path in files] for files in bench.destinations[destination].delivered]


def deliver_all(bench: Bench, job_id: str = JOB) -> None:
    for name in ("a", "b"):
        assert bench.steps.deliver(job_id, name, 0, 1) == STOP


def add_late_job(bench: Bench) -> None:
    with write_transaction(bench.engine) as connection:
        row = series_row(series_instance_uid=SERIES, version=2, last_instance_at=1003.0)
        connection.execute(insert(series).values(row))
    bench.add_job(LATE, series_version=2)


def test_each_destination_gets_its_encoding_of_one_run(bench: Bench) -> None:
    bench.configure(b={"segmentation": "labelmap", "empty_frames": "include"})
    bench.steps.execute(JOB, 0, 1, 0)
    assert [request.encodings for request in bench.pool.requests] == [("labelmap-include",)]
    deliver_all(bench)
    assert names(bench, "a") == [list(OBJECTS)]
    assert names(bench, "b") == [[name.replace(".", ".labelmap-include.") for name in OBJECTS]]
    assert bench.job()["state"] == "done"


def test_results_made_before_a_destination_wanted_another_encoding(bench: Bench) -> None:
    """The delivery says what to do, and doing it makes the set again."""
    bench.steps.execute(JOB, 0, 1, 0)
    bench.configure(b={"segmentation": "fractional"})
    deliver_all(bench)
    assert bench.job()["state"] == "failed"
    assert "`" not in str(bench.job()["reason"])
    assert "before it wanted fractional-omit" in str(bench.job()["reason"])
    bench.set_job(state="queued", generation=1)
    with write_transaction(bench.engine) as connection:
        connection.execute(deliveries.delete())
    bench.steps.execute(JOB, 1, 1, 0)
    assert len(bench.pool.requests) == 2
    assert bench.steps.deliver(JOB, "b", 1, 1) == STOP
    assert names(bench, "b") == [[name.replace(".", ".fractional-omit.") for name in OBJECTS]]


def test_a_set_that_is_there_is_not_made_again(bench: Bench) -> None:
    bench.configure(b={"segmentation": "labelmap"})
    for attempt in (1, 2):
        bench.steps.execute(JOB, 0, attempt, 0)
    assert len(bench.pool.requests) == 1


def test_a_later_version_supersedes_and_rejects_where_that_is_wanted(bench: Bench) -> None:
    bench.configure(b={"replace": "reject"})
    bench.steps.execute(JOB, 0, 1, 0)
    deliver_all(bench)
    add_late_job(bench)
    bench.steps.execute(LATE, 0, 1, 0)
    request = bench.pool.requests[-1]
    assert (request.predecessor, request.reject) == (bench.result_dir, True)
    deliver_all(bench, LATE)
    assert names(bench, "a")[-1] == list(OBJECTS)
    assert names(bench, "b")[-1] == [*OBJECTS, "rejection.binary-omit.dcm"]


def test_a_later_version_waits_until_the_earlier_one_ran(bench: Bench) -> None:
    add_late_job(bench)
    waiting = bench.steps.execute(LATE, 0, 1, 0)
    assert waiting["retry_in_seconds"] is not None and waiting["failures"] == 0
    assert bench.job(LATE)["reason_code"] == PREDECESSOR_RUNNING
    bench.steps.execute(JOB, 0, 1, 0)
    assert bench.steps.execute(LATE, 0, 2, 0)["destinations"] == ["a", "b"]
    assert bench.pool.requests[-1].predecessor == bench.result_dir


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_an_earlier_version_without_results_is_not_waited_for(bench: Bench, state: str) -> None:
    bench.set_job(state=state)
    add_late_job(bench)
    assert bench.steps.execute(LATE, 0, 1, 0)["destinations"] == ["a", "b"]
    assert bench.pool.requests[-1].predecessor is None


def test_a_predecessor_whose_files_are_gone_is_not_named(bench: Bench) -> None:
    bench.steps.execute(JOB, 0, 1, 0)
    shutil.rmtree(bench.result_dir)
    add_late_job(bench)
    bench.steps.execute(LATE, 0, 1, 0)
    assert bench.pool.requests[-1].predecessor is None


def test_nothing_is_rejected_before_it_arrived(bench: Bench) -> None:
    bench.configure(b={"replace": "reject"})
    bench.steps.execute(JOB, 0, 1, 0)
    add_late_job(bench)
    bench.steps.execute(LATE, 0, 1, 0)
    wait = bench.steps.deliver(LATE, "b", 0, 1)["retry_in_seconds"]
    assert wait is not None and 0 <= wait <= 2.0
    assert names(bench, "b") == []
    bench.steps.deliver(JOB, "b", 0, 1)
    assert bench.steps.deliver(LATE, "b", 0, 2) == STOP
    assert [len(files) for files in names(bench, "b")] == [len(OBJECTS), len(OBJECTS) + 1]


def refused(_request: Any = None) -> PipelineFailed:
    return PipelineFailed("5 slices in a row are missing", code="geometry_gap", retryable=False)


@pytest.mark.parametrize("kind", ["report", "picture", "both"])
def test_a_refused_series_gets_an_object_that_says_why(
    bench: Bench, kind: Literal["report", "picture", "both"]
) -> None:
    bench.configure(results={"no_result": kind})
    bench.pool.script = [refused()]
    assert bench.steps.execute(JOB, 0, 1, 0)["destinations"] == ["a", "b"]
    assert bench.pool.requests[-1].no_result == NoResult(
        "geometry_gap", "5 slices in a row are missing", kind
    )
    assert (bench.job()["state"], bench.job()["reason_code"]) == ("delivering", "geometry_gap")
    deliver_all(bench)
    job = bench.job()
    assert (job["state"], job["reason_code"]) == ("failed", "geometry_gap")
    assert job["reason"] == "5 slices in a row are missing"
    assert names(bench, "a") == names(bench, "b") == [["no_result.dcm"]]
    assert bench.metric("jobs_finished_total", pipeline="chest", state="failed", code="geometry_gap") == 1


def test_without_the_option_a_failure_is_only_recorded(bench: Bench) -> None:
    bench.pool.script = [refused()]
    assert bench.steps.execute(JOB, 0, 1, 0) == STOP
    assert bench.job()["state"] == "failed"
    assert len(bench.pool.requests) == 1


def test_a_reason_that_cannot_be_encoded_fails_the_job_all_the_same(bench: Bench) -> None:
    bench.configure(results={"no_result": "both"})
    bench.pool.script = [refused(), PipelineFailed("no header", code="unreadable_instance", retryable=False)]
    assert bench.steps.execute(JOB, 0, 1, 0) == STOP
    assert (bench.job()["state"], bench.job()["reason_code"]) == ("failed", "geometry_gap")


def test_a_retry_after_a_failure_makes_the_results(bench: Bench) -> None:
    bench.configure(results={"no_result": "report"})
    bench.pool.script = [refused()]
    bench.steps.execute(JOB, 0, 1, 0)
    deliver_all(bench)
    bench.set_job(state="queued", generation=1)
    with write_transaction(bench.engine) as connection:
        connection.execute(deliveries.delete())
    bench.steps.execute(JOB, 1, 1, 0)
    summary = json.loads((bench.result_dir / "summary.json").read_text())
    assert "no_result" not in summary
    assert bench.job()["reason_code"] is None
    assert bench.steps.deliver(JOB, "a", 1, 1) == STOP
    assert names(bench, "a")[-1] == list(OBJECTS)
