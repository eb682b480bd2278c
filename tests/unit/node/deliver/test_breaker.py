"""The circuit breaker's states, and that waits grow and are jittered."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from node.backoff import Backoff
from node.deliver.breaker import Breaker, Permit, Wait

GO, CHECK = Permit(check_first=False), Permit(check_first=True)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def longest(_low: float, high: float) -> float:
    return high


def breaker(clock: Clock, *, failures: int = 3) -> tuple[Breaker, list[str]]:
    changes: list[str] = []
    made = Breaker(failures, Backoff(10.0, 60.0), clock=clock, uniform=longest, on_change=changes.append)
    return made, changes


def test_it_opens_after_failures_in_a_row() -> None:
    made, changes = breaker(Clock())
    for _ in range(2):
        made.failed()
    made.answered()
    for _ in range(2):
        assert made.ask() == GO
        made.failed()
    assert made.ask() == GO
    made.failed()
    assert made.ask() == Wait(10.0)
    assert changes == ["open"]


def test_one_goes_ahead_when_its_time_comes() -> None:
    clock = Clock()
    made, changes = breaker(clock, failures=1)
    made.failed()
    clock.now += 10.0
    assert made.ask() == CHECK
    assert made.ask() == Wait(10.0)  # the others wait for it
    made.answered()
    assert [made.ask(), made.ask()] == [GO, GO]
    assert changes == ["open", "half_open", "closed"]


def test_it_waits_longer_each_time() -> None:
    clock = Clock()
    made, _ = breaker(clock, failures=1)
    waits = []
    made.failed()
    for _ in range(5):
        wait = made.ask()
        assert isinstance(wait, Wait)
        waits.append(wait.seconds)
        clock.now += wait.seconds
        assert made.ask() == CHECK
        made.failed()
    assert waits == [10.0, 20.0, 40.0, 60.0, 60.0]
    clock.now += 60.0
    made.ask()
    made.answered()
    made.failed()
    assert made.ask() == Wait(10.0)


def test_late_failures_do_not_make_it_longer() -> None:
    """Of attempts that were under way when it opened."""
    clock = Clock()
    made, _ = breaker(clock, failures=1)
    for _ in range(4):
        made.failed()
    assert made.ask() == Wait(10.0)


def test_an_attempt_that_says_nothing_leaves_it_to_the_next() -> None:
    clock = Clock()
    made, _ = breaker(clock, failures=1)
    made.failed()
    clock.now += 10.0
    assert made.ask() == CHECK
    made.withdrawn()
    assert made.ask() == CHECK


@given(st.floats(0.1, 100), st.floats(1, 10_000), st.integers(1, 10_000), st.integers())
def test_waits_are_within_bounds(first: float, most: float, failures: int, seed: int) -> None:
    backoff = Backoff(first, max(first, most))
    assert 0 <= backoff.wait(failures, random.Random(seed).uniform) <= backoff.max_seconds  # noqa: S311
