"""Noisy-OR: the confidences of a case's regions in, one probability per infection type out.

Xu et al. 2020, "Deep Learning System to Screen COVID-19 Pneumonia": P = 1 - prod(1 - p_i). Two regions at
0.5 give 0.75.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from pipelines.volume import INFECTION_TYPES, NO_FINDING, Region


def noisy_or(probabilities: Iterable[float]) -> float:
    """1 - prod(1 - p_i); 0 for no inputs. Raises ValueError for a p_i outside [0, 1]."""
    values = list(probabilities)
    for p in values:
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"a probability must lie in [0, 1], got {p}")
    return 1.0 - math.prod(1.0 - p for p in values)


def noisy_or_by_type(regions: Sequence[Region]) -> dict[str, float]:
    """Infection type -> Noisy-OR over the regions of that type, for every known type."""
    return {t: noisy_or(r.probability for r in regions if r.infection_type == t) for t in INFECTION_TYPES}


def case_type(by_type: Mapping[str, float]) -> str:
    """The type with the largest probability (the first named wins a tie), or NO_FINDING if all are 0."""
    best = max(by_type, key=lambda t: by_type[t])
    return best if by_type[best] > 0 else NO_FINDING
