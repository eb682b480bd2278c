"""Parts of labelled data for cross-validation.

In: the group of each case.  Out: the part of each case; cases of one group are never in two parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: (k, n): the k-th of n parts, counted from 0
Fold = tuple[int, int]
VALIDATION_PARTS = 10
SEED = 5


def part_numbers(groups: Sequence[str], parts: int) -> NDArray[np.int64]:
    """Which of 0 to ``parts`` - 1 each case belongs to: equally many cases each as far as groups allow.

    A function of the set of groups only, not of their order. Raises ValueError for fewer groups than parts.
    """
    names, inverse, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    if parts < 2 or len(names) < parts:
        raise ValueError(f"{len(names)} groups can't be split into {parts} parts")
    shuffled = np.random.default_rng(SEED).permutation(len(names))
    filled = np.zeros(parts, dtype=np.int64)
    part_of = np.empty(len(names), dtype=np.int64)
    # the largest first, each to the part that has least; equals in the shuffled order
    for number in sorted(shuffled, key=lambda i: -int(sizes[i])):
        part_of[number] = np.argmin(filled)
        filled[part_of[number]] += sizes[number]
    return np.asarray(part_of[inverse])


def validation_fold(groups: Sequence[str]) -> Fold:
    """A tenth to validate on, where nothing else says on what; more of fewer than ten groups."""
    return 0, min(VALIDATION_PARTS, len(set(groups)))


def inside(groups: Sequence[str], fold: Fold) -> NDArray[np.bool_]:
    """Which cases belong to a part. Raises ValueError for a part that doesn't exist."""
    number, parts = fold
    if not 0 <= number < parts:
        raise ValueError(f"part {number} of {parts} doesn't exist; they count from 0")
    return np.asarray(part_numbers(groups, parts) == number)
