"""``Steps.deliver``: retries, their bounds, and how the deliveries together end the job."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import Row, delete, update
from structlog.testing import capture_logs

from node.database import deliveries
from node.errors import DeliveryError
from node.run.boundary import STOP
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
    stored = {"destination": "a", "until": "stored"}
    assert ran.metric("delivery_turnaround_seconds_count", **stored) == 1
    assert ran.metric("delivery_turnaround_seconds_sum", **stored) >= 0


def test_a_retryable_failure_backs_off_within_bounds_and_gives_up(ran: Bench) -> None:
    ran.destinations["a"].script = [DeliveryError("no connection") for _ in range(4)]
    delays = []
    for attempt in (1, 2, 3):
        delays.append(ran.steps.deliver(JOB, "a", 0, attempt)["retry_in_seconds"])
        row = ran.deliveries()["a"]
        assert (row["state"], row["attempts"], row["last_error"]) == ("pending", attempt, "no connection")
    for delay, longest in zip(delays, (2.0, 4.0, 6.0), strict=True):  # full jitter
        assert delay is not None and 0 <= delay <= longest
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
    ran.gates.pop("a")
    with capture_logs() as logs:
        assert ran.steps.deliver(JOB, "a", 0, 1) == STOP
    (line,) = [line for line in logs if line["event"] == "delivery_failed"]
    assert (line["code"], line["retry_in_seconds"]) == ("destination_removed", None)
    assert "no longer configured" in ran.deliveries()["a"]["last_error"]
    ran.steps.deliver(JOB, "b", 0, 1)
    assert ran.job()["reason"] == "destination a is no longer configured"


def test_a_result_set_that_was_removed_is_tried_again(ran: Bench) -> None:
    (ran.result_dir / "summary.json").unlink()
    assert ran.steps.deliver(JOB, "a", 0, 1)["retry_in_seconds"] is not None
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


def test_a_job_ends_once_when_both_deliveries_see_it_settled(
    ran: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interleaving in which both record their delivery before either looks."""
    delivering = ran.steps._delivering
    finish = delivering._finish_if_settled
    waiting: list[Row[Any]] = []
    monkeypatch.setattr(delivering, "_finish_if_settled", waiting.append)
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


def test_a_turn_that_comes_again_after_its_end_sends_nothing(ran: Bench) -> None:
    """Killed after the row was written and before the workflow knew."""
    for name in "aab":
        ran.steps.deliver(JOB, name, 0, 1)
    assert len(ran.destinations["a"].delivered) == 1
    assert ran.job()["state"] == "done"


def test_warnings_are_kept(ran: Bench) -> None:
    ran.destinations["a"].script = [lambda: "elements discarded"]
    ran.steps.deliver(JOB, "a", 0, 1)
    assert ran.deliveries()["a"]["warnings"] == ["elements discarded"] * len(OBJECTS)
    assert ran.deliveries()["b"]["warnings"] is None
    labels = {"destination": "a", "outcome": "warning"}
    assert ran.metric("delivered_instances_total", **labels) == len(OBJECTS)


def test_a_destination_that_is_known_to_be_down_costs_no_attempts(ran: Bench) -> None:
    b = ran.destinations["b"]
    b.script = [DeliveryError("no connection") for _ in range(9)]
    for turn in range(1, 4):
        ran.steps.deliver(JOB, "b", 0, turn)
    assert ran.gates["b"].condition.state == "open"
    outcome = ran.steps.deliver(JOB, "b", 0, 4)
    assert outcome["retry_in_seconds"] is not None
    row = ran.deliveries()["b"]
    assert (row["state"], row["attempts"]) == ("pending", 3)
    assert row["last_error"] == "waits for the destination to answer again: no connection"
    assert len(b.script) == 6
    assert ran.metric("deliveries_total", destination="b", outcome="postponed") == 1
    assert ran.gates["a"].condition.state == "closed"


@pytest.mark.parametrize("down", [False, True])
def test_a_delivery_ends_after_its_time_however_few_its_attempts(ran: Bench, down: bool) -> None:
    ran.destinations["b"].script = [DeliveryError("no connection") for _ in range(9)]
    for turn in range(1, 4 if down else 2):
        ran.steps.deliver(JOB, "b", 0, turn)
    with ran.engine.begin() as connection:
        connection.execute(update(deliveries).values(begun_at=1.0))
    assert ran.steps.deliver(JOB, "b", 0, 5) == STOP
    row = ran.deliveries()["b"]
    assert (row["state"], row["attempts"]) == ("failed", 3 if down else 2)


def test_a_destination_may_say_when_to_come_back(ran: Bench) -> None:
    ran.destinations["a"].script = [DeliveryError("busy", retry_after_seconds=77.0)]
    assert ran.steps.deliver(JOB, "a", 0, 1)["retry_in_seconds"] == 77.0
