"""Where the lungs are on a labelled picture: what is dark and no air outside of the body, and its lesions.

Good enough to teach a network that segments lesions where a lesion can be; no reference to measure by.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

PADDING_HU = -1020
ROUNDS = 5  # of two-means clustering
VESSEL_SHARE = 0.012  # of the longer side: gaps of that radius belong to the lungs
SMALLEST_SHARE = 0.01  # of the picture; smaller parts are airways and noise


def lung_field(hu: NDArray[np.int16], lesions: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Lungs with their lesions and small vessels; hu, lesions: (rows, columns).

    Dark parts that reach a corner of the picture are air around the body.
    """
    seen = hu > PADDING_HU
    if not seen.any():
        return lesions
    cut = float(hu[seen].mean())
    for _ in range(ROUNDS):
        dark, bright = hu[seen & (hu < cut)], hu[seen & (hu >= cut)]
        if not len(dark) or not len(bright):
            return lesions
        cut = (float(dark.mean()) + float(bright.mean())) / 2
    air = hu < cut
    parts, _ = ndimage.label(air)
    corners = np.unique(parts[[0, 0, -1, -1], [0, -1, 0, -1]])
    field = (air & ~np.isin(parts, corners[corners > 0])) | lesions

    radius = max(2, round(max(hu.shape) * VESSEL_SHARE))
    across, down = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc = np.hypot(across, down) <= radius
    closed = ndimage.binary_closing(np.pad(field, radius), disc)[radius:-radius, radius:-radius] | field
    parts, _ = ndimage.label(closed)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray((sizes > SMALLEST_SHARE * hu.size)[parts] | lesions)
