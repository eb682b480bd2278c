"""``Steps.execute``: what it leaves in the database and on disk, and what it asks of the workflow."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from node.errors import WorkerCrashed
from node.run.boundary import STOP
from node.run.operations import cancel_job
from node.run.steps import BLAMELESS, MAX_WAIT_FOR_TRITON_SECONDS, Steps
from node.run.worker_pool import NODE_STOPPING, PipelineFailed
from pipelines.request import PLAIN
from tests.unit.node.run.conftest import JOB, OBJECTS, Bench, write_result_set

FINISHED = "jobs_finished_total"


def unavailable() -> PipelineFailed:
    return PipelineFailed("Triton is down", code="triton_unavailable", retryable=True)


def test_success_keeps_the_result_set_and_asks_for_its_deliveries(bench: Bench) -> None:
    assert bench.steps.execute(JOB, 0, 1, 0) == {
        "destinations": ["a", "b"],
        "retry_in_seconds": None,
        "failures": 0,
    }
    job = bench.job()
    assert (job["state"], job["result_dir"], job["reason_code"]) == ("delivering", f"results/{JOB}", None)
    assert job["started_at"] is not None and job["finished_at"] is None
    assert sorted(path.name for path in bench.result_dir.iterdir()) == sorted([*OBJECTS, "summary.json"])
    assert [path.name for path in bench.result_dir.parent.iterdir()] == [JOB]
    assert {name: row["state"] for name, row in bench.deliveries().items()} == {
        "a": "pending",
        "b": "pending",
    }
    assert bench.metric("job_queue_wait_seconds_count", pipeline="chest") == 1
    assert bench.metric("stage_duration_seconds_sum", pipeline="chest", stage="lungs") == 1.5


def test_without_destinations_the_results_stay_and_the_job_is_done(bench: Bench) -> None:
    bench.set_job(destinations=[])
    for _ in range(2):  # a step that is done again after kill -9 changes nothing
        said = bench.steps.execute(JOB, 0, 1, 0)
        assert (said["destinations"], said["retry_in_seconds"]) == ([], None)
        job = bench.job()
        assert (job["state"], job["result_dir"], job["reason_code"]) == ("done", f"results/{JOB}", None)
    assert bench.deliveries() == {} and len(bench.pool.requests) == 1
    assert bench.metric(FINISHED, pipeline="chest", state="done", code="none") == 1


def test_without_destinations_a_job_that_died_before_its_end_is_done(bench: Bench) -> None:
    bench.set_job(destinations=[], state="delivering", result_dir=f"results/{JOB}", started_at=1.0)
    write_result_set(bench.result_dir)
    bench.steps.execute(JOB, 0, 1, 0)
    assert bench.job()["state"] == "done" and not bench.pool.requests


def test_the_pool_is_asked_for_what_the_job_and_the_configuration_say(bench: Bench) -> None:
    bench.steps.execute(JOB, 0, 1, 0)
    (request,) = bench.pool.requests
    assert request.pipeline == "chest"
    assert request.paths == (bench.data_dir / "spool/1.dcm", bench.data_dir / "spool/2.dcm")
    assert request.content_datetime == datetime.fromtimestamp(1002, UTC)
    count = bench.pool.options.pop("on_request")
    assert bench.pool.options == {
        "triton_url": "triton:8001",
        "request_timeout_seconds": 7,
        "access": PLAIN,
        "priority": 100,
        "step_timeout_seconds": 30,
    }
    for code in ("", "", "inference_failed"):
        count("lungs", 0.2, code)
    assert bench.metric("inference_duration_seconds_count", pipeline="chest", model="lungs") == 2
    failed = {"pipeline": "chest", "model": "lungs", "code": "inference_failed"}
    assert bench.metric("inference_failures_total", **failed) == 1


def test_a_retryable_failure_requeues_with_a_growing_delay_and_counts(bench: Bench) -> None:
    bench.pool.script = [WorkerCrashed("worker 7 ended with code -11") for _ in range(3)]
    first = bench.steps.execute(JOB, 0, 1, 0)
    assert first == {"destinations": [], "retry_in_seconds": 5.0, "failures": 1}
    job = bench.job()
    assert (job["state"], job["reason_code"]) == ("queued", "worker_crashed")
    assert job["reason"] == "worker 7 ended with code -11"
    second = bench.steps.execute(JOB, 0, 2, first["failures"])
    assert second == {"destinations": [], "retry_in_seconds": 10.0, "failures": 2}
    assert bench.steps.execute(JOB, 0, 3, second["failures"]) == STOP
    job = bench.job()
    assert (job["state"], job["reason_code"]) == ("failed", "worker_crashed")
    assert job["finished_at"] is not None
    assert bench.metric(FINISHED, pipeline="chest", state="failed", code="worker_crashed") == 1
    assert bench.metric("job_queue_wait_seconds_count", pipeline="chest") == 1


def test_the_delay_is_bounded(bench: Bench) -> None:
    config = bench.steps._services.config
    run = config.run.model_copy(update={"max_attempts": 50})
    patient = Steps(replace(bench.steps._services, config=config.model_copy(update={"run": run})))
    bench.pool.script = [WorkerCrashed("x"), unavailable()]
    assert patient.execute(JOB, 0, 20, 19)["retry_in_seconds"] == 30.0
    assert bench.steps.execute(JOB, 0, 500, 0)["retry_in_seconds"] == MAX_WAIT_FOR_TRITON_SECONDS


@pytest.mark.parametrize("code", BLAMELESS)
def test_what_the_job_is_not_to_blame_for_never_counts(bench: Bench, code: str) -> None:
    for attempt in range(1, 20):
        bench.pool.script = [PipelineFailed("not now", code=code, retryable=True)]
        outcome = bench.steps.execute(JOB, 0, attempt, 2)
        assert outcome["failures"] == 2
        assert outcome["retry_in_seconds"] is not None
    assert bench.job()["state"] == "queued"


def test_a_success_after_failures_clears_the_reason(bench: Bench) -> None:
    bench.pool.script = [unavailable()]
    bench.steps.execute(JOB, 0, 1, 0)
    assert bench.job()["reason"] == "Triton is down"
    bench.steps.execute(JOB, 0, 2, 0)
    job = bench.job()
    assert (job["state"], job["reason_code"], job["reason"]) == ("delivering", None, None)


def test_what_cannot_succeed_fails_at_once_with_its_reason(bench: Bench) -> None:
    bench.pool.script = [PipelineFailed("the gantry is tilted", code="geometry_tilted", retryable=False)]
    assert bench.steps.execute(JOB, 0, 1, 0) == STOP
    job = bench.job()
    assert (job["state"], job["reason_code"], job["reason"]) == (
        "failed",
        "geometry_tilted",
        "the gantry is tilted",
    )
    assert bench.deliveries() == {}
    assert list(bench.result_dir.parent.iterdir()) == []
    assert bench.metric(FINISHED, pipeline="chest", state="failed", code="geometry_tilted") == 1


@pytest.mark.parametrize("state", ["cancelled", "done", "failed", "retry"])
def test_a_job_that_is_not_active_is_left_alone(bench: Bench, state: str) -> None:
    bench.set_job(state=state)
    before = bench.job()
    assert bench.steps.execute(JOB, 0, 1, 0) == STOP
    assert bench.job() == before
    assert bench.pool.requests == []


def test_an_unknown_job_is_left_alone(bench: Bench) -> None:
    assert bench.steps.execute("nobody", 0, 1, 0) == STOP


def test_a_step_of_an_older_generation_changes_nothing(bench: Bench) -> None:
    bench.set_job(generation=1)
    before = bench.job()
    assert bench.steps.execute(JOB, 0, 1, 0) == STOP
    assert bench.job() == before
    assert bench.pool.requests == []


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("values", [{"state": "cancelled"}, {"state": "queued", "generation": 1}])
def test_ops_come_first_when_they_change_the_job_while_it_runs(
    bench: Bench, values: dict[str, object], fails: bool
) -> None:
    def change(_request: object) -> None:
        bench.set_job(**values)
        if fails:
            raise WorkerCrashed("x")

    bench.pool.script = [change]
    assert bench.steps.execute(JOB, 0, 1, 0) == STOP
    job = bench.job()
    assert job["state"] == values["state"]
    assert (job["result_dir"], job["reason_code"]) == (None, None)
    assert bench.deliveries() == {}


def test_a_result_set_that_is_there_is_used_as_it_is(bench: Bench) -> None:
    """As after a kill between the result set's rename and the end of the step."""
    write_result_set(bench.result_dir, case_type="consolidation")
    with capture_logs() as logs:
        outcome = bench.steps.execute(JOB, 0, 1, 0)
    assert outcome["destinations"] == ["a", "b"]
    assert bench.pool.requests == []
    assert [line["case_type"] for line in logs if line["event"] == "job_ran"] == ["consolidation"]


