"""A destination's gate: what counts against it, the check before it is used again, and its rate."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.config import FolderDestination
from node.deliver.gate import Gate, Postponed, RateLimit
from node.errors import DeliveryError
from node.metrics import Metrics
from tests.unit.node.run.conftest import ScriptedDestination


def options(**values: object) -> FolderDestination:
    return FolderDestination.model_validate(
        {"type": "folder", "path": "x", "breaker_failures": 2, "retry_seconds": 0.01, **values}
    )


def gate(**values: object) -> tuple[Gate, ScriptedDestination, Metrics]:
    destination, metrics = ScriptedDestination("it"), Metrics("1")
    return Gate(destination, options(**values), metrics), destination, metrics


def fail(it: Gate, error: Exception, times: int = 1) -> None:
    destination = it.destination
    assert isinstance(destination, ScriptedDestination)
    for _ in range(times):
        destination.script = [error]
        with pytest.raises(type(error)):
            it.deliver([])


def circuit(metrics: Metrics) -> dict[str, float]:
    name = "pacsnode_destination_circuit"
    states = ("closed", "half_open", "open")
    found = {s: metrics.registry.get_sample_value(name, {"destination": "it", name: s}) for s in states}
    return {state: value for state, value in found.items() if value}


def test_only_what_can_pass_counts(files: list[Path]) -> None:
    it, _, metrics = gate()
    for error in (DeliveryError("refused", retryable=False), FileNotFoundError(2, "ours")):
        fail(it, error, 3)
    assert (it.condition.state, circuit(metrics)) == ("closed", {"closed": 1.0})
    fail(it, DeliveryError("no connection"), 2)
    assert (it.condition.state, circuit(metrics)) == ("open", {"open": 1.0})
    assert it.condition.last_error == "no connection"
    opened = metrics.registry.get_sample_value(
        "pacsnode_destination_circuit_opened_total", {"destination": "it"}
    )
    assert opened == 1


def test_open_it_sends_nothing_until_the_check_is_answered(files: list[Path]) -> None:
    it, destination, _ = gate()
    fail(it, DeliveryError("no connection"), 2)
    destination.down = DeliveryError("still no connection")
    with pytest.raises(Postponed) as raised:
        while True:
            try:
                it.deliver(files)
            except Postponed as postponed:
                if "still" in str(postponed):
                    raise
    assert raised.value.retry_in_seconds >= 0
    assert destination.delivered == []
    destination.down = None
    while not destination.delivered:
        try:
            it.deliver(files)
        except Postponed:
            continue
    assert it.condition.state == "closed" and it.condition.last_error == ""


def test_a_check_that_succeeds_and_an_attempt_that_does_not() -> None:
    it, _, _ = gate(retry_seconds=0.001)
    fail(it, DeliveryError("out of resources"), 2)
    destination = it.destination
    assert isinstance(destination, ScriptedDestination)
    destination.script = [DeliveryError("still out of resources")]
    with pytest.raises(DeliveryError, match="still"):
        while True:
            try:
                it.deliver([])
            except Postponed:
                continue
    assert it.condition.state == "open"


def test_the_wait_is_what_the_destination_asks_for_at_least() -> None:
    it, _, _ = gate(retry_seconds=1, max_retry_seconds=4)
    assert all(0 <= it.retry_wait(9, OSError()) <= 4 for _ in range(20))
    assert it.retry_wait(1, DeliveryError("busy", retry_after_seconds=30.0)) == 30.0


@pytest.mark.parametrize(
    ("limits", "sizes", "seconds"),
    [
        ({}, [10, 10, 10], 0.0),
        ({"max_instances_per_second": 4}, [10, 10, 10], 0.5),
        ({"max_bytes_per_second": 100}, [50, 100, 10], 1.5),
        ({"max_instances_per_second": 1, "max_bytes_per_second": 100}, [10, 300, 10], 4.0),
    ],
)
def test_rates(limits: dict[str, float], sizes: list[int], seconds: float) -> None:
    now = 0.0

    def sleep(duration: float) -> None:
        nonlocal now
        now += duration

    rate = RateLimit(options(**limits), clock=lambda: now, sleep=sleep)
    for size in sizes:
        rate.wait(size)
    assert now == pytest.approx(seconds)
