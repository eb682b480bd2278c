"""How long to wait before trying again what failed.

In: how often it failed in a row.  Out: seconds. Computes only.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

#: a number between two
Uniform = Callable[[float, float], float]


@dataclass(frozen=True)
class Backoff:
    """Waits that double, of which a random part is waited ("full jitter"), so that what failed together
    doesn't come back together."""

    first_seconds: float
    max_seconds: float

    def longest(self, failures: int) -> float:
        """After so many failures in a row, 1 or more."""
        return min(self.first_seconds * 2.0 ** min(failures - 1, 40), self.max_seconds)

    def wait(self, failures: int, uniform: Uniform = random.uniform) -> float:
        return uniform(0.0, self.longest(failures))
