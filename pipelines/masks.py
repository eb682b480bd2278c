"""Masks and label arrays: where something is in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[slice, slice, slice]


def bounding_box(labels: NDArray[Any]) -> Box:
    """The smallest box that holds all that isn't 0, to index with; empty at the origin if all is.

    labels: (slices, rows, columns), bool or unsigned.
    """
    if not labels.size:
        return (slice(0, 0),) * 3
    above = labels.max(axis=0)  # not any(): the maximum is vectorised for bytes
    hit = [np.flatnonzero(line) for line in (labels.max(axis=(1, 2)), above.max(axis=1), above.max(axis=0))]
    sides = [slice(int(h[0]), int(h[-1]) + 1) if h.size else slice(0, 0) for h in hit]
    return sides[0], sides[1], sides[2]


def grown(box: Box, shape: Sequence[int]) -> Box:
    """``box`` with one voxel more at each side, where an array of ``shape`` has one."""
    sides = [slice(max(0, side.start - 1), min(n, side.stop + 1)) for side, n in zip(box, shape, strict=True)]
    return sides[0], sides[1], sides[2]


def moved(box: Box, crop: Box) -> Box:
    """A box of the crop as one of the whole."""
    sides = [slice(b.start + c.start, b.stop + c.start) for b, c in zip(box, crop, strict=True)]
    return sides[0], sides[1], sides[2]


def voxels(plane: NDArray[np.bool_], corner: Sequence[int]) -> NDArray[np.intp]:
    """(n, 3) voxels of a slice's pixels that are set, row by row; ``corner`` is that of its first pixel."""
    return np.asarray(np.insert(np.argwhere(plane), 0, 0, axis=1) + np.array(corner))


def voxel_counts(labels: NDArray[Any], most: int) -> NDArray[np.int64]:
    """How many voxels have each label 1 to ``most``, the largest. labels: (slices, rows, columns), unsigned.

    Slice by slice, since counting takes eight bytes a voxel.
    """
    counts = np.zeros(most + 1, np.int64)
    for plane in labels:
        counts += np.bincount(plane.ravel(), minlength=most + 1)
    return counts[1:]
