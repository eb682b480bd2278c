"""Boxes as detectors give them: fixed numbers of overlapping boxes in, the ones to go on with out.

The served graphs have as many boxes in every answer, ranked by score; what is left for the caller is to cut
at a threshold and to drop the lower-ranked of two boxes for one thing (non-maximum suppression, whose output
has no fixed size).

Boxes are float (n, 2 axes): the start along each axis, then the stop; half-open, in voxel (or pixel)
coordinates of the image that was sent, where voxel i covers i to i + 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]


@dataclass(frozen=True)
class Operation:
    """How a detector's answer is used: boxes with at least ``score``, of which none overlaps a higher-ranked
    one by more than ``overlap`` (intersection over union)."""

    score: float
    overlap: float


#: model -> how its answers are used, chosen on validation phantoms
OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {"candidates": Operation(0.09, 0.1), "lesion_boxes": Operation(0.15, 0.2)}
)


def overlaps(first: Boxes, second: Boxes) -> NDArray[np.float32]:
    """Intersection over union of each of ``first`` (n, 2 axes) with each of ``second`` (m, 2 axes): (n, m);
    0 with a box that has no inside."""
    axes = first.shape[1] // 2
    start = np.maximum(first[:, None, :axes], second[None, :, :axes])
    stop = np.minimum(first[:, None, axes:], second[None, :, axes:])
    shared = np.clip(stop - start, 0.0, None).prod(axis=2)
    sizes = [np.clip(boxes[:, axes:] - boxes[:, :axes], 0.0, None).prod(axis=1) for boxes in (first, second)]
    union = sizes[0][:, None] + sizes[1][None, :] - shared
    return np.asarray(shared / np.maximum(union, 1e-9), dtype=np.float32)


def chosen(boxes: Boxes, scores: NDArray[np.float32], operation: Operation) -> NDArray[np.int64]:
    """Indices of the boxes of one image to go on with, by descending score.

    boxes: (n, 2 axes).  scores: (n,). Greedy: a box is kept unless it overlaps one that was kept before it.
    """
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= operation.score]
    table = overlaps(boxes[order], boxes[order])
    kept: list[int] = []
    for index in range(len(order)):
        if not (table[index, kept] > operation.overlap).any():
            kept.append(index)
    return np.asarray(order[kept], dtype=np.int64)
