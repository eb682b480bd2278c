"""Slices of a regular grid from planes that leave some of it out, or lie unevenly.

In: the acquired planes and where they lie on the grid.  Out: every slice of the grid, those between two
planes interpolated linearly. Along an axis of the array only: what lies in a plane stays where it is, and the
way from plane to plane is that of the affine, tilted with the gantry.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

#: a slice this near to a plane, in slices, is the plane
_SAME = 1e-3


def fill_grid(planes: NDArray[np.int16], at: Sequence[float], slices: int) -> NDArray[np.int16]:
    """Resample (planes, rows, columns) HU to (slices, rows, columns).

    at: ascending slice coordinate of each plane, from 0 to ``slices`` - 1.
    """
    filled = np.empty((slices, *planes.shape[1:]), np.int16)
    where = np.asarray(at, np.float64)
    lower = np.clip(np.searchsorted(where, np.arange(slices) + _SAME) - 1, 0, len(where) - 2)
    for i in np.unique(lower):
        wanted = np.flatnonzero(lower == i)
        filled[wanted] = _between(planes[i : i + 2], float(where[i + 1] - where[i]), wanted - where[i])
    return filled


def _between(pair: NDArray[np.int16], gap: float, offsets: NDArray[np.float64]) -> NDArray[np.int16]:
    """Slices at ``offsets``, one slice apart, from the first of two planes that lie ``gap`` slices apart."""
    _, rows, columns = pair.shape
    image = sitk.GetImageFromArray(pair)
    image.SetSpacing((1.0, 1.0, gap))
    between = sitk.Resample(
        image,
        (columns, rows, len(offsets)),
        sitk.Transform(),
        sitk.sitkLinear,
        (0.0, 0.0, float(np.clip(offsets[0], 0.0, gap))),
        (1.0, 1.0, 1.0),
        image.GetDirection(),
        0.0,
        sitk.sitkFloat32,
    )
    return np.asarray(np.rint(sitk.GetArrayFromImage(between)), np.int16)
