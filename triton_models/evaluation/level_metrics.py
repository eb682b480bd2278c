"""What a segmentation's probabilities tell beyond the one threshold of its labels.

In: probabilities of each pixel as levels (0 to 255) and true masks, image by image.  Out: the area under the
ROC curve over all pixels, and Dice and sensitivity at the lowest level that has a specificity of SPECIFICITY:
two models' Dice can be compared where they call equally much falsely.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triton_models.evaluation.class_metrics import weighted_auc
from triton_models.evaluation.result import Estimate, bootstrapped

LEVELS = 256
SPECIFICITY = 0.97
#: levels and truth of a flattened ``LevelCounts.table``
_POOLED = np.tile(np.arange(LEVELS, dtype=np.float64), 2), np.repeat([False, True], LEVELS)


@dataclass(frozen=True)
class LevelCounts:
    """How many pixels of each of n images have each level: int64 (n, 2, LEVELS), outside of the truth and in
    it."""

    table: NDArray[np.int64]

    @staticmethod
    def of(pairs: Iterable[tuple[NDArray[np.uint8], NDArray[np.bool_]]]) -> LevelCounts:
        """From (levels, true mask) pairs of equal shapes."""
        rows = [
            [np.bincount(levels[where], minlength=LEVELS) for where in (~truth, truth)]
            for levels, truth in pairs
        ]
        return LevelCounts(np.asarray(rows, dtype=np.int64).reshape(-1, 2, LEVELS))

    def __len__(self) -> int:
        return len(self.table)

    @staticmethod
    def concatenate(parts: Sequence[LevelCounts]) -> LevelCounts:
        return LevelCounts(np.concatenate([one.table for one in parts]))


def level_estimates(counts: LevelCounts, *, seed: int = 0) -> dict[str, Estimate]:
    """auc, and dice (mean of images), dice_pooled and sensitivity ``_at_specificity_0.97``.

    NaN where undefined. Raises ValueError for no images.
    """
    if not len(counts):
        raise ValueError("no images to evaluate")
    return bootstrapped(lambda weights: _metrics(weights, counts.table), len(counts), seed=seed)


def _metrics(weights: NDArray[np.float64], table: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Metrics for each row of image weights (samples, n)."""
    # (n, LEVELS + 1): how many pixels are called at each threshold; at the last, above all levels, none is
    false, true = (
        np.pad(np.cumsum(table[:, side, ::-1], axis=1)[:, ::-1], ((0, 0), (0, 1))).astype(np.float64)
        for side in (0, 1)
    )
    fp, tp = weights @ false, weights @ true
    negative, positive = fp[:, :1], tp[:, 0]
    samples = np.arange(len(weights))
    with np.errstate(divide="ignore", invalid="ignore"):
        level = (1 - fp / negative >= SPECIFICITY).argmax(axis=1)
        each = 2 * true / (true + false + true[:, :1])
        shown = (true[:, :1] + false) > 0
        hit, wrong = tp[samples, level], fp[samples, level]
        return {
            "auc": weighted_auc(*_POOLED, weights @ table.reshape(len(table), -1).astype(np.float64)),
            f"dice_at_specificity_{SPECIFICITY}": (
                (weights * np.where(shown, each, 0.0).T[level]).sum(axis=1)
                / (weights * shown.T[level]).sum(axis=1)
            ),
            f"dice_pooled_at_specificity_{SPECIFICITY}": 2 * hit / (hit + wrong + positive),
            f"sensitivity_at_specificity_{SPECIFICITY}": hit / positive,
        }
