"""``Steps.deliver``: retries, their bounds, and how the deliveries together end the job."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import delete
from structlog.testing import capture_logs

from node.database import deliveries
from node.errors import DeliveryError
from node.run.steps import STOP
from tests.unit.node.run.conftest import JOB, OBJECTS, Bench

FINISHED = "jobs_finished_total"


@pytest.fixture
def ran(bench: Bench) -> Bench:
    """The job has its result set, and nothing is delivered yet."""
    bench.steps.execute(JOB, 0, 1, 0)
    return bench


def refused() -> DeliveryError:
    return DeliveryError("refused with status 0xc000", code="c_store_failed", retryable=False)


def test_all_delivered_ends_the_job(ran: Bench) -> None:
    assert ran.steps.deliver(JOB, "a", 0, 1) == STOP
    assert ran.job()["state"] == "delivering"
    assert ran.steps.deliver(JOB, "b", 0, 1) == STOP
    job = ran.job()
    assert (job["state"], job["reason_code"], job["reason"]) == ("done", None, None)
    assert job["finished_at"] is not None
    for destination in ran.destinations.values():
        assert destination.delivered == [[ran.result_dir / name for name in OBJECTS]]
    row = ran.deliveries()["a"]
    assert (row["state"], row["attempts"], row["last_error"]) == ("delivered", 1, None)
    assert ran.metric(FINISHED, pipeline="chest", state="done", code="none") == 1
    assert ran.metric("turnaround_seconds_count", pipeline="chest") == 1
    assert ran.metric("deliveries_total", destination="a", outcome="delivered") == 1
    assert ran.metric("delivery_duration_seconds_count", destination="b") == 1


def test_a_retryable_failure_backs_off_within_bounds_and_gives_up(ran: Bench) -> None:
    ran.destinations["a"].script = [DeliveryError("no connection") for _ in range(4)]
    delays = []
    for attempt in (1, 2, 3):
        delays.append(ran.steps.deliver(JOB, "a", 0, attempt)["retry_in_seconds"])
        row = ran.deliveries()["a"]
        assert (row["state"], row["attempts"], row["last_error"]) == ("pending", attempt, "no connection")
    assert delays == [2.0, 4.0, 6.0]
    assert ran.job()["state"] == "delivering"
    assert ran.steps.deliver(JOB, "a", 0, 4) == STOP
    assert ran.deliveries()["a"]["state"] == "failed"
    assert ran.metric("deliveries_total", destination="a", outcome="retried") == 3
    assert ran.metric("deliveries_total", destination="a", outcome="failed") == 1


def test_a_late_success_forgets_the_errors_before(ran: Bench) -> None:
    ran.destinations["a"].script = [DeliveryError("no connection")]
    ran.steps.deliver(JOB, "a", 0, 1)
    ran.steps.deliver(JOB, "a", 0, 2)
    row = ran.deliveries()["a"]
    assert (row["state"], row["attempts"], row["last_error"]) == ("delivered", 2, None)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_one_destination_failing_fails_the_job_once_the_other_is_settled(ran: Bench, order: str) -> None:
    ran.destinations["a"].script = [refused()]
    assert ran.steps.deliver(JOB, order[0], 0, 1) == STOP
    assert ran.job()["state"] == "delivering"
    assert ran.steps.deliver(JOB, order[1], 0, 1) == STOP
    job = ran.job()
    assert (job["state"], job["reason_code"]) == ("failed", "delivery_failed")
    assert job["reason"] == "refused with status 0xc000"
    assert {name: row["state"] for name, row in ran.deliveries().items()} == {
        "a": "failed",
        "b": "delivered",
    }
    assert ran.metric(FINISHED, pipeline="chest", state="failed", code="delivery_failed") == 1
    assert ran.metric("turnaround_seconds_count", pipeline="chest") == 0


def test_a_destination_that_is_no_longer_configured(ran: Bench) -> None:
    ran.destinations.pop("a")
    with capture_logs() as logs:
        assert ran.steps.deliver(JOB, "a", 0, 1) == STOP
    (line,) = [line for line in logs if line["event"] == "delivery_failed"]
    assert (line["code"], line["retry_in_seconds"]) == ("destination_removed", None)
    assert "no longer configured" in ran.deliveries()["a"]["last_error"]
    ran.steps.deliver(JOB, "b", 0, 1)
    assert ran.job()["reason"] == "destination a is no longer configured"


def test_a_result_set_that_was_removed_is_tried_again(ran: Bench) -> None:
    (ran.result_dir / "summary.json").unlink()
    assert ran.steps.deliver(JOB, "a", 0, 1)["retry_in_seconds"] == 2.0
    assert "summary.json: No such file or directory" in ran.deliveries()["a"]["last_error"]


def test_an_unexpected_error_ends_the_delivery_without_its_message(ran: Bench) -> None:
    ran.destinations["a"].script = [ValueError("PatientName Doe^Jane can't be encoded")]
    with capture_logs() as logs:
        assert ran.steps.deliver(JOB, "a", 0, 1) == STOP
    assert ran.deliveries()["a"]["last_error"] == "unexpected ValueError"
    assert "Doe" not in str(logs)


def test_two_deliveries_that_end_together_end_the_job_once(ran: Bench) -> None:
    barrier = threading.Barrier(2)
    for destination in ran.destinations.values():
        destination.script = [lambda: barrier.wait(10)]
    threads = [threading.Thread(target=ran.steps.deliver, args=(JOB, name, 0, 1)) for name in "ab"]
    with capture_logs() as logs:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert ran.job()["state"] == "done"
    assert len([line for line in logs if line["event"] == "job_done"]) == 1
    assert ran.metric(FINISHED, pipeline="chest", state="done", code="none") == 1


def test_a_job_ends_once_when_both_deliveries_see_it_settled(ran: Bench) -> None:
    """The interleaving in which both record their delivery before either looks."""
    finish = ran.steps._finish_if_settled
    waiting = []
    ran.steps._finish_if_settled = waiting.append  # type: ignore[method-assign]
    for name in "ab":
        ran.steps.deliver(JOB, name, 0, 1)
    for job in waiting:
        finish(job)
    assert len(waiting) == 2
    assert ran.job()["state"] == "done"
    assert ran.metric(FINISHED, pipeline="chest", state="done", code="none") == 1


@pytest.mark.parametrize("values", [{"state": "cancelled"}, {"state": "done"}, {"generation": 1}])
def test_a_job_that_was_cancelled_ended_or_asked_for_again_is_not_delivered(
    ran: Bench, values: dict[str, object]
) -> None:
    ran.set_job(**values)
    before = (ran.job(), ran.deliveries())
    assert ran.steps.deliver(JOB, "a", 0, 1) == STOP
    assert (ran.job(), ran.deliveries()) == before
    assert ran.destinations["a"].delivered == []


@pytest.mark.parametrize("fails", [False, True])
def test_a_delivery_of_an_older_generation_leaves_the_newer_ones_alone(ran: Bench, fails: bool) -> None:
    """It began, ops asked for the job again, and then it ended."""

    def asked_again() -> None:
        with ran.engine.begin() as connection:
            connection.execute(delete(deliveries))
        ran.set_job(state="queued", generation=1)
        ran.steps.execute(JOB, 1, 1, 0)
        if fails:
            raise refused()

    ran.destinations["a"].script = [asked_again]
    ran.steps.deliver(JOB, "a", 0, 1)
    row = ran.deliveries()["a"]
    assert (row["state"], row["attempts"], row["last_error"]) == ("pending", 0, None)
    for name in "ab":
        ran.steps.deliver(JOB, name, 1, 1)
    assert ran.job()["state"] == "done"


def test_cancelled_while_it_is_sent(ran: Bench) -> None:
    ran.destinations["a"].script = [lambda: ran.set_job(state="cancelled")]
    assert ran.steps.deliver(JOB, "a", 0, 1) == STOP
    assert ran.job()["state"] == "cancelled"
    assert ran.deliveries()["a"]["state"] == "delivered"
