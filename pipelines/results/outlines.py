"""Outlines of regions, and of the lungs, on the images that show most of them.

In: a Volume and label arrays (slices, rows, columns).  Out: closed polygons in image coordinates as SCOORD
has them (PS3.3 C.18.6.1.2): column then row, in pixels, 0.0 at the outer edge of the first pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull

from pipelines.geometry import AxialView
from pipelines.results.sources import is_multiframe
from pipelines.volume import Region, SourceImages, Volume

#: the steps along pixel edges, clockwise on the screen: right, down, left, up, as (row, column)
_STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))


@dataclass(frozen=True)
class Outline:
    """An outline on the image that shows most of what it is drawn around.

    source: index into ``Volume.sources``.  frame: 1-based frame number in it.
    points: float32 (n, 2), (column, row), the first repeated as the last.
    """

    source: int
    frame: int
    points: NDArray[np.float32]


def outline(volume: Volume, region_labels: NDArray[np.uint8], region: Region) -> Outline:
    """The outer edge of the region's largest part on the acquired plane that has most of it.

    Raises ValueError for a region that lies on no acquired plane.
    """
    (rows, columns) = (slice(*limits) for limits in region.bounding_box[1:])
    labels = region_labels[:, rows, columns]
    inside = volume.on_source_planes(labels) == region.number
    plane = int(inside.sum(axis=(1, 2)).argmax())
    points = trace(inside[plane]) + np.array([columns.start, rows.start], np.float32)
    source, frame = volume.source_frames[plane]
    return Outline(source, frame, points.astype(np.float32))


def around_lungs(volume: Volume, lungs: NDArray[np.uint8]) -> Outline:
    """The convex hull of both lungs on the acquired plane that has most of them.

    Raises ValueError where no acquired plane has any.
    """
    planes = volume.on_source_planes(lungs)
    plane = int(np.argmax([np.count_nonzero(labels) for labels in planes]))
    source, frame = volume.source_frames[plane]
    return Outline(source, frame, hull(planes[plane] > 0))


def hull(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The convex hull of a mask (rows, columns), as ``Outline.points``. Raises ValueError for no mask."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        raise ValueError("there is no lung to draw an outline around")
    left = mask[rows].argmax(axis=1)
    right = mask.shape[1] - mask[rows, ::-1].argmax(axis=1)
    ends = [np.stack([column, row], axis=1) for column in (left, right) for row in (rows, rows + 1)]
    corners = np.concatenate(ends)
    around = corners[ConvexHull(corners).vertices]
    if len(around) == 4:  # OHIF takes five closed points for a rectangle of its own
        around = np.insert(around, 1, around[:2].mean(axis=0), axis=0)
    return np.append(around, around[:1], axis=0).astype(np.float32)


def image_region(volume: SourceImages, drawn: Outline) -> hd.sr.ImageRegion:
    """The outline as a content item (TID 1410 row 5)."""
    source = volume.sources[drawn.source]
    image = hd.sr.SourceImageForRegion(
        source.SOPClassUID, source.SOPInstanceUID, [drawn.frame] if is_multiframe(volume) else None
    )
    return hd.sr.ImageRegion(hd.sr.GraphicTypeValues.POLYLINE, drawn.points, image)


def around_slice(volume: Volume, lungs: NDArray[np.uint8], index: int) -> Outline:
    """``around_lungs`` for what lies on one slice of the axial view (``pipelines.geometry.AxialView``).

    Where the series isn't axial that is a strip, on the image that has most of it.
    """
    view = AxialView.of(volume.affine)
    only = np.zeros_like(lungs)
    view.view(only)[index] = view.view(lungs)[index]
    return around_lungs(volume, only)


def trace(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The outer edge of a mask's (rows, columns) largest 4-connected part, clockwise, as ``Outline.points``.

    The polygon follows the pixels' edges, so the pixels whose centres it holds are those of the part, holes
    filled. Raises ValueError for an empty mask.
    """
    parts, count = ndimage.label(mask)
    if not count:
        raise ValueError("there is nothing to draw an outline of")
    largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    inside = np.pad(ndimage.binary_fill_holes(largest), 1)
    row, column = (int(n) for n in np.argwhere(inside)[0])  # its corner top left; from there to the right
    start, direction = (row, column), 0
    corners = [start]
    at = start
    while True:
        at = (at[0] + _STEPS[direction][0], at[1] + _STEPS[direction][1])
        turned = _turn(inside, at, direction)
        if at == start:
            break
        if turned != direction:
            corners.append(at)
        direction = turned
    corners.append(start)
    return np.array(corners, np.float32)[:, ::-1] - 1.0


def _turn(inside: NDArray[np.bool_], at: tuple[int, int], direction: int) -> int:
    """Where the edge goes on at a corner between four pixels, with the inside on its right hand."""
    row, column = at
    # the pixels ahead on the left and on the right hand, as (row, column) of the pixel below right of ``at``
    ahead = {
        0: ((row - 1, column), (row, column)),
        1: ((row, column), (row, column - 1)),
        2: ((row, column - 1), (row - 1, column - 1)),
        3: ((row - 1, column - 1), (row - 1, column)),
    }
    left, right = ahead[direction]
    if not inside[right]:
        return (direction + 1) % 4  # pixels that only touch at a corner are not connected
    return (direction + 3) % 4 if inside[left] else direction
