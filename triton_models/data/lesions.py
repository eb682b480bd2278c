"""Synthetic ground glass and consolidation, for phantoms and for pasting into real lungs.

In: the lungs as a coarse signed distance field.  Out: a ``LesionField`` (where, how dense) on the same
coarse grid, and ``paint`` which applies an upsampled slice of it to Hounsfield units.

Density follows the physics of partial filling: a fraction of the air in a voxel is replaced by fluid, so
vessels stay visible in ground glass and are hidden by consolidation, as on a real CT.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float32]

GROUND_GLASS, CONSOLIDATION = 1, 2
FLUID_HU = 32.0
IN_PLANE_ONLY = 1e3  # stretches the axis across slices, so that the nearest edge is in the slice
OUTSIDE_MM = -30.0  # level of a point that is far from every lesion


@dataclass(frozen=True)
class LesionField:
    """Lesions on a coarse grid, arrays (planes, rows, columns).

    ground_glass, consolidation: level in mm, positive inside.
    filling: fraction of air that ground glass replaces, 0 to 1.
    edge_mm: half-width of the transition at a ground glass border.
    paving: HU that a crazy-paving network adds inside ground glass, 0 for none.
    bronchograms: whether airways stay open inside consolidation.
    """

    ground_glass: Array
    consolidation: Array
    filling: Array
    edge_mm: float
    paving: float
    bronchograms: bool

    @property
    def empty(self) -> bool:
        return not bool((self.ground_glass > 0).any() or (self.consolidation > 0).any())


@dataclass(frozen=True)
class Pattern:
    """How one disease looks: number and radius (mm) of foci, chance and relative size of a dense core.

    pleural_mm: smaller, nearer to the lung surface.  depth_mm: instead of it, the distribution of the foci's
    distance from the lung's edge in the axial plane, a mixture of normals (share, mean, standard deviation).
    filling: range of the fraction of air that ground glass replaces.  paving_chance: of crazy paving.
    """

    foci: tuple[int, int]
    radius: tuple[float, float]
    core_chance: float
    core_size: tuple[float, float]
    pleural_mm: float = 0.0
    depth_mm: tuple[tuple[float, float, float], ...] = ()
    filling: tuple[float, float] = (0.18, 0.62)
    paving_chance: float = 0.25

    def weights(
        self, lung_distance: Array, spacing_mm: tuple[float, float, float], inside: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """How likely each of the voxels ``inside`` (n, 3) is to be a focus's centre."""
        if not self.depth_mm:
            # uniform in depth first, or the many deep voxels of a big lung outweigh the pleural preference
            weight = np.exp(lung_distance[tuple(inside.T)] / self.pleural_mm)
        else:
            in_plane = ndimage.distance_transform_edt(
                lung_distance < 0, sampling=(IN_PLANE_ONLY * spacing_mm[0], *spacing_mm[1:])
            )
            depth = in_plane[tuple(inside.T)]
            density = sum(
                (share / sd) * np.exp(-0.5 * ((depth - mean) / sd) ** 2) for share, mean, sd in self.depth_mm
            )
            shell = (depth / spacing_mm[1]).astype(np.int64)
            weight = density / np.bincount(shell)[shell]
        return np.asarray(weight / weight.sum())


PATTERNS = {
    "peripheral": Pattern((3, 12), (7.0, 26.0), 0.45, (0.25, 0.75), 7.0),
    "single": Pattern((1, 2), (6.0, 30.0), 0.5, (0.2, 0.9), 15.0),
    "diffuse": Pattern((6, 14), (22.0, 50.0), 0.3, (0.15, 0.5), 30.0),
    "dense": Pattern((1, 5), (9.0, 30.0), 1.0, (0.8, 1.05), 8.0),
    "lobar": Pattern((1, 2), (38.0, 65.0), 1.0, (0.7, 1.0), 40.0),
}


def lesion_field(
    rng: np.random.Generator,
    lung_distance: Array,
    spacing_mm: tuple[float, float, float],
    *,
    pattern: str | Pattern | None = None,
) -> LesionField:
    """Place lesions at random in the lungs.

    lung_distance: (planes, rows, columns), mm to the lung surface, negative inside.
    spacing_mm: of that grid, (plane, row, column).  pattern: or a key of PATTERNS, None to draw one.
    Raises ValueError for an unknown pattern.
    """
    if pattern is None:
        pattern = str(rng.choice(list(PATTERNS), p=[0.42, 0.18, 0.12, 0.18, 0.10]))
    if isinstance(pattern, str) and pattern not in PATTERNS:
        raise ValueError(f"pattern {pattern!r} is unknown; known are {sorted(PATTERNS)}")
    kind = PATTERNS[pattern] if isinstance(pattern, str) else pattern
    ground_glass = np.full(lung_distance.shape, OUTSIDE_MM, dtype=np.float32)
    consolidation = np.full(lung_distance.shape, OUTSIDE_MM, dtype=np.float32)
    filling = np.full(lung_distance.shape, 0.0, dtype=np.float32)
    inside = np.argwhere(lung_distance < -1.0)
    if len(inside):
        weight = kind.weights(lung_distance, spacing_mm, inside)
        for centre in inside[rng.choice(len(inside), rng.integers(*kind.foci, endpoint=True), p=weight)]:
            _add_focus(rng, kind, centre, spacing_mm, (ground_glass, consolidation, filling))
    return LesionField(
        ground_glass=ground_glass,
        consolidation=consolidation,
        filling=filling,
        edge_mm=float(rng.uniform(0.8, 4.0)),
        paving=float(rng.uniform(60.0, 200.0)) if rng.random() < kind.paving_chance else 0.0,
        bronchograms=bool(rng.random() < 0.7),
    )


