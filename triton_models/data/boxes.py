"""Lesion labels in, the boxes of their components out: what detectors learn and are measured against.

Boxes are half-open in voxel coordinates: a voxel i covers i to i + 1, so a box is (start, …, stop, …) along
the array's axes, and scaling an image scales its boxes. Lesions that come within ``GAP_MM`` of each other in
the plane, or touch in neighbouring slices (26 neighbours), are one component, as a reader calls opacities
that run into each other one finding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

GAP_MM = 5.0
#: a smaller lesion need not be found (``pipelines.regions`` leaves such out as well), and finding it isn't
#: held against a detector either
SMALLEST_ML, SMALLEST_MM2 = 0.3, 30.0
MOST = 255


@dataclass(frozen=True)
class Components:
    """Lesions of one image, arrays over its n components in descending size.

    numbers: uint8 in the image's shape, 0 or 1 + index of the component.
    boxes: float32 (n, 2 axes).  sizes: ml of a volume, mm² of a slice, of lesion alone.
    dense_share: share of its lesion voxels that are consolidation.  counts: whether it must be found.
    """

    numbers: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    sizes: NDArray[np.float32]
    dense_share: NDArray[np.float32]
    counts: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.boxes)


def components(lesions: NDArray[np.uint8] | NDArray[np.int16], spacing_mm: tuple[float, ...]) -> Components:
    """lesions: (slices, rows, columns) or (rows, columns), 0 none, 2 consolidation, other values any other
    lesion.  spacing_mm: along its axes.

    More than MOST components: the smallest are left out. Raises ValueError for another number of axes.
    """
    axes = lesions.ndim
    if axes not in (2, 3) or len(spacing_mm) != axes:
        raise ValueError(
            f"lesions must have 2 or 3 axes with a spacing each, got {lesions.shape}, {spacing_mm}"
        )
    mask = lesions > 0
    joined = mask
    for axis in (axes - 2, axes - 1):
        reach = round(GAP_MM / 2.0 / spacing_mm[axis])
        joined = ndimage.maximum_filter1d(joined, 2 * reach + 1, axis=axis, mode="constant")
    labels, found = ndimage.label(joined, np.ones((3,) * axes))
    labels *= mask
    unit = float(np.prod(spacing_mm)) / (1000.0 if axes == 3 else 1.0)
    pixels = np.bincount(labels.ravel(), minlength=found + 1)[1:]
    dense = np.bincount(labels[lesions == 2], minlength=found + 1)[1:]
    where = ndimage.find_objects(labels)
    order = sorted(range(len(where)), key=lambda i: (-int(pixels[i]), i))[:MOST]
    renumbered = np.zeros(found + 1, dtype=np.uint8)
    renumbered[[i + 1 for i in order]] = np.arange(1, len(order) + 1)
    boxes = [[s.start for s in where[i]] + [s.stop for s in where[i]] for i in order]
    sizes = (pixels[order] * unit).astype(np.float32)
    return Components(
        renumbered[labels],
        np.asarray(boxes, dtype=np.float32).reshape(-1, 2 * axes),
        sizes,
        (dense[order] / np.maximum(pixels[order], 1)).astype(np.float32),
        sizes >= (SMALLEST_ML if axes == 3 else SMALLEST_MM2),
    )
