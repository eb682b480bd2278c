"""Branching tubes: pulmonary vessels and airways of one lung.

In: a root, end points inside the lung.  Out: ``Tubes``, straight segments with a radius, and a function
that draws their coverage into one axial slice.

The tree joins each end point, nearest first, to the closest node that already hangs on the root, and takes
radii from Murray's law (r^3 of a parent = sum of r^3 of its children), which fills a lung evenly with
vessels that thin out towards the pleura.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Tubes:
    """n straight segments. start, end: (n, 3) LPS mm; radius: (n,) mm."""

    start: Points
    end: Points
    radius: Points

    def __add__(self, other: Tubes) -> Tubes:
        return Tubes.joined([self, other])

    @staticmethod
    def joined(parts: Sequence[Tubes]) -> Tubes:
        """All segments of the parts; no parts give no segments."""
        return Tubes(
            np.concatenate([np.empty((0, 3)), *(part.start for part in parts)]),
            np.concatenate([np.empty((0, 3)), *(part.end for part in parts)]),
            np.concatenate([np.empty(0), *(part.radius for part in parts)]),
        )


def grow_tree(
    rng: np.random.Generator, root: Points, ends: Points, *, tip_radius_mm: float, root_radius_mm: float
) -> Tubes:
    """Connect ``ends`` (n, 3) to ``root`` (3,), all LPS mm; radii between tip and root radius."""
    order = np.argsort(np.linalg.norm(ends - root, axis=1))
    nodes = np.empty((2 * len(ends) + 1, 3))
    nodes[0] = root
    parents = np.full(len(nodes), -1)
    depth = np.zeros(len(nodes))
    count = 1
    for target in ends[order]:
        known = nodes[:count]
        # a path that doubles back is unlike a vessel, so the way already travelled counts a little
        cost = np.linalg.norm(known - target, axis=1) + 0.25 * depth[:count]
        parent = int(np.argmin(cost))
        middle = 0.5 * (known[parent] + target)
        middle = middle + rng.normal(0.0, 0.09, 3) * np.linalg.norm(target - known[parent])
        for point, above in ((middle, parent), (target, count)):
            nodes[count] = point
            parents[count] = above
            depth[count] = depth[above] + np.linalg.norm(point - nodes[above])
            count += 1
    cubes = np.zeros(count)
    has_child = np.zeros(count, dtype=bool)
    has_child[parents[1:count]] = True
    cubes[~has_child] = tip_radius_mm**3
    for node in range(count - 1, 0, -1):
        cubes[parents[node]] += cubes[node]
    radius = np.minimum(np.cbrt(cubes[1:]) * rng.uniform(0.85, 1.15, count - 1), root_radius_mm)
    return Tubes(nodes[parents[1:count]], nodes[1:count], radius)


def draw_tubes(
    canvas: NDArray[np.float32], tubes: Tubes, z: float, origin_mm: tuple[float, float], pixel_mm: float
) -> None:
    """Paint the tubes' coverage (0 to 1, by maximum) into ``canvas`` (rows, columns) at level z (mm).

    origin_mm: (x, y) of the centre of pixel (0, 0); pixels are square.
    """
    low = np.minimum(tubes.start[:, 2], tubes.end[:, 2]) - tubes.radius - pixel_mm
    high = np.maximum(tubes.start[:, 2], tubes.end[:, 2]) + tubes.radius + pixel_mm
    rows, columns = canvas.shape
    for index in np.flatnonzero((low <= z) & (z <= high)):
        a, b, radius = tubes.start[index], tubes.end[index], tubes.radius[index]
        span = b - a
        # only the part of the segment that is within a radius of this level can touch it
        if abs(span[2]) > 1e-6:
            cuts = np.clip((np.array([z - radius - 1, z + radius + 1]) - a[2]) / span[2], 0.0, 1.0)
        else:
            cuts = np.array([0.0, 1.0])
        near = a[None, :2] + cuts[:, None] * span[None, :2]
        margin = radius + 1.5 * pixel_mm
        c0 = max(int((near[:, 0].min() - margin - origin_mm[0]) / pixel_mm), 0)
        c1 = min(int((near[:, 0].max() + margin - origin_mm[0]) / pixel_mm) + 2, columns)
        r0 = max(int((near[:, 1].min() - margin - origin_mm[1]) / pixel_mm), 0)
        r1 = min(int((near[:, 1].max() + margin - origin_mm[1]) / pixel_mm) + 2, rows)
        if c0 >= c1 or r0 >= r1:
            continue
        dx = (origin_mm[0] + pixel_mm * np.arange(c0, c1) - a[0])[None, :]
        dy = (origin_mm[1] + pixel_mm * np.arange(r0, r1) - a[1])[:, None]
        dz = z - a[2]
        along = np.clip((dx * span[0] + dy * span[1] + dz * span[2]) / max(float(span @ span), 1e-9), 0, 1)
        distance = np.sqrt(
            (dx - along * span[0]) ** 2 + (dy - along * span[1]) ** 2 + (dz - along * span[2]) ** 2
        )
        # a tube thinner than a pixel covers only part of it
        coverage = np.clip((radius - distance) / pixel_mm + 0.5, 0.0, min(1.0, 2.0 * radius / pixel_mm))
        patch = canvas[r0:r1, c0:c1]
        np.maximum(patch, coverage, out=patch, casting="same_kind")
