"""A circuit breaker: after failures in a row, a destination is left alone until it answers a check.

In: how attempts end.  Out: whether the next one may begin, has to check first, or has to wait. Computes only;
it lives as long as the process, and begins closed: then a dead destination costs a few attempts again.

    closed ── failures in a row ──► open ── its time comes ──► half-open ── check, one attempt ──► closed
                                     ▲                             │ failed
                                     └─────────────────────────────┘ (twice the time)
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from node.backoff import Backoff, Uniform

State = Literal["closed", "half_open", "open"]
STATES: tuple[State, ...] = ("closed", "half_open", "open")


@dataclass(frozen=True)
class Permit:
    """check_first: nobody knows whether the destination is back; this attempt finds out."""

    check_first: bool


@dataclass(frozen=True)
class Wait:
    """Not now, but in ``seconds``."""

    seconds: float


class Breaker:
    """One destination's; safe to use from several threads."""

    def __init__(
        self,
        failures: int,
        backoff: Backoff,
        *,
        clock: Callable[[], float] = time.monotonic,
        uniform: Uniform = random.uniform,
        on_change: Callable[[State], None] = lambda _state: None,
    ) -> None:
        """failures: so many in a row open it."""
        self._limit = failures
        self._backoff = backoff
        self._clock = clock
        self._uniform = uniform
        self._on_change = on_change
        self._lock = threading.Lock()
        self._state: State = "closed"
        self._failures = 0
        self._times_open = 0
        self._check_at = 0.0

    @property
    def state(self) -> State:
        return self._state

    def ask(self) -> Permit | Wait:
        """Before an attempt. A permit has to be followed by ``answered``, ``failed`` or ``withdrawn``."""
        with self._lock:
            now = self._clock()
            if self._state == "closed":
                return Permit(check_first=False)
            if self._state == "half_open":
                return Wait(self._backoff.first_seconds)
            if now < self._check_at:
                return Wait(self._check_at - now)
            self._change("half_open")
            return Permit(check_first=True)

    def answered(self) -> None:
        """The destination does what it is for, even if it took an object for unusable."""
        with self._lock:
            self._failures = self._times_open = 0
            self._change("closed")

    def failed(self) -> None:
        """It couldn't be reached, or refused for now."""
        with self._lock:
            self._failures += 1
            if self._state == "half_open" or (self._state == "closed" and self._failures >= self._limit):
                self._times_open += 1
                longest = self._backoff.longest(self._times_open)
                self._check_at = self._clock() + self._uniform(longest / 2, longest)
                self._change("open")

    def withdrawn(self) -> None:
        """The attempt ended for a reason that says nothing of the destination."""
        with self._lock:
            if self._state == "half_open":
                self._check_at = self._clock()
                self._change("open")

    def _change(self, state: State) -> None:
        if state != self._state:
            self._state = state
            self._on_change(state)
