"""Patches of candidate regions as the ``infection_type`` model was taught them (Xu et al. 2020, Methods).

In: axial slices and their lung masks.  Out: patches in HU and relative distances-from-edge.  Training cuts
its patches here, too, so that both can't come to differ.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

#: a patch is PATCH x PATCH pixels of PATCH_PIXEL_MM each, 24 mm wide: it shows what a candidate is made of,
#: finer than CT resolves, and so narrow that where it lies in the lung mostly isn't seen and has to be told
PATCH = 64
PATCH_PIXEL_MM = 0.375
#: HU outside of this range carry nothing for lungs, and are clipped before they are interpolated
PATCH_HU = (-1024, 600)


def cut_patch(
    hu: NDArray[np.int16], centre: tuple[float, float], pixel_mm: tuple[float, float]
) -> NDArray[np.int16]:
    """The patch around a point of one slice: linear interpolation, air beyond the image's border.

    hu: (rows, columns).  centre: row and column, pixel centres at integers.  pixel_mm: (row, column).
    Returns int16 (PATCH, PATCH).
    """
    offsets = (np.arange(PATCH) - (PATCH - 1) / 2) * PATCH_PIXEL_MM
    rows, columns = (c + offsets / mm for c, mm in zip(centre, pixel_mm, strict=True))
    low, high = (
        (max(int(rows[0]) - 1, 0), int(rows[-1]) + 3),
        (max(int(columns[0]) - 1, 0), int(columns[-1]) + 3),
    )
    part = np.clip(hu[low[0] : low[1], high[0] : high[1]].astype(np.float32), *PATCH_HU)
    where = np.meshgrid(rows - low[0], columns - high[0], indexing="ij")
    cut = ndimage.map_coordinates(part, where, order=1, mode="constant", cval=float(PATCH_HU[0]))
    return np.asarray(np.rint(cut), dtype=np.int16)


def relative_distances(
    lung: NDArray[np.bool_], pixel_mm: tuple[float, float] = (1.0, 1.0)
) -> NDArray[np.float32]:
    """Relative distance-from-edge of every pixel of one slice.

    lung: (rows, columns), of both lungs.  pixel_mm: (row, column).  Returns the distance to the nearest
    pixel outside of the lungs, divided by the diagonal of the smallest upright rectangle around them, both in
    mm; 0 outside.
    """
    out = np.zeros(lung.shape, dtype=np.float32)
    rows, columns = (np.flatnonzero(lung.any(axis=axis)) for axis in (1, 0))
    if rows.size:
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        part = lung[box]
        depth = ndimage.distance_transform_edt(np.pad(part, 1), sampling=pixel_mm)[1:-1, 1:-1]
        out[box] = depth / np.hypot(part.shape[0] * pixel_mm[0], part.shape[1] * pixel_mm[1])
    return out
