"""Training volumes at the working grid of 3D networks.

In: phantoms, or real series with pasted lesions, in HU with labels.  Out: ``WorkingVolume``s of ``GRID``
voxels, resized as the served ONNX graph does it: bilinear to twice the grid in the plane, averaged to the
grid (a plain bilinear step from 512 to 128 pixels would leave out most of a slice), linear across slices.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from triton_models.data.boxes import Components, components
from triton_models.data.phantom import Phantom, chest_phantom
from triton_models.data.slices import resize_weights
from triton_models.registry import HU_RANGE

#: slices, rows, columns of the working grid
GRID = (64, 128, 128)
#: never those of validation (``slices.VALIDATION_SEEDS``) or test (``slices.TEST_SEEDS``)
VOLUME_SEEDS = range(2000, 2160)
#: phantoms to learn from are this many pixels wide; a network sees a quarter of them at most
PHANTOM_PIXELS = 256


@dataclass(frozen=True)
class WorkingVolume:
    """hu: int16 GRID.  numbers: uint8 GRID, 0 or 1 + index of a lesion component.
    counts: bool (components,), whether it must be found."""

    hu: NDArray[np.int16]
    numbers: NDArray[np.uint8]
    counts: NDArray[np.bool_]


def slice_count(seed: int) -> int:
    """How many slices a phantom of that seed has where nothing else is said: 28 to 84."""
    return int(np.random.default_rng([0x534C, seed]).integers(28, 85))


def volume_phantom(seed: int, pixels: int = 512) -> Phantom:
    """The phantom of that seed for 3D networks, with ``slice_count`` slices of pixels x pixels."""
    return chest_phantom(seed, slices=slice_count(seed), rows=pixels, columns=pixels)


def to_grid(hu: NDArray[np.int16], found: Components) -> WorkingVolume:
    """hu: (slices, rows, columns). A component that no voxel of the grid would show keeps one."""
    depth, height, width = GRID
    rows, columns = resize_weights(hu.shape[1], 2 * height), resize_weights(hu.shape[2], 2 * width)
    small = np.empty((len(hu), height, width), dtype=np.float32)
    for index, plane in enumerate(hu):
        twice = rows @ np.clip(plane, *HU_RANGE).astype(np.float32) @ columns.T
        small[index] = twice.reshape(height, 2, width, 2).mean(axis=(1, 3))
    grid = np.tensordot(resize_weights(len(hu), depth), small, axes=(1, 0))
    centres = [((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(GRID, hu.shape, strict=True)]
    numbers = found.numbers[np.ix_(*centres)]
    for missing in sorted(set(range(1, len(found) + 1)) - set(np.unique(numbers).tolist())):
        box = found.boxes[missing - 1]
        middle = (box[:3] + box[3:]) / 2.0 * np.asarray(GRID) / np.asarray(hu.shape)
        numbers[tuple(np.minimum(middle.astype(int), np.asarray(GRID) - 1))] = missing
    return WorkingVolume(np.rint(grid).astype(np.int16), numbers, found.counts)


def phantom_volume(seed: int, cache: Path | None = None) -> WorkingVolume:
    """One phantom at the grid, read from ``cache`` when an earlier run left it there."""
    path = cache / f"volume_{seed}.npz" if cache else None
    if path is not None and path.exists():
        with np.load(path) as stored:
            return WorkingVolume(stored["hu"], stored["numbers"], stored["counts"])
    phantom = volume_phantom(seed, PHANTOM_PIXELS)
    volume = to_grid(phantom.hu, components(phantom.lesions, phantom.spacing_mm))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp.npz")
        np.savez(partial, hu=volume.hu, numbers=volume.numbers, counts=volume.counts)
        partial.replace(path)
    return volume


def phantom_volumes(
    seeds: Iterable[int], cache: Path | None = None, *, processes: int = 2
) -> list[WorkingVolume]:
    """Several phantoms; those that aren't in the cache are made by ``processes`` processes."""
    wanted = list(seeds)
    missing = [s for s in wanted if cache is None or not (cache / f"volume_{s}.npz").exists()]
    if processes <= 1 or len(missing) <= 1:
        return [phantom_volume(seed, cache) for seed in wanted]
    # spawn: a forked child would inherit torch's thread pools in an unusable state
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(phantom_volume, wanted, [cache] * len(wanted)))
