"""What an evaluation says.

In: estimates of metrics.  Out: the JSON of ``pacsnode models evaluate``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

BOOTSTRAP_SAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A metric with the 2.5th and 97.5th percentile of its bootstrap distribution (cases resampled)."""

    value: float
    low: float
    high: float

    @staticmethod
    def of(value: float, samples: NDArray[np.float64]) -> Estimate:
        """From the metric and its bootstrap sample; NaN in it are left out."""
        finite = samples[np.isfinite(samples)]
        low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (np.nan, np.nan)
        return Estimate(float(value), float(low), float(high))


#: class -> metric -> estimate
Metrics = Mapping[str, Mapping[str, Estimate]]


class Cases(Protocol):
    """What a model answered for some cases, with the truth; what metrics are made of."""

    def __len__(self) -> int: ...

    def joined(self, others: Sequence[Self]) -> Self:
        """With those of other runs, as cross-validation has them."""

    def metrics(self) -> Metrics: ...


@dataclass(frozen=True)
class Evaluation:
    """n: number of cases (images, or scans for detectors).  notes: what else a reader must know."""

    model: str
    weights_sha256: str
    n: int
    metrics: Metrics
    notes: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> str:
        """{"model", "weights_sha256", "n", "metrics": {class: {metric: {"value", "low", "high"}}}, …notes}.

        Six decimals; undefined values are null.
        """

        def number(value: float) -> float | None:
            return round(value, 6) if math.isfinite(value) else None

        metrics = {
            name: {
                key: {"value": number(e.value), "low": number(e.low), "high": number(e.high)}
                for key, e in rows.items()
            }
            for name, rows in self.metrics.items()
        }
        head = {"model": self.model, "weights_sha256": self.weights_sha256, "n": self.n, "metrics": metrics}
        return json.dumps(head | dict(self.notes), indent=1)


def draws(n: int, *, seed: int = 0, samples: int = BOOTSTRAP_SAMPLES) -> NDArray[np.int64]:
    """Bootstrap: how often each of n cases is in each resample, (samples, n); a function of the seed."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, np.full(n, 1.0 / n), samples)


def bootstrapped(
    metrics: Callable[[NDArray[np.float64]], Mapping[str, NDArray[np.float64]]], n: int, *, seed: int = 0
) -> dict[str, Estimate]:
    """Metrics of n cases with their intervals.

    metrics: case weights (samples, n) -> metric -> (samples,).
    """
    values, spread = metrics(np.ones((1, n))), metrics(draws(n, seed=seed).astype(np.float64))
    return {name: Estimate.of(values[name][0], spread[name]) for name in values}
