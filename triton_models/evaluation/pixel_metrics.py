"""Segmentation metrics with bootstrap confidence intervals.

In: predicted and true masks, image by image.  Out: ``Counts`` and, from them, ``Estimate``s.

Definitions (Zhang et al. 2021, section 3.3): sensitivity TP/(TP+FN), specificity TN/(TN+FP), precision
TP/(TP+FP), accuracy (TP+TN)/all, IoU TP/(TP+FP+FN), Dice 2TP/(2TP+FP+FN), all pooled over the images'
pixels, except ``dice``: the mean over those images in which truth or prediction has a pixel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triton_models.evaluation.result import Estimate, bootstrapped

METRICS = ("dice", "dice_pooled", "iou", "sensitivity", "specificity", "precision", "accuracy")


@dataclass(frozen=True)
class Counts:
    """Pixel counts of n images: int64 (n, 4), columns true positive, false positive, false negative, true
    negative."""

    table: NDArray[np.int64]

    @staticmethod
    def of(pairs: Iterable[tuple[NDArray[np.bool_], NDArray[np.bool_]]]) -> Counts:
        """From (predicted, true) mask pairs of equal shapes."""
        rows = []
        for predicted, truth in pairs:
            hit = int(np.count_nonzero(predicted & truth))
            positive, real = int(np.count_nonzero(predicted)), int(np.count_nonzero(truth))
            rows.append((hit, positive - hit, real - hit, predicted.size - positive - real + hit))
        return Counts(np.asarray(rows, dtype=np.int64).reshape(-1, 4))

    def __len__(self) -> int:
        return len(self.table)

    @staticmethod
    def concatenate(parts: Sequence[Counts]) -> Counts:
        return Counts(np.concatenate([one.table for one in parts]))


def estimates(counts: Counts, *, seed: int = 0) -> dict[str, Estimate]:
    """Every metric of METRICS; NaN where it is undefined. Raises ValueError for no images."""
    if not len(counts):
        raise ValueError("no images to evaluate")
    return bootstrapped(lambda weights: _metrics(weights, counts.table), len(counts), seed=seed)


def _metrics(weights: NDArray[np.float64], table: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Metrics for each row of image weights (samples, n)."""
    tp, fp, fn, tn = (weights @ table.astype(np.float64)).T
    shown = (table[:, :3].sum(axis=1) > 0).astype(np.float64)
    each = 2.0 * table[:, 0] / np.maximum(2 * table[:, 0] + table[:, 1] + table[:, 2], 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "dice": (weights @ (each * shown)) / (weights @ shown),
            "dice_pooled": 2 * tp / (2 * tp + fp + fn),
            "iou": tp / (tp + fp + fn),
            "sensitivity": tp / (tp + fn),
            "specificity": tn / (tn + fp),
            "precision": tp / (tp + fp),
            "accuracy": (tp + tn) / (tp + fp + fn + tn),
        }