def test_execute_again_after_a_kill_keeps_what_was_delivered(bench: Bench) -> None:
    bench.steps.execute(JOB, 0, 1, 0)
    bench.steps.deliver(JOB, "a", 0, 1)
    assert bench.steps.execute(JOB, 0, 1, 0)["destinations"] == ["a", "b"]
    assert len(bench.pool.requests) == 1
    assert {name: row["state"] for name, row in bench.deliveries().items()} == {
        "a": "delivered",
        "b": "pending",
    }


def test_the_leftover_of_a_killed_run_is_replaced(bench: Bench) -> None:
    leftover = bench.result_dir.with_name(f"{JOB}.partial-0")
    leftover.mkdir(parents=True)
    (leftover / "half.dcm").write_bytes(b"DI")
    bench.steps.execute(JOB, 0, 1, 0)
    assert not leftover.exists()
    assert not (bench.result_dir / "half.dcm").exists()


def test_the_run_that_ends_first_is_kept(bench: Bench) -> None:
    """Another generation's run of the same job made the result set meanwhile."""
    bench.pool.script = [lambda _request: write_result_set(bench.result_dir, case_type="consolidation")]
    assert bench.steps.execute(JOB, 0, 1, 0)["destinations"] == ["a", "b"]
    assert json.loads((bench.result_dir / "summary.json").read_text())["case_type"] == "consolidation"
    assert [path.name for path in bench.result_dir.parent.iterdir()] == [JOB]


