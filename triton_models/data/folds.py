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


def part_numbers(groups: Sequence[str], parts: int, labels: Sequence[str] = ()) -> NDArray[np.int64]:
    """Which of 0 to ``parts`` - 1 each case belongs to: equally many cases each as far as groups allow, and
    where cases have labels, equally many of each label.

    A function of the set of cases only, not of their order. Raises ValueError for fewer groups than parts.
    """
    names, inverse = np.unique(np.asarray(groups), return_inverse=True)
    kinds, kind_of = np.unique(np.asarray(labels or [""] * len(groups)), return_inverse=True)
    sizes = np.zeros((len(names), len(kinds)), dtype=np.int64)
    np.add.at(sizes, (inverse, kind_of), 1)
    if parts < 2 or len(names) < parts:
        raise ValueError(f"{len(names)} groups can't be split into {parts} parts")
    shuffled = np.random.default_rng(SEED).permutation(len(names))
    filled = np.zeros((parts, len(kinds)), dtype=np.int64)
    part_of = np.empty(len(names), dtype=np.int64)
    # the largest first, each to the part that has least of its labels, of such to the smallest
    for number in sorted(shuffled, key=lambda i: -int(sizes[i].sum())):
        alike = filled @ sizes[number]
        part_of[number] = np.argmin(alike * (len(groups) + 1) + filled.sum(axis=1))
        filled[part_of[number]] += sizes[number]
    return np.asarray(part_of[inverse])


def validation_fold(groups: Sequence[str]) -> Fold:
    """A tenth to validate on, where nothing else says on what; more of fewer than ten groups."""
    return 0, min(VALIDATION_PARTS, len(set(groups)))


def inside(groups: Sequence[str], fold: Fold, labels: Sequence[str] = ()) -> NDArray[np.bool_]:
    """Which cases belong to a part. Raises ValueError for a part that doesn't exist."""
    number, parts = fold
    if not 0 <= number < parts:
        raise ValueError(f"part {number} of {parts} doesn't exist; they count from 0")
    return np.asarray(part_numbers(groups, parts, labels) == number)
