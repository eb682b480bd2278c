"""Before a destination: its circuit breaker and its rate limit.

In: result sets.  Out: them delivered, a ``Postponed`` because the destination is known to be down, or its
DeliveryError. Each destination has a gate of its own: what one does is nothing to the others.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from node.backoff import Backoff
from node.config import DeliveryOptions
from node.deliver.base import Destination, Stored
from node.deliver.breaker import Breaker, State, Wait
from node.deliver.commitment import CommitmentScu
from node.deliver.pauses import Pause
from node.errors import DeliveryError
from node.metrics import Metrics

log = structlog.get_logger(__name__)

#: what waits for a paused destination looks again after so long at most; a random part of it, from a half on
PAUSED_SECONDS = 30.0


#: codes of deliveries that are put off
DOWN, PAUSED = "destination_down", "paused"


class Postponed(Exception):
    """Nothing was sent: the destination is down, or ops paused it. The message is for people."""

    def __init__(self, message: str, retry_in_seconds: float, *, code: str = DOWN) -> None:
        super().__init__(message)
        self.code = code
        self.retry_in_seconds = retry_in_seconds


@dataclass(frozen=True)
class Condition:
    """How a destination does. since: when it came to this state, seconds since the epoch.  paused: by ops."""

    name: str
    state: State
    since: float
    last_error: str
    paused: Pause | None = None


class RateLimit:
    """Instances and bytes a second, over all threads: who comes reserves the time that it takes."""

    def __init__(
        self,
        options: DeliveryOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._options = options
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at = 0.0

    def wait(self, size: int) -> None:
        """Return when an instance of so many bytes may be sent."""
        instances, data = self._options.max_instances_per_second, self._options.max_bytes_per_second
        seconds = max(1 / instances if instances else 0.0, size / data if data else 0.0)
        if not seconds:
            return
        with self._lock:
            now = self._clock()
            begin = max(now, self._free_at)
            self._free_at = begin + seconds
        if begin > now:
            self._sleep(begin - now)


class Gate:
    """One destination's; safe to use from several threads."""

    def __init__(
        self,
        destination: Destination,
        options: DeliveryOptions,
        metrics: Metrics,
        commitment: CommitmentScu | None = None,
        paused: Callable[[], Pause | None] = lambda: None,
    ) -> None:
        """commitment: asks it to confirm what it keeps, where that is configured.  paused: by ops, or not."""
        self.destination = destination
        self.commitment = commitment
        self.options = options
        self._metrics = metrics
        self._paused = paused
        self._rate = RateLimit(options)
        self._backoff = Backoff(options.retry_seconds, options.max_retry_seconds)
        self._since = time.time()
        self._last_error = ""
        self._breaker = Breaker(options.breaker_failures, self._backoff, on_change=self._changed)
        metrics.circuit.labels(destination.name).state("closed")

    @property
    def condition(self) -> Condition:
        return Condition(
            self.destination.name, self._breaker.state, self._since, self._last_error, self._paused()
        )

    def deliver(self, files: Sequence[Path]) -> tuple[Stored, ...]:
        """Raises Postponed or DeliveryError."""
        with self.attempt():
            return self.destination.deliver(files, self._rate.wait)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Around anything that the destination has to answer. Raises Postponed; judges DeliveryErrors."""
        pause = self._paused()
        if pause is not None:
            seconds = random.uniform(PAUSED_SECONDS / 2, PAUSED_SECONDS)  # noqa: S311
            why = f"waits for the destination to be resumed: {pause.paused_by} paused it"
            raise Postponed(why, seconds, code=PAUSED)
        permit = self._breaker.ask()
        if isinstance(permit, Wait):
            # a random moment more: those who wait for the same don't come at once
            seconds = permit.seconds + random.uniform(0.0, self._backoff.first_seconds)  # noqa: S311
            raise Postponed(f"waits for the destination to answer again: {self._last_error}", seconds)
        answered = failed = False
        try:
            if permit.check_first:
                self._check()
            yield
            answered = True
        except DeliveryError as error:
            answered, failed = not error.retryable, error.retryable
            if failed:
                self._last_error = str(error)
            raise
        except Postponed:
            failed = True
            raise
        finally:
            if answered:
                self._breaker.answered()
            elif failed:
                self._breaker.failed()
            else:
                self._breaker.withdrawn()

    def retry_wait(self, attempts: int, error: object) -> float:
        """How long to wait after so many attempts, at least as long as the destination asked for."""
        asked = error.retry_after_seconds if isinstance(error, DeliveryError) else None
        return max(self._backoff.wait(attempts), asked or 0.0)

    def _check(self) -> None:
        try:
            self.destination.check()
        except DeliveryError as error:
            self._last_error = str(error)
            raise Postponed(
                f"waits for the destination to answer again: {error}", self._backoff.first_seconds
            ) from error

    def _changed(self, state: State) -> None:
        name = self.destination.name
        self._since = time.time()
        self._metrics.circuit.labels(name).state(state)
        if state == "open":
            self._metrics.circuit_opened.labels(name).inc()
            log.warning("destination_circuit_open", destination=name, reason=self._last_error)
        elif state == "closed":
            self._last_error = ""
            log.info("destination_circuit_closed", destination=name)