def test_what_was_not_its_fault_makes_a_job_wait_no_longer_for_what_is(bench: Bench) -> None:
    """Its tenth attempt, of which Triton's absence ended eight."""
    bench.pool.script = [WorkerCrashed("worker 1 ended with code -9")]
    again = bench.steps.execute(JOB, 0, 10, 1)
    assert (again["failures"], again["retry_in_seconds"]) == (2, 10.0)


def test_a_file_system_error_is_recorded_and_tried_again(bench: Bench) -> None:
    bench.pool.script = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "results/x")]
    assert bench.steps.execute(JOB, 0, 1, 0)["failures"] == 1
    job = bench.job()
    assert (job["state"], job["reason_code"]) == ("queued", "io_error")
    assert job["reason"] == "results/x: No space left on device"


def test_a_results_folder_that_cannot_be_made(bench: Bench) -> None:
    bench.result_dir.parent.write_text("a file where the folder should be")
    assert bench.steps.execute(JOB, 0, 1, 0)["retry_in_seconds"] == 5.0
    assert bench.job()["reason_code"] == "io_error"


def test_an_unexpected_error_is_recorded_without_its_message(bench: Bench) -> None:
    bench.pool.script = [ValueError("unknown VR in PatientName Doe^Jane")]
    with capture_logs() as logs:
        assert bench.steps.execute(JOB, 0, 1, 0) == STOP
    job = bench.job()
    assert (job["state"], job["reason_code"], job["reason"]) == (
        "failed",
        "internal",
        "unexpected ValueError",
    )
    (broke,) = [line for line in logs if line["event"] == "step_broke"]
    assert any("conftest.py" in frame for frame in broke["frames"])
    assert "Doe" not in str(logs)


def test_being_stopped_by_the_node_is_no_failure_of_the_job(bench: Bench) -> None:
    bench.pool.script = [WorkerCrashed("the node is stopping", code=NODE_STOPPING)]
    assert bench.steps.execute(JOB, 0, 1, 0)["failures"] == 0


def gated(bench: Bench, ready: Callable[[float], bool]) -> Steps:
    return Steps(replace(bench.steps._services, triton_ready=ready))


def test_a_job_waits_for_triton_and_then_runs(bench: Bench) -> None:
    looks = []

    def ready(_seconds: float) -> bool:
        looks.append((bench.job()["state"], bench.job()["reason_code"]))
        return len(looks) == 3

    assert gated(bench, ready).execute(JOB, 0, 1, 0)["destinations"] == ["a", "b"]
    assert looks == [("queued", None), ("queued", "triton_unavailable"), ("queued", "triton_unavailable")]
    assert bench.job()["reason_code"] is None


def test_a_job_that_is_cancelled_while_it_waits_for_triton_ends(bench: Bench) -> None:
    def ready(seconds: float) -> bool:
        if seconds:
            cancel_job(bench.engine, JOB, "ops")
        return False

    assert gated(bench, ready).execute(JOB, 0, 1, 0) == STOP
    assert bench.pool.requests == []
