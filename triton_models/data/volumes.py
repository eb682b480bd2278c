"""Training volumes at the working grid of 3D networks.

In: phantoms, or real series with pasted lesions, in HU with labels.  Out: ``WorkingVolume``s of ``GRID``
voxels, resized as the served ONNX graph does it: bilinear to twice the grid in the plane, averaged to the
grid (a plain bilinear step from 512 to 160 pixels would leave out most of a slice), linear across slices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from triton_models.data.boxes import Components, components
from triton_models.data.phantom import Phantom, chest_phantom
from triton_models.data.phantom_cache import Arrays, cached_arrays, each_phantom
from triton_models.data.slices import resize_weights
from triton_models.registry import HU_RANGE, MODELS
from triton_models.served.detection import GRID_SLICES

#: slices, rows, columns of the working grid
GRID = (GRID_SLICES, MODELS["candidates"].network_size, MODELS["candidates"].network_size)
#: never those of validation (from 8000 on) or test (from 9000 on), as in ``slices``
VOLUME_SEEDS = range(2000, 2400)
#: phantoms to learn from are as many pixels wide as scans are: fewer, and what is left of the noise at the
#: working grid is about twice that of a scan
PHANTOM_PIXELS = 512


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

    def make() -> Arrays:
        phantom = volume_phantom(seed, PHANTOM_PIXELS)
        volume = to_grid(phantom.hu, components(phantom.lesions, phantom.spacing_mm))
        return {"hu": volume.hu, "numbers": volume.numbers, "counts": volume.counts}

    return WorkingVolume(**cached_arrays(cache, f"volume_{PHANTOM_PIXELS}_{GRID[1]}_{seed}", make))


def phantom_volumes(
    seeds: Iterable[int], cache: Path | None = None, *, processes: int = 2
) -> list[WorkingVolume]:
    """Several phantoms, made by ``processes`` processes."""
    return each_phantom(phantom_volume, seeds, cache, processes=processes)
