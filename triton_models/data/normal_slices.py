"""Slices without disease, windows of them, and masks like lesions, to learn filling in (Deng et al. 2021).

In: phantoms without lesions and series with their lungs.  Out: ``NormalSlices``, ``Windows``. numpy and scipy
only.

The paper crops 512 x 512 slices and scales them to 128 x 128. Here a window is a square of 128 to 512 pixels,
scaled to 128 x 128 by averaging: from the lesion's surroundings as they were scanned to the whole slice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.inpaint import WINDOW, to_window
from triton_models.data.phantom import chest_phantom
from triton_models.data.phantom_cache import Arrays, cached_arrays
from triton_models.data.slices import resize_weights

#: seeds of the phantoms, met by no other set
TRAIN_SEEDS, VALIDATION_SEEDS, TEST_SEEDS = range(40000, 40064), range(48000, 48006), range(49000, 49048)
SLICES_PER_PHANTOM = 8
SMALLEST_LUNG = 0.03  # share of a slice or window; less is no place for a lesion
BLOBS = (1, 3)
RADIUS = (4.0, 24.0)  # of a blob, pixels of the window
BEYOND_LUNG = 2  # pixels that a mask may reach into the pleura
SMALLEST_MASK = 30  # pixels
PLACES = 4  # pixels between the points that a window may be placed at


@dataclass(frozen=True)
class NormalSlices:
    """n square slices, arrays (n, side, side).  hu: int16.  lungs: bool.  group: (n,), of one patient."""

    hu: NDArray[np.int16]
    lungs: NDArray[np.bool_]
    group: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.hu)

    @staticmethod
    def with_lungs(hu: NDArray[np.int16], lungs: NDArray[np.bool_], group: str) -> NormalSlices:
        """Those slices that show enough lung."""
        keep = lungs.mean(axis=(1, 2)) > SMALLEST_LUNG
        return NormalSlices(hu[keep], lungs[keep], (group,) * int(keep.sum()))

    @staticmethod
    def concatenate(parts: Sequence[NormalSlices]) -> NormalSlices:
        return NormalSlices(
            np.concatenate([part.hu for part in parts]),
            np.concatenate([part.lungs for part in parts]),
            tuple(group for part in parts for group in part.group),
        )


@dataclass(frozen=True)
class Windows:
    """n windows, arrays (n, WINDOW, WINDOW).  hu: int16.  mask: uint8, 1 where to fill in."""

    hu: NDArray[np.int16]
    mask: NDArray[np.uint8]


def phantom_normal(seed: int, cache: Path | None = None) -> NormalSlices:
    """One phantom without lesions, read from ``cache`` when an earlier run left it there."""

    def make() -> Arrays:
        rng = np.random.default_rng([0x4E4F524D, seed])
        thickness = float(rng.choice([1.0, 1.25, 2.0, 2.5, 3.0, 5.0]))
        phantom = chest_phantom(seed, slices=SLICES_PER_PHANTOM, thickness_mm=thickness, lesions=False)
        normal = NormalSlices.with_lungs(phantom.hu, phantom.lungs > 0, str(seed))
        return {"hu": normal.hu, "lungs": normal.lungs}

    arrays = cached_arrays(cache, f"normal_{SLICES_PER_PHANTOM}_{seed}", make)
    return NormalSlices(arrays["hu"], arrays["lungs"], (str(seed),) * len(arrays["hu"]))


def phantom_normals(seeds: Iterable[int], cache: Path | None = None) -> NormalSlices:
    return NormalSlices.concatenate([phantom_normal(seed, cache) for seed in seeds])


def cut_window(plane: NDArray[np.generic], top: int, left: int, side: int) -> NDArray[np.float32]:
    """A square of a slice, averaged to WINDOW x WINDOW."""
    return to_window(plane[top : top + side, left : left + side])


def lesion_mask(lung: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Ragged blobs in the lungs of one window, (WINDOW, WINDOW); all zero where there is no room for one."""
    places = np.argwhere(lung)
    mask = np.zeros(lung.shape, dtype=bool)
    if not len(places):
        return mask.astype(np.uint8)
    rows, columns = np.ogrid[: lung.shape[0], : lung.shape[1]]
    spread = resize_weights(9, len(lung))
    for row, column in places[rng.integers(len(places), size=rng.integers(*BLOBS, endpoint=True))]:
        radius = rng.uniform(*RADIUS)
        ragged = spread @ rng.normal(size=(9, 9)) @ spread.T
        turn, stretch = rng.uniform(0, np.pi), rng.uniform(0.6, 1.0)
        u = np.cos(turn) * (rows - row) + np.sin(turn) * (columns - column)
        v = (np.cos(turn) * (columns - column) - np.sin(turn) * (rows - row)) / stretch
        mask |= np.hypot(u, v) < radius * (1.0 + 0.25 * ragged)
    mask &= ndimage.binary_dilation(lung, iterations=BEYOND_LUNG)
    return np.asarray(mask & (mask.sum() >= SMALLEST_MASK), dtype=np.uint8)


def random_windows(
    slices: NormalSlices, count: int, rng: np.random.Generator, sides: tuple[int, int] | None = None
) -> tuple[Windows, tuple[str, ...]]:
    """Windows with masks, and the group of each.

    sides: smallest and largest side in pixels of the slice, log-uniform; None for WINDOW to the whole slice.
    Each shows enough lung and has something to fill in.
    """
    size = slices.hu.shape[-1]
    smallest, largest = sides or (min(WINDOW, size), size)
    hu: list[NDArray[np.int16]] = []
    masks: list[NDArray[np.uint8]] = []
    groups: list[str] = []
    while len(hu) < count:
        index = int(rng.integers(len(slices)))
        side = round(np.exp(rng.uniform(np.log(smallest), np.log(largest))))
        places = np.argwhere(slices.lungs[index, ::PLACES, ::PLACES]) * PLACES
        middle = places[rng.integers(len(places))] + rng.integers(-side // 4, side // 4 + 1, 2)
        top, left = (int(v) for v in np.clip(middle - side // 2, 0, size - side))
        lung = cut_window(slices.lungs[index], top, left, side) > 0.5
        mask = lesion_mask(lung, rng)
        if lung.mean() > SMALLEST_LUNG and mask.any():
            hu.append(np.rint(cut_window(slices.hu[index], top, left, side)).astype(np.int16))
            masks.append(mask)
            groups.append(slices.group[index])
    return Windows(np.stack(hu), np.stack(masks)), tuple(groups)
