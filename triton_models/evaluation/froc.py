"""Free-response ROC of detectors, with bootstrap confidence intervals.

In: for each image (a scan or a slice), found boxes with scores and true boxes.  Out: ``Estimate``s.

A box hits a true one when their intersection over union is at least ``HIT_OVERLAP``, as nnDetection takes it
for lesions in volumes (Baumgartner et al. 2021). By descending score each box takes the free true box that it
overlaps most; each true box is hit once, and what hits it again is a false positive. A box that hits only
lesions too small to count is neither. Sensitivity: hit true boxes of all images / true boxes of all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.boxes import Boxes, overlaps
from triton_models.evaluation.result import Estimate, bootstrapped

HIT_OVERLAP = 0.1
#: false positives per image at which the curve is read (LUNA16; Setio et al. 2017)
RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Found:
    """One image. scores: of the boxes that are hits or false positives, descending.  hits: which of them are
    hits.  truths: number of true boxes that must be found."""

    scores: NDArray[np.float32]
    hits: NDArray[np.bool_]
    truths: int

    @staticmethod
    def of(boxes: Boxes, scores: NDArray[np.float32], truth: Boxes, counts: NDArray[np.bool_]) -> Found:
        """boxes: (n, 2 axes).  truth: (m, 2 axes).  counts: (m,), False for a box that need not be found."""
        order = np.argsort(-scores, kind="stable")
        table = overlaps(boxes[order], truth)
        free = counts.copy()
        kept, hits = [], []
        for index, row in enumerate(table):
            candidates = np.where(free, row, 0.0)
            best = int(candidates.argmax()) if len(row) else -1
            if best >= 0 and candidates[best] >= HIT_OVERLAP:
                free[best] = False
                kept.append(order[index])
                hits.append(True)
            elif not (row[~counts] >= HIT_OVERLAP).any():
                kept.append(order[index])
                hits.append(False)
        return Found(scores[kept], np.asarray(hits, dtype=bool), int(counts.sum()))


def froc(images: Sequence[Found], threshold: float, unit: str, *, seed: int = 0) -> dict[str, Estimate]:
    """``sensitivity_at_<rate>`` for each of RATES, their mean ``froc_mean``, and at the threshold
    ``sensitivity`` and ``false_positives_per_<unit>``. Intervals by bootstrap over the images."""
    return bootstrapped(lambda weights: _figures(images, weights, threshold, unit), len(images), seed=seed)


def _figures(
    images: Sequence[Found], weights: NDArray[np.float64], threshold: float, unit: str
) -> dict[str, NDArray[np.float64]]:
    """Of each row of image weights (samples, images)."""
    image = np.repeat(np.arange(len(images)), [len(one.scores) for one in images])
    scores = np.concatenate([one.scores for one in images])
    hits = np.concatenate([one.hits for one in images])
    order = np.argsort(-scores, kind="stable")
    image, scores, hits = image[order], scores[order], hits[order]
    at_threshold = int((scores >= threshold).sum())
    truths = weights @ np.asarray([one.truths for one in images], dtype=np.float64)
    names = [f"sensitivity_at_{rate:g}" for rate in RATES]
    figures = {
        name: np.empty(len(weights)) for name in [*names, "sensitivity", f"false_positives_per_{unit}"]
    }
    for sample, row in enumerate(weights):
        each = row[image]
        hit = np.concatenate([[0.0], np.cumsum(each * hits)])
        wrong = np.concatenate([[0.0], np.cumsum(each * ~hits)]) / row.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            sensitivity = np.divide(hit, truths[sample])
        for name, rate in zip(names, RATES, strict=True):
            figures[name][sample] = sensitivity[np.searchsorted(wrong, rate, side="right") - 1]
        figures["sensitivity"][sample] = sensitivity[at_threshold]
        figures[f"false_positives_per_{unit}"][sample] = wrong[at_threshold]
    figures["froc_mean"] = np.mean([figures[name] for name in names], axis=0)
    return figures
