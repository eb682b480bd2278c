"""A chest CT phantom that a network can learn from.

In: a seed.  Out: a ``Phantom``: Hounsfield units with exact labels of lungs and lesions. The same seed and
arguments always give the same arrays. Needs numpy and scipy only, so that the node's demo can make one.

Anatomy comes from implicit surfaces (``anatomy``), sampled on a coarse grid and interpolated to the pixel
grid; vessels and airways are drawn at full resolution (``vessels``); lesions are added (``lesions``);
planes are averaged over the slice thickness and passed through a scanner model (``scanner``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triton_models.data.anatomy import Anatomy, Array
from triton_models.data.lesions import OUTSIDE_MM, LesionField, Pattern, lesion_field, paint
from triton_models.data.scanner import Reconstruction, Scanner, outside_circle, random_scanner
from triton_models.data.vessels import Tubes, draw_tubes, grow_tree

RIGHT_LUNG, LEFT_LUNG = 1, 2
AIR_HU = -1000.0


@dataclass(frozen=True)
class PhantomMeta:
    """How the phantom was imaged.

    thickness_mm: slice thickness (spacing may be larger or smaller).
    first_position_mm: LPS centre of voxel (0, 0, 0), as ImagePositionPatient of slice 0.
    pattern: lesion pattern, "" when there is none.
    """

    seed: int
    scanner: Scanner
    thickness_mm: float
    first_position_mm: tuple[float, float, float]
    pattern: str


@dataclass(frozen=True)
class Phantom:
    """A generated chest CT; arrays are (slices, rows, columns), head first supine, axial.

    Slices ascend towards the head (LPS +z), rows towards the back (+y), columns to the patient's left (+x).
    hu: int16 Hounsfield units, with the scanner's padding value outside its reconstruction circle.
    lungs: uint8, 0, 1 right, 2 left; lesions belong to the lungs, trachea and effusion don't.
    lesions: uint8, 0, 1 ground glass, 2 consolidation.
    spacing_mm: (slice, row, column).
    """

    hu: NDArray[np.int16]
    lungs: NDArray[np.uint8]
    lesions: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]
    meta: PhantomMeta


def chest_phantom(
    seed: int,
    *,
    slices: int = 40,
    rows: int = 512,
    columns: int = 512,
    spacing_mm: tuple[float, float, float] | None = None,
    thickness_mm: float | None = None,
    lesions: bool | str | Pattern | None = None,
) -> Phantom:
    """Generate a chest CT.

    spacing_mm: (slice, row, column), or None for a random field of view with slices that cover the lungs.
    Rows and columns must be equally spaced.
    thickness_mm: 0.5 to 10; None draws a usual one.
    lesions: True, a pattern, or the name of one of ``lesions.PATTERNS`` for lesions, False for none, None to
    draw.
    Raises ValueError for sizes or spacings that make no CT.
    """
    if slices < 1 or rows < 32 or columns < 32:
        raise ValueError(f"a phantom needs slices >= 1, rows and columns >= 32, got {slices, rows, columns}")
    if spacing_mm is not None and (min(spacing_mm) <= 0 or spacing_mm[1] != spacing_mm[2]):
        raise ValueError(f"spacing_mm must be positive with equal rows and columns, got {spacing_mm}")
    if thickness_mm is not None and not 0.5 <= thickness_mm <= 10.0:
        raise ValueError(f"thickness_mm must lie in 0.5 to 10, got {thickness_mm}")
    return _Builder(seed, (slices, rows, columns), spacing_mm, thickness_mm).build(lesions)


class _Builder:
    """Holds what all slices of one phantom share."""

    def __init__(
        self,
        seed: int,
        shape: tuple[int, int, int],
        spacing_mm: tuple[float, float, float] | None,
        thickness_mm: float | None,
    ) -> None:
        self.seed, self.shape = seed, shape
        self.rng = np.random.default_rng([0x43545048, seed])
        self.anatomy = Anatomy.random(self.rng)
        habitus = self.anatomy.habitus
        low, high = (
            -habitus.sulcus_depth - self.rng.uniform(5, 60),
            habitus.lung_height + self.rng.uniform(5, 40),
        )
        if spacing_mm is None:
            view = 2.0 * habitus.body_half_width * self.rng.uniform(0.92, 1.25)
            spacing_mm = ((high - low) / shape[0], view / max(shape[1:]), view / max(shape[1:]))
        self.spacing = spacing_mm
        usual = [t for t in (1.0, 1.25, 2.0, 2.5, 3.0, 5.0, 8.0) if t <= max(spacing_mm[0], 1.0)]
        self.thickness = float(thickness_mm or self.rng.choice(usual))
        self.scanner = random_scanner(self.rng, self.thickness)
        centre = self.rng.normal(0.0, 9.0, 2)
        extent = [n * s for n, s in zip(shape, spacing_mm, strict=True)]
        self.x = (centre[0] + spacing_mm[2] * (np.arange(shape[2]) - (shape[2] - 1) / 2)).astype(np.float32)
        self.y = (centre[1] + spacing_mm[1] * (np.arange(shape[1]) - (shape[1] - 1) / 2)).astype(np.float32)
        start = (low + high - extent[0]) / 2 + spacing_mm[0] / 2
        self.z = (start + spacing_mm[0] * np.arange(shape[0])).astype(np.float32)
        self._coarse_axes()

    def _coarse_axes(self) -> None:
        """Coarse sampling positions and the matrices that interpolate from them to pixels."""
        per_slice = int(np.clip(round(self.thickness / 2.0), 1, 3))
        offsets = ((np.arange(per_slice) + 0.5) / per_slice - 0.5) * self.thickness
        self.per_slice = per_slice
        self.plane_z = (self.z[:, None] + offsets[None, :]).ravel().astype(np.float32)
        step = max(round(3.2 / self.spacing[1]), 1)
        self.coarse_mm = step * self.spacing[1]
        self.up_rows, self.coarse_y = _interpolator(self.y, step)
        self.up_columns, self.coarse_x = _interpolator(self.x, step)

    def _upsample(self, coarse: Array) -> Array:
        return np.asarray(self.up_rows @ coarse @ self.up_columns.T, dtype=np.float32)

    def build(self, lesions: bool | str | Pattern | None) -> Phantom:
        self._sample_anatomy()
        self._grow_tubes()
        field, pattern = self._place_lesions(lesions)
        table = self._table()
        reconstruct = Reconstruction(self.scanner, self.shape[1:], self.spacing[1])
        outside = outside_circle(self.shape[1:])
        motion = self.rng.random() < 0.15
        hu = np.empty(self.shape, dtype=np.int16)
        lungs = np.zeros(self.shape, dtype=np.uint8)
        found = np.zeros(self.shape, dtype=np.uint8)
        for index in range(self.shape[0]):
            planes = [
                self._plane(index * self.per_slice + sub, table, field) for sub in range(self.per_slice)
            ]
            image, right, left, ground, dense = (
                sum(parts) / self.per_slice for parts in zip(*planes, strict=True)
            )
            if motion:
                image = self._move(image)
            lung = (right + left) > 0.5
            lungs[index] = np.where(lung, np.where(right >= left, RIGHT_LUNG, LEFT_LUNG), 0)
            found[index] = np.where(dense > 0.5, 2, np.where(ground + dense > 0.5, 1, 0)) * lung
            noisy = reconstruct(self.rng, image, self._noise_map(self.z[index]))
            pixels = np.clip(np.rint(noisy), -1024, 3071)
            if self.scanner.padding_hu is not None:
                pixels[outside] = self.scanner.padding_hu
            hu[index] = pixels.astype(np.int16)
        first = (float(self.x[0]), float(self.y[0]), float(self.z[0]))
        meta = PhantomMeta(self.seed, self.scanner, self.thickness, first, pattern)
        return Phantom(hu, lungs, found, self.spacing, meta)

    def _sample_anatomy(self) -> None:
        """Evaluate the implicit surfaces on the coarse grid and derive smooth HU fields."""
        rng, anatomy = self.rng, self.anatomy
        x, y = self.coarse_x[None, None, :], self.coarse_y[None, :, None]
        distance = anatomy.distances(x, y, self.plane_z[:, None, None])
        self._add_effusion(distance)
        self._add_gas(distance, x, y)
        contrast = rng.uniform(120.0, 320.0) if rng.random() < 0.4 else rng.uniform(35.0, 50.0)
        self.vessel_hu = contrast
        muscle, liver = rng.uniform(40.0, 60.0), rng.uniform(45.0, 75.0) + 0.15 * max(contrast - 50.0, 0.0)
        soft = np.full(distance["body"].shape, muscle, dtype=np.float32)
        fat_share = np.clip(-distance["mediastinum"] / 4.0, 0, 1) * rng.uniform(0.2, 1.0)
        soft += fat_share * (-95.0 - soft) * (distance["cavity"] < 0)
        blood = np.minimum(distance["heart"] + 3.0, distance["vessel"] + 1.5)
        for level, value in ((blood, contrast), (distance["abdomen"], liver), (distance["effusion"], 12.0)):
            share = np.clip(0.5 - level / 3.0, 0.0, 1.0)
            soft += share * (value - soft)
        self.soft = soft
        bone = np.minimum.reduce([distance[name] for name in ("rib", "spine", "sternum", "scapula")])
        bone = np.maximum(bone, 1.0 - distance["canal"])
        bone = np.maximum(bone, distance["body"] + 4.0)
        self.bone = np.clip(bone, -9, 9)
        self.disc = np.clip((distance["disc"] - 3.0) / 2.0, 0.0, 1.0)
        self.marrow, self.cortex = rng.uniform(100.0, 260.0), rng.uniform(420.0, 800.0)
        self.body, self.wall = np.clip(distance["body"], -9, 9), np.clip(distance["wall"], -9, 9)
        self.right, self.left = distance["lung_right"], distance["lung_left"]
        self.fissure, self.gas = np.clip(distance["fissure"], 0, 9), np.clip(distance["gas"], -9, 9)
        self.parenchyma = self._parenchyma(distance)

    def _add_effusion(self, distance: dict[str, Array]) -> None:
        """Fluid at the back of the cavity: not lung, not a lesion."""
        effusion = np.full(distance["body"].shape, 99.0, dtype=np.float32)
        if self.rng.random() < 0.2:
            name = "lung_right" if self.rng.random() < 0.5 else "lung_left"
            level = self.rng.uniform(8.0, 45.0)
            top = self.rng.uniform(0.3, 0.9) * self.anatomy.habitus.lung_height
            falling = level * np.clip((top - self.plane_z) / top, 0.0, 1.3) - 2.0
            meniscus = 10.0 * np.exp(distance["cavity"] / 8.0)
            surface = distance["effusion_y"] - meniscus - falling[:, None, None]
            effusion = np.maximum(surface, distance[name])
            distance[name] = np.maximum(distance[name], -surface)
        distance["effusion"] = effusion.astype(np.float32)

    def _add_gas(self, distance: dict[str, Array], x: Array, y: Array) -> None:
        """Gas in stomach and colon under the diaphragm, with a fluid level: looks like lung, isn't."""
        gas = np.full(distance["body"].shape, 99.0, dtype=np.float32)
        z = self.plane_z[:, None, None]
        for side, chance in ((1.0, 0.75), (-1.0, 0.12)):
            if self.rng.random() < chance:
                cx, cy = side * self.rng.uniform(45, 80), self.rng.uniform(-45, 10)
                a, b, c = self.rng.uniform(15, 50), self.rng.uniform(12, 35), self.rng.uniform(15, 40)
                cz = self.rng.uniform(-45.0, -5.0)
                ball = np.sqrt(((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 + ((z - cz) / c) ** 2)
                bubble = np.maximum((ball - 1.0) * min(a, b, c), y - cy - self.rng.uniform(-5, 25))
                gas = np.minimum(gas, np.maximum(bubble, distance["abdomen"] + self.rng.uniform(2.5, 6.0)))
        distance["gas"] = gas.astype(np.float32)

    def _parenchyma(self, distance: dict[str, Array]) -> Array:
        """Aerated lung, HU: denser towards the back, mottled, sometimes with dependent atelectasis."""
        rng = self.rng
        shape = distance["body"].shape
        base, gradient = rng.uniform(-905.0, -800.0), rng.uniform(0.1, 0.75)
        lung = base + gradient * (self.coarse_y[None, :, None] + 20.0)
        if rng.random() < 0.5:
            depth, strength = rng.uniform(4.0, 14.0), rng.uniform(60.0, 260.0)
            lower = np.clip(1.1 - self.plane_z / self.anatomy.habitus.lung_height, 0.2, 1.0)[:, None, None]
            lung = lung + strength * lower * np.exp(-np.maximum(distance["effusion_y"], 0.0) / depth)
        lung = np.broadcast_to(lung, shape).astype(np.float32)
        for grain, amplitude in ((16, rng.uniform(5, 22)), (5, rng.uniform(4, 16)), (2, rng.uniform(3, 14))):
            knots = rng.normal(size=(shape[0], shape[1] // grain + 3, shape[2] // grain + 3))
            if grain > 2:  # coarse mottle continues from plane to plane
                knots = (knots + np.roll(knots, 1, 0) + np.roll(knots, 2, 0)) / np.sqrt(3.0)
            rows = _linear(shape[1], grain, knots.shape[1])
            columns = _linear(shape[2], grain, knots.shape[2])
            lung += (amplitude * (rows @ knots @ columns.T)).astype(np.float32)
        return np.clip(lung, -985.0, -350.0).astype(np.float32)

    def _grow_tubes(self) -> None:
        """Vessels and airways of both lungs, trachea, main bronchi and sometimes an air-filled oesophagus."""
        rng, anatomy = self.rng, self.anatomy
        half_width, half_depth = (float(v) for v in anatomy.cavity_half_axes(np.zeros((), dtype=np.float32)))
        low, high = -anatomy.habitus.sulcus_depth, anatomy.habitus.lung_height
        cloud = rng.uniform(
            [-half_width, -half_depth, low], [half_width, half_depth, high], size=(9000, 3)
        ).astype(np.float32)
        distance = anatomy.distances(*cloud.T)
        carina = anatomy.carina()
        trachea = Tubes(
            carina[None], (carina + np.array([0.0, -14.0, 160.0]))[None], np.array([anatomy.trachea_radius])
        )
        lumen, vessels, nodules = trachea, [], []
        for side, name in ((-1, "lung_right"), (1, "lung_left")):
            inside = cloud[distance[name] < -1.5].astype(np.float64)
            root = anatomy.hilum(side)
            main = Tubes(carina[None], root[None], np.array([anatomy.trachea_radius * 0.68]))
            lumen = lumen + main
            if len(inside) < 60:
                continue
            near = inside[distance[name][distance[name] < -1.5] < -8.0]
            reach = near[np.linalg.norm(near - root, axis=1) < 75.0]
            if len(reach) > 10:
                lumen = lumen + grow_tree(
                    rng, root, reach[: rng.integers(10, 22)], tip_radius_mm=0.9, root_radius_mm=5.0
                )
            count = int(rng.integers(160, 330))
            tip = rng.uniform(0.55, 0.85)
            for part in (inside[:count], inside[count : 2 * count]):
                start = root + rng.normal(0.0, 4.0, 3)
                vessels.append(grow_tree(rng, start, part, tip_radius_mm=tip, root_radius_mm=7.5))
            if rng.random() < 0.3:
                spot = inside[-int(rng.integers(1, 4)) :]
                nodules.append(Tubes(spot, spot + 0.1, rng.uniform(1.5, 4.0, len(spot))))
        if rng.random() < 0.3:
            back = carina + np.array([-6.0, 18.0, -120.0])
            lumen = lumen + Tubes(
                back[None], (back + np.array([0.0, 0.0, 260.0]))[None], rng.uniform(2, 6, 1)
            )
        self.lumen = lumen
        self.airway_wall = Tubes(lumen.start, lumen.end, lumen.radius * 1.12 + rng.uniform(0.4, 0.9))
        self.vessels = Tubes.joined([*vessels, *nodules])

    def _place_lesions(self, lesions: bool | str | Pattern | None) -> tuple[LesionField | None, str]:
        present = self.rng.random() < 0.7 if lesions is None else bool(lesions)
        if not present:
            return None, ""
        spacing = (self.spacing[0] / self.per_slice, self.coarse_mm, self.coarse_mm)
        pattern = lesions if isinstance(lesions, str | Pattern) else None
        field = lesion_field(self.rng, np.minimum(self.right, self.left), spacing, pattern=pattern)
        name = "custom" if isinstance(pattern, Pattern) else pattern or "random"
        return (None if field.empty else field), name

    def _plane(
        self, index: int, table: Array, field: LesionField | None
    ) -> tuple[Array, Array, Array, Array, Array]:
        """One infinitely thin plane: HU and the coverages of right lung, left lung and lesions."""
        pixel = self.spacing[1]
        z = float(self.plane_z[index])
        body = self._upsample(self.body[index])
        wall = self._upsample(self.wall[index])
        tissue = self._upsample(self.soft[index])
        tissue = -100.0 + _inside(wall, pixel) * (tissue + 100.0)
        tissue = np.where(body > -2.0, 15.0, tissue)
        hu = table + _inside(body, pixel) * (tissue - table)
        bone = self._upsample(self.bone[index])
        inner = self.marrow + np.clip(1.0 + (bone + 2.0) / 1.5, 0.0, 1.0) * (self.cortex - self.marrow)
        inner = 80.0 + self._upsample(self.disc[index]) * (inner - 80.0)
        hu += _inside(bone, pixel) * (inner - hu)
        if (self.gas[index] < 2.0).any():
            hu += _inside(self._upsample(self.gas[index]), pixel) * (-960.0 - hu)

        right = _inside(self._upsample(np.clip(self.right[index], -9, 9)), pixel)
        left = _inside(self._upsample(np.clip(self.left[index], -9, 9)), pixel)
        lung = np.maximum(right, left)
        ground = dense = np.zeros_like(hu)
        origin = (float(self.x[0]), float(self.y[0]))
        air, airway_wall = np.zeros_like(hu), np.zeros_like(hu)
        draw_tubes(air, self.lumen, z, origin, pixel)
        draw_tubes(airway_wall, self.airway_wall, z, origin, pixel)
        if lung.any():
            inside = self._upsample(self.parenchyma[index])
            fissure = np.exp(-((self._upsample(self.fissure[index]) / 0.8) ** 2))
            inside += fissure * 90.0
            coverage = np.zeros_like(hu)
            draw_tubes(coverage, self.vessels, z, origin, pixel)
            inside += coverage * (self.vessel_hu - inside)
            inside += airway_wall * (20.0 - inside) * 0.8
            if field is not None and self._near(field, index):
                levels = tuple(
                    self._upsample(part[index])
                    for part in (field.ground_glass, field.consolidation, field.filling)
                )
                mesh = self._mesh() if field.paving > 0 else None
                inside, ground, dense = paint(inside, (levels[0], levels[1], levels[2]), field, mesh)
                if not field.bronchograms:
                    air = air * (1.0 - dense * lung)
            hu += lung * (inside - hu)
            ground, dense = ground * lung, dense * lung
        in_body = _inside(body + 3.0, pixel)
        hu += airway_wall * in_body * (25.0 - hu) * (1.0 - lung)
        hu += air * in_body * (-975.0 - hu)
        return hu, right, left, ground, dense

    def _near(self, field: LesionField, index: int) -> bool:
        highest = max(field.ground_glass[index].max(), field.consolidation[index].max())
        return bool(highest > max(OUTSIDE_MM + 1.0, -field.edge_mm))

    def _mesh(self) -> Array:
        """A fine irregular network: the zero lines of smooth noise."""
        shape = self.shape[1:]
        grain = max(round(3.5 / self.spacing[1]), 2)
        knots = self.rng.normal(size=(shape[0] // grain + 4, shape[1] // grain + 4))
        rows, columns = (_linear(n, grain, k) for n, k in zip(shape, knots.shape, strict=True))
        return np.asarray(np.exp(-((rows @ knots @ columns.T / 0.16) ** 2)), dtype=np.float32)

    def _table(self) -> Array:
        """Air with the patient table, its mattress and sometimes a blanket or tube; same on all slices."""
        rng, habitus = self.rng, self.anatomy.habitus
        x, y = self.x[None, :], self.y[:, None]
        top = habitus.body_half_depth + rng.uniform(1.0, 14.0) + rng.uniform(5e-4, 2.5e-3) * (-(x**2))
        below = y - top - rng.uniform(5.0, 15.0)
        half = rng.uniform(170.0, 230.0)
        air = np.full((len(self.y), len(self.x)), AIR_HU, dtype=np.float32)
        if rng.random() < 0.9:
            thick = rng.uniform(20.0, 60.0)
            core = (below > 0) & (below < thick) & (np.abs(x) < half)
            shell = core & ((below < 2.5) | (below > thick - 2.5))
            air[core] = rng.uniform(-980.0, -850.0)
            air[shell] = rng.uniform(-450.0, 60.0)
        if rng.random() < 0.5:
            air[np.broadcast_to((y > top) & (below < 0) & (np.abs(x) < half), air.shape)] = rng.uniform(
                -970, -800
            )
        for _ in range(int(rng.integers(0, 4))):
            cx, cy = rng.uniform(-190, 190), -habitus.body_half_depth - rng.uniform(3, 40)
            air[np.hypot(x - cx, y - cy) < rng.uniform(1.0, 4.0)] = rng.uniform(-200.0, 600.0)
        return air

    def _noise_map(self, z: float) -> Array:
        """Noise is largest at the centre, where the X-rays pass the most tissue, and at the shoulders."""
        habitus = self.anatomy.habitus
        shoulder = 1.0 + 0.7 * np.clip(z / habitus.lung_height - 0.75, 0.0, 0.5)
        rho = (self.x[None, :] / habitus.body_half_width) ** 2 + (
            self.y[:, None] / habitus.body_half_depth
        ) ** 2
        return np.asarray(shoulder * (0.45 + 0.65 * np.exp(-rho)), dtype=np.float32)

    def _move(self, image: Array) -> Array:
        """Cardiac motion: a doubled contour around the heart."""
        shift = int(self.rng.integers(1, 4))
        weight = 0.5 * np.exp(
            -((self.x[None, :] - 30.0) ** 2 + (self.y[:, None] + 25.0) ** 2) / (2 * 55.0**2)
        )
        moved = np.roll(image, (shift, -shift), (0, 1))
        return np.asarray(image + weight.astype(np.float32) * (moved - image), dtype=np.float32)


def _inside(distance: Array, pixel_mm: float) -> Array:
    """Share of a pixel that lies inside a surface at this signed distance."""
    return np.asarray(np.clip(0.5 - distance / pixel_mm, 0.0, 1.0), dtype=np.float32)


def _interpolator(positions: Array, step: int) -> tuple[Array, Array]:
    """Cubic (Catmull-Rom) matrix from every ``step``-th position to all, and those coarse positions."""
    pixel = float(positions[1] - positions[0])
    count = (len(positions) - 1) // step + 4
    coarse = (float(positions[0]) + pixel * step * (np.arange(count) - 1)).astype(np.float32)
    where = np.arange(len(positions)) / step + 1
    base = np.floor(where).astype(int)
    t = where - base
    weights = (
        -0.5 * t + t**2 - 0.5 * t**3,
        1.0 - 2.5 * t**2 + 1.5 * t**3,
        0.5 * t + 2.0 * t**2 - 1.5 * t**3,
        -0.5 * t**2 + 0.5 * t**3,
    )
    matrix = np.zeros((len(positions), count), dtype=np.float32)
    for offset, weight in zip((-1, 0, 1, 2), weights, strict=True):
        matrix[np.arange(len(positions)), np.clip(base + offset, 0, count - 1)] += weight.astype(np.float32)
    return matrix, coarse


def _linear(count: int, step: int, knots: int) -> NDArray[np.float32]:
    """Linear interpolation matrix (count, knots) from knots that lie ``step`` apart."""
    where = np.arange(count) / step
    base = np.minimum(np.floor(where).astype(int), knots - 2)
    matrix = np.zeros((count, knots), dtype=np.float32)
    matrix[np.arange(count), base] = (1.0 - (where - base)).astype(np.float32)
    matrix[np.arange(count), base + 1] = (where - base).astype(np.float32)
    return matrix
