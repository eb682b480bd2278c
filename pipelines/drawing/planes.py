"""Display planes: any volume, resampled through its affine to the way radiologists look at a slice.

In: a Volume and arrays on its grid.  Out: axial planes in radiological convention: rows run from anterior
to posterior, columns from the patient's right (left edge of the picture) to the left; pixels are square.
Oblique, coronal, sagittal and reversed sources come out the same, because only the affine is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.drawing import palette
from pipelines.volume import Findings, Lesion, Volume

_Scalar = TypeVar("_Scalar", bound=np.generic)
_OUTSIDE_HU = -1024
LUNG_WINDOW = (-600.0, 1500.0)  # centre and width, HU


@dataclass(frozen=True)
class AxialGrid:
    """A stack of axial display planes.

    origin_mm: LPS of the first pixel of a plane, without its z.  pixel_mm: side of the square pixels.
    shape: (rows, columns) of a plane.
    """

    origin_mm: tuple[float, float]
    pixel_mm: float
    shape: tuple[int, int]

    def to_pixel(self, lps_mm: tuple[float, float, float]) -> tuple[float, float]:
        """LPS mm -> (row, column)."""
        return (lps_mm[1] - self.origin_mm[1]) / self.pixel_mm, (
            lps_mm[0] - self.origin_mm[0]
        ) / self.pixel_mm


def axial_grid(
    volume: Volume, mask: NDArray[np.uint8], *, margin_mm: float = 12.0, columns: int = 512
) -> AxialGrid:
    """The grid that shows where ``mask`` (slices, rows, columns) isn't 0, with a margin, ``columns`` wide."""
    corners = _bounds_lps(volume, mask)
    low, high = corners.min(axis=0) - margin_mm, corners.max(axis=0) + margin_mm
    pixel = float((high[0] - low[0]) / columns)
    rows = max(1, round(float(high[1] - low[1]) / pixel))
    return AxialGrid((float(low[0]), float(low[1])), pixel, (rows, columns))


def _bounds_lps(volume: Volume, mask: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The eight corners of the mask's bounding box, LPS mm (the whole volume's if the mask is empty)."""
    spans = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        hit = np.flatnonzero(mask.any(axis=others))
        spans.append((hit[0], hit[-1]) if hit.size else (0, mask.shape[axis] - 1))
    index = np.stack(np.meshgrid(*spans, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.float64)
    return volume.to_patient(index)


def heights_mm(volume: Volume, mask: NDArray[np.uint8]) -> NDArray[np.float64]:
    """LPS z of a sample of the mask's voxels (the whole volume's if it is empty), for quantiles.

    At most 128 voxels along each axis are looked at: all indices of a large mask take more memory than it.
    """
    steps = [max(1, n // 128) for n in mask.shape]
    sampled = mask[tuple(slice(None, None, step) for step in steps)]
    index = np.argwhere(sampled if sampled.any() else np.ones_like(sampled)) * steps
    return volume.to_patient(index.astype(np.float64))[:, 2]


def axial_plane(volume: Volume, grid: AxialGrid, z_mm: float, array: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """Sample ``array`` (on the volume's grid) on one plane: linear for signed (HU), nearest for labels.

    z_mm: LPS z (towards the head) of the plane. Outside of the volume: -1024 for HU, 0 for labels.
    """
    rows, columns = np.indices(grid.shape, dtype=np.float64)
    lps = np.stack(
        [
            grid.origin_mm[0] + columns * grid.pixel_mm,
            grid.origin_mm[1] + rows * grid.pixel_mm,
            np.full(grid.shape, z_mm),
        ]
    )
    inverse = np.linalg.inv(volume.affine)
    index = np.tensordot(inverse[:3, :3], lps, axes=1) + inverse[:3, 3][:, None, None]
    continuous = np.issubdtype(array.dtype, np.signedinteger)
    sampled: NDArray[_Scalar] = ndimage.map_coordinates(
        array,
        index,
        order=1 if continuous else 0,
        # A plane half a slice beyond the first or last one is still what that slice shows
        mode="grid-constant" if continuous else "constant",
        cval=_OUTSIDE_HU if continuous else 0,
        prefilter=False,
    )
    return sampled


def window(hu: NDArray[np.generic], centre_width: tuple[float, float] = LUNG_WINDOW) -> NDArray[np.uint8]:
    """HU to 8-bit grey through a linear window (PS3.3 C.11.2.1.2)."""
    centre, width = centre_width
    grey = (hu.astype(np.float32) - (centre - width / 2)) / width
    return (np.clip(grey, 0.0, 1.0) * 255).astype(np.uint8)


def slice_picture(volume: Volume, findings: Findings, grid: AxialGrid, z_mm: float) -> NDArray[np.uint8]:
    """One axial plane in the lung window, lesions tinted and outlined by type: (rows, columns, 3) RGB."""
    grey = window(axial_plane(volume, grid, z_mm, volume.hu))
    lesions = axial_plane(volume, grid, z_mm, findings.lesions)
    picture = np.repeat(grey[..., None], 3, axis=2).astype(np.float32)
    for kind in Lesion:
        mask = lesions == kind
        if not mask.any():
            continue
        color = np.array(palette.LESION[kind], np.float32)
        edge = ndimage.binary_dilation(mask, iterations=1) & ~ndimage.binary_erosion(mask, iterations=1)
        picture[mask] = 0.82 * picture[mask] + 0.18 * color  # the texture below must stay readable
        picture[edge] = color
    return picture.astype(np.uint8)
