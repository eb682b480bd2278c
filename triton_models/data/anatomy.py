"""Random chest anatomy as implicit surfaces.

In: a random generator.  Out: an ``Anatomy`` whose ``distances`` gives, for any points in millimetres,
approximate signed distances (mm, negative inside) to body, pleural cavities, lungs, heart, bones and so on.

Coordinates are patient LPS millimetres about the thorax centre: x to the patient's left, y to posterior,
z to superior; z = 0 is the level of the right diaphragm dome, z = ``lung_height`` the lung apex. Because
the surfaces are functions and not voxels, the phantom samples them at any slice thickness and pixel size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Habitus:
    """One patient's proportions. Lengths in mm, angles in radians.

    body_half_width, body_half_depth: the trunk at mid-chest, skin surface.
    fat: subcutaneous fat thickness.  wall: muscle and rib layer between fat and pleura.
    lung_height: dome of the right diaphragm to the apex.
    mediastinum_half_width: of the central column at mid-height.
    heart_scale: 1.0 is about 130 mm wide.
    """

    body_half_width: float
    body_half_depth: float
    fat: float
    wall: float
    lung_height: float
    mediastinum_half_width: float
    heart_scale: float
    right_dome_lift: float
    sulcus_depth: float
    squareness: float
    rib_phase: float
    rib_pitch: float
    rib_slope: float
    arms_down: bool
    breasts: float
    tilt: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> Habitus:
        half_width = rng.uniform(145.0, 205.0)
        return cls(
            body_half_width=half_width,
            body_half_depth=half_width * rng.uniform(0.60, 0.74),
            fat=rng.uniform(4.0, 10.0) + max(0.0, half_width - 150.0) * rng.uniform(0.1, 0.4),
            wall=rng.uniform(13.0, 21.0),
            lung_height=rng.uniform(175.0, 265.0),
            mediastinum_half_width=rng.uniform(22.0, 34.0),
            heart_scale=rng.uniform(0.8, 1.25),
            right_dome_lift=rng.uniform(0.0, 22.0),
            sulcus_depth=rng.uniform(35.0, 85.0),
            squareness=rng.uniform(2.05, 2.7),
            rib_phase=rng.uniform(0.0, 1.0),
            rib_pitch=rng.uniform(23.0, 30.0),
            rib_slope=rng.uniform(18.0, 36.0),
            arms_down=rng.random() < 0.12,
            breasts=rng.uniform(15.0, 45.0) if rng.random() < 0.4 else 0.0,
            tilt=rng.normal(0.0, 0.05),
        )


@dataclass(frozen=True)
class Anatomy:
    """The implicit surfaces of one patient."""

    habitus: Habitus
    warp_waves: NDArray[np.float64]  # (n, 7): wave vector (rad/mm), phase, displacement along x y z (mm)
    scoliosis: tuple[float, float]
    fissure_offset: tuple[float, float, float]
    trachea_radius: float
    spine_depth: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> Anatomy:
        habitus = Habitus.random(rng)
        count = 10
        wavelength = rng.uniform(55.0, 220.0, count)
        direction = rng.normal(size=(count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        amplitude = rng.normal(size=(count, 3)) * (wavelength / 220.0)[:, None] * rng.uniform(1.0, 3.2)
        waves = np.concatenate(
            [
                direction * (2 * np.pi / wavelength)[:, None],
                rng.uniform(0, 2 * np.pi, (count, 1)),
                amplitude,
            ],
            axis=1,
        )
        return cls(
            habitus=habitus,
            warp_waves=waves,
            scoliosis=(float(rng.normal(0, 6.0)), float(rng.uniform(0, 2 * np.pi))),
            fissure_offset=(float(rng.normal(0, 12)), float(rng.normal(0, 12)), float(rng.normal(0, 10))),
            trachea_radius=float(rng.uniform(7.0, 10.5)),
            spine_depth=float(rng.uniform(20.0, 28.0)),
        )

    def cavity_half_axes(self, z: Array) -> tuple[Array, Array]:
        """Half-width and half-depth (mm) of the pleural cavity's outline at level z."""
        h = self.habitus
        width0 = h.body_half_width - h.fat - h.wall
        depth0 = h.body_half_depth - h.fat - h.wall
        t = z / h.lung_height
        taper = np.clip((t - 0.35) / 0.75, 0.0, 1.0) ** 1.7
        flare = np.clip((0.3 - t) / 0.9, 0.0, 1.0)
        width = width0 * (1.0 - 0.50 * taper - 0.06 * flare)
        depth = depth0 * (1.0 - 0.40 * taper + 0.03 * flare)
        return width.astype(np.float32), depth.astype(np.float32)

    def carina(self) -> NDArray[np.float64]:
        """LPS mm of the tracheal bifurcation."""
        depth = self.habitus.body_half_depth - self.habitus.fat - self.habitus.wall
        return np.array([2.0, 0.16 * depth, 0.60 * self.habitus.lung_height])

    def hilum(self, side: int) -> NDArray[np.float64]:
        """LPS mm of the lung root; side is -1 (right) or +1 (left)."""
        carina = self.carina()
        reach = self.habitus.mediastinum_half_width + 17.0
        return np.asarray(carina + np.array([side * reach, 4.0, -26.0 if side < 0 else -22.0]))

    def distances(self, x: Array, y: Array, z: Array) -> dict[str, Array]:
        """Approximate signed distances in mm (negative inside) at broadcastable LPS points.

        Keys: body, wall (inside of the fat layer), cavity, lung_right, lung_left, mediastinum, heart,
        abdomen, fissure (unsigned), rib, spine, canal, sternum, scapula, vessel (great vessels), effusion_y
        (height above the back of the cavity, mm) and disc (periodic coordinate along the spine).
        """
        h = self.habitus
        x, y, z = self._warp(x, y, z)
        spine_x = self.scoliosis[0] * np.sin(2 * np.pi * z / 500.0 + self.scoliosis[1])
        x = x - spine_x.astype(np.float32)
        t = z / h.lung_height
        out: dict[str, Array] = {}

        shoulder = np.clip((t - 0.72) / 0.45, 0.0, 1.0) ** 1.5
        a = h.body_half_width * (1.0 + 0.14 * shoulder)
        b = h.body_half_depth * (1.0 - 0.16 * shoulder)
        out["body"] = _radial(x, y, a, b, h.squareness)
        out["wall"] = _radial(x, y, a - h.fat, b - h.fat * 0.8, h.squareness)
        if h.breasts > 0:
            bulge = np.minimum(
                _ellipsoid(x - 80.0, y + b - 5.0, z - 0.35 * h.lung_height, 55.0, h.breasts, 55.0),
                _ellipsoid(x + 80.0, y + b - 5.0, z - 0.35 * h.lung_height, 55.0, h.breasts, 55.0),
            )
            out["body"] = _smooth_min(out["body"], bulge, 8.0)
        if h.arms_down:
            for side in (-1.0, 1.0):
                arm = np.hypot((x - side * (h.body_half_width + 42.0)) / 1.1, y - 15.0) - 38.0
                out["body"] = np.minimum(out["body"], arm)
                out["wall"] = np.minimum(out["wall"], arm + 7.0)

        half_width, half_depth = self.cavity_half_axes(z)
        spine_y = half_depth - self.spine_depth
        # paravertebral gutters: the posterior wall is deeper beside the spine than behind it
        out["cavity"] = _radial(x, y, half_width, half_depth, h.squareness)
        self._mediastinum(out, x, y, z, spine_y)
        dome = self._diaphragm(x, y, half_width, half_depth)
        for side, name in ((-1.0, "lung_right"), (1.0, "lung_left")):
            cap_z = h.lung_height - ((x - side * 48.0) ** 2 + (y - 12.0) ** 2) / 42.0
            lung = np.maximum(out["cavity"], -out["mediastinum"])
            lung = np.maximum(lung, (dome[side] - z) * 0.8)
            lung = np.maximum(lung, (z - cap_z) * 0.5)
            out[name] = np.maximum(lung, 1.5 - side * x).astype(np.float32)
        out["abdomen"] = np.maximum(
            out["cavity"], (z - np.where(x < 0, dome[-1.0], dome[1.0])) * 0.8 + 1.0
        ).astype(np.float32)
        out["effusion_y"] = (half_depth - y).astype(np.float32)

        right, left, minor = self.fissure_offset
        major = np.where(
            x < 0,
            z - (0.45 * h.lung_height + right) - 0.95 * (y - 5.0),
            z - (0.48 * h.lung_height + left) - 1.05 * (y - 5.0),
        )
        horizontal = np.where((x < 0) & (major < 0), z - 0.52 * h.lung_height - minor - 0.1 * y, 99.0)
        out["fissure"] = np.minimum(np.abs(major) * 0.7, np.abs(horizontal)).astype(np.float32)
        self._bones(out, (x, y, z), half_depth, spine_y)
        return out

    def _warp(self, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
        """A smooth random deformation of space, so that nothing is a perfect ellipse."""
        cos, sin = np.cos(self.habitus.tilt), np.sin(self.habitus.tilt)
        x, y = cos * x + sin * y, cos * y - sin * x
        dx, dy = np.zeros_like(x + y + z), np.zeros_like(x + y + z)
        dz = np.zeros_like(dx)
        for kx, ky, kz, phase, ax, ay, az in self.warp_waves.astype(np.float32):
            wave = np.sin(kx * x + ky * y + kz * z + phase)
            dx += ax * wave
            dy += ay * wave
            dz += az * wave
        return x + dx, y + dy, z + dz

    def _mediastinum(self, out: dict[str, Array], x: Array, y: Array, z: Array, spine_y: Array) -> None:
        h = self.habitus
        height = h.lung_height
        carina = self.carina()
        # the column is narrow in front (junction line) and wide at the great vessels
        anterior = np.clip((-y) / 90.0, 0.0, 1.0)
        column = np.abs(x) - h.mediastinum_half_width * (1.0 - 0.75 * anterior)
        s = h.heart_scale
        turned_x, turned_y = 0.86 * (x - 22.0) + 0.5 * (y + 28.0), 0.86 * (y + 28.0) - 0.5 * (x - 22.0)
        heart = _ellipsoid(turned_x, turned_y, z - 0.20 * height, 64.0 * s, 45.0 * s, 58.0 * s)
        arch = _ellipsoid(x - 12.0, y - 4.0, z - 0.72 * height, 15.0, 38.0, 13.0)
        descending = np.hypot(x - 24.0, y - (spine_y - 14.0)) - 12.5
        descending = np.maximum(descending, z - 0.72 * height)
        ascending = np.maximum(np.hypot(x + 8.0, y + 26.0) - 15.0, np.abs(z - 0.55 * height) - 0.17 * height)
        cava = np.maximum(np.hypot(x + 22.0, y + 12.0) - 9.0, 0.35 * height - z)
        trunk = _ellipsoid(x - 16.0, y + 14.0, z - 0.52 * height, 24.0, 13.0, 14.0)
        vessel = np.minimum.reduce([arch, descending, ascending, cava, trunk])
        hila = [
            _ellipsoid(x - p[0] + side * 8.0, y - p[1] + 2.0, z - p[2], 17.0, 13.0, 22.0)
            for side in (-1, 1)
            for p in (self.hilum(side),)
        ]
        spine = np.hypot(x / 1.15, y - spine_y) - 19.0
        behind = np.maximum(np.abs(x) - 17.0, spine_y - y)
        soft = _smooth_min(column, heart, 10.0)
        soft = _smooth_min(soft, np.minimum(vessel, np.minimum(*hila)), 5.0)
        soft = np.minimum(soft, np.minimum(spine, behind))
        trachea_top = np.hypot(x - carina[0], (y - carina[1]) * 0.9) - (self.trachea_radius + 3.0)
        out["mediastinum"] = np.minimum(soft, np.maximum(trachea_top, carina[2] - z)).astype(np.float32)
        out["heart"] = heart.astype(np.float32)
        out["vessel"] = vessel.astype(np.float32)

    def _diaphragm(self, x: Array, y: Array, half_width: Array, half_depth: Array) -> dict[float, Array]:
        """Height (mm) of the diaphragm under each lung: domes that fall off to deep posterior sulci."""
        h = self.habitus
        domes = {}
        for side, lift in ((-1.0, 0.0), (1.0, -h.right_dome_lift)):
            across = (x - side * 0.52 * half_width) / (0.50 * half_width)
            along = (y + 0.15 * half_depth) / (1.05 * half_depth)
            # the dome runs on over the midline (central tendon) and barely falls off in front
            medial = np.where(side * across < 0, 0.3, 1.0)
            fall = medial * across**2 + np.where(along > 0, 1.25, 0.2) * along**2
            domes[side] = (lift - h.sulcus_depth * np.clip(fall, 0.0, 2.2)).astype(np.float32)
        return domes

    def _bones(
        self, out: dict[str, Array], point: tuple[Array, Array, Array], half_depth: Array, spine_y: Array
    ) -> None:
        h, (x, y, z) = self.habitus, point
        # a rib runs down from the spine to the front: its level is a function of the angle from posterior
        angle = np.abs(np.arctan2(x, y))
        turn = (z + h.rib_slope * angle) / h.rib_pitch + h.rib_phase
        along_z = (turn - np.floor(turn) - 0.5) * h.rib_pitch
        across = out["cavity"] - 6.0
        rib = (np.hypot(along_z / 6.0, across / 4.2) - 1.0) * 4.2
        cartilage_front = (angle - 2.45) * 60.0
        rib = np.maximum(rib, cartilage_front)
        rib = np.maximum(rib, z - 1.08 * h.lung_height)
        out["rib"] = rib.astype(np.float32)
        body = (np.hypot(x / 21.0, (y - spine_y) / 16.0) - 1.0) * 16.0
        arch = (np.hypot(x / 15.0, (y - spine_y - 24.0) / 13.0) - 1.0) * 13.0
        process = np.maximum(np.abs(x) - 3.5, np.abs(y - spine_y - 45.0) - 14.0)
        transverse = np.maximum(np.abs(x) - 33.0, np.abs(y - spine_y - 22.0) - 4.0)
        phase = z / 24.0 + h.rib_phase
        disc = np.abs(phase - np.floor(phase) - 0.5) * 24.0  # 0 at the disc's middle, 12 at mid-vertebra
        posterior = np.minimum(np.minimum(arch, process), np.maximum(transverse, 5.0 - disc))
        out["spine"] = np.minimum(body, posterior).astype(np.float32)
        out["disc"] = np.where(body < 0, disc, 12.0).astype(np.float32)
        out["canal"] = (np.hypot(x, y - spine_y - 22.0) - 8.5).astype(np.float32)
        front = -half_depth - 6.0
        sternum = (np.hypot(x / 17.0, (y - front) / 5.5) - 1.0) * 5.5
        sternum = np.maximum(sternum, np.abs(z - 0.52 * h.lung_height) - 0.38 * h.lung_height)
        clavicle_x = np.abs(x)
        clavicle = np.hypot((y + 0.5 * half_depth + 0.18 * clavicle_x) / 6.0, (z - h.lung_height) / 7.0) - 1.0
        clavicle = np.maximum(clavicle * 6.0, np.abs(clavicle_x - 75.0) - 55.0)
        out["sternum"] = np.minimum(sternum, clavicle).astype(np.float32)
        # blade, hugging the posterolateral wall in the upper half
        reach = out["cavity"] - 24.0 - 6.0 * np.sin(3.0 * angle)
        blade = np.maximum(np.abs(reach) - 2.8, np.abs(angle - 1.05) * 110.0 - 48.0)
        blade = np.maximum(blade, np.abs(z - 0.74 * h.lung_height) - 0.26 * h.lung_height)
        head = np.hypot(np.abs(x) - 0.98 * h.body_half_width, y - 12.0)
        humerus = np.maximum(head - 21.0, np.abs(z - h.lung_height) - 30.0)
        out["scapula"] = np.minimum(blade, humerus).astype(np.float32)


def _radial(x: Array, y: Array, a: Array | float, b: Array | float, power: float) -> Array:
    """Distance (mm) along the ray from the centre to a superellipse with half-axes a, b."""
    rho = ((np.abs(x) / a) ** power + (np.abs(y) / b) ** power) ** (1.0 / power)
    radius = np.hypot(x, y)
    return np.asarray(radius - radius / np.maximum(rho, 1e-3), dtype=np.float32)


def _ellipsoid(x: Array, y: Array, z: Array, *half_axes: float) -> Array:
    """Approximate signed distance (mm) to an axis-aligned ellipsoid."""
    a, b, c = half_axes
    level = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    return np.asarray((level - 1.0) * min(a, b, c), dtype=np.float32)


def _smooth_min(first: Array, second: Array, width: float) -> Array:
    """Union of two implicit surfaces, rounded over ``width`` mm."""
    blend = np.clip(0.5 + 0.5 * (second - first) / width, 0.0, 1.0)
    return np.asarray(second + (first - second) * blend - width * blend * (1.0 - blend), dtype=np.float32)