def _add_focus(
    rng: np.random.Generator,
    kind: Pattern,
    centre: NDArray[np.int64],
    spacing_mm: tuple[float, float, float],
    fields: tuple[Array, Array, Array],
) -> None:
    ground_glass, consolidation, filling = fields
    radius = rng.uniform(*kind.radius)
    stretch = np.array([rng.uniform(0.7, 1.3), rng.uniform(0.6, 1.4), rng.uniform(0.6, 1.4)])
    reach = radius * 1.9
    box = tuple(
        slice(max(int(c - reach / s), 0), min(int(c + reach / s) + 2, n))
        for c, s, n in zip(centre, spacing_mm, ground_glass.shape, strict=True)
    )
    shape = tuple(b.stop - b.start for b in box)
    axes = np.ogrid[box]
    turn = rng.uniform(0, np.pi)
    dz, dy, dx = ((axis - c) * s for axis, c, s in zip(axes, centre, spacing_mm, strict=True))
    u, v = np.cos(turn) * dx + np.sin(turn) * dy, np.cos(turn) * dy - np.sin(turn) * dx
    distance = np.sqrt((dz / stretch[0]) ** 2 + (u / stretch[1]) ** 2 + (v / stretch[2]) ** 2)
    rough = radius * rng.uniform(0.25, 0.6) * _noise(rng, shape, spacing_mm, radius * 0.8)
    rough = rough + radius * rng.uniform(0.05, 0.3) * _noise(rng, shape, spacing_mm, 5.0)
    level = (radius - distance + rough).astype(np.float32)
    np.maximum(ground_glass[box], level, out=ground_glass[box])
    strength = rng.uniform(*kind.filling) + 0.06 * _noise(rng, shape, spacing_mm, 9.0)
    np.maximum(filling[box], np.clip(strength, 0.16, 0.7), out=filling[box], casting="same_kind")
    if rng.random() < kind.core_chance:
        core = radius * rng.uniform(*kind.core_size)
        patchy = radius * rng.uniform(0.1, 0.5) * _noise(rng, shape, spacing_mm, max(radius * 0.5, 4.0))
        dense = (core - distance + 0.6 * rough + patchy).astype(np.float32)
        np.maximum(consolidation[box], np.minimum(dense, level), out=consolidation[box])


def _noise(
    rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: tuple[float, float, float], grain_mm: float
) -> NDArray[np.float64]:
    """Smooth noise with unit-order amplitude whose grain is about ``grain_mm``."""
    steps = [max(grain_mm / s, 1.0) for s in spacing_mm]
    knots = rng.normal(size=[int(n / step) + 3 for n, step in zip(shape, steps, strict=True)])
    where = np.meshgrid(*[np.arange(n) / step for n, step in zip(shape, steps, strict=True)], indexing="ij")
    noise: NDArray[np.float64] = ndimage.map_coordinates(knots, where, order=1, mode="nearest")
    return noise


def paint(
    hu: Array, levels: tuple[Array, Array, Array], field: LesionField, mesh: Array | None
) -> tuple[Array, Array, Array]:
    """Apply lesions to one slice of lung parenchyma with its vessels.

    hu: (rows, columns).  levels: that slice's ground_glass, consolidation (mm) and filling, same shape.
    mesh: the crazy-paving network, 0 to 1, or None.
    Returns (new hu, ground glass coverage, consolidation coverage), coverages 0 to 1; the caller masks them
    to the lungs.
    """
    ground_level, dense_level, filling = levels
    ground = np.clip(0.5 + 0.5 * ground_level / field.edge_mm, 0.0, 1.0)
    dense = np.clip(0.5 + 0.5 * dense_level / 1.2, 0.0, 1.0)
    replaced = np.maximum(ground * filling, dense * 0.97)
    out = hu + (FLUID_HU - hu) * replaced * (hu < FLUID_HU)
    if mesh is not None and field.paving > 0:
        out = out + field.paving * mesh * ground * (1.0 - dense)
    return (
        np.asarray(out, dtype=np.float32),
        (ground_level > 0).astype(np.float32),
        (dense_level > 0).astype(np.float32),
    )
