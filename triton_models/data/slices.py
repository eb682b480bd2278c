"""Training slices at the networks' resolution.

In: phantoms (or any CT in HU with labels).  Out: ``Slices`` of ``NETWORK_SIZE`` squared pixels, made by the
same linear interpolation that the served ONNX graph does, so that training sees what serving sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from triton_models.data.phantom import chest_phantom
from triton_models.data.phantom_cache import Arrays, cached_arrays, each_phantom
from triton_models.registry import HU_RANGE, NETWORK_SIZE

IGNORE = 255
#: seeds of the phantoms; the three sets never meet
TRAIN_SEEDS, VALIDATION_SEEDS, TEST_SEEDS = range(1000, 1200), range(8000, 8012), range(9000, 9012)
SLICES_PER_PHANTOM = 24


@dataclass(frozen=True)
class Slices:
    """n labelled slices, arrays (n, size, size), size NETWORK_SIZE unless something else is said.

    hu: int16.  lungs: uint8, 0, 1 or IGNORE.  lesions: uint8, 0, 1 ground glass, 2 consolidation, UNTYPED
    (``data.labelled_2d``) or IGNORE.
    """

    hu: NDArray[np.int16]
    lungs: NDArray[np.uint8]
    lesions: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.hu)

    def __post_init__(self) -> None:
        if not self.hu.shape == self.lungs.shape == self.lesions.shape:
            raise ValueError(f"shapes differ: {self.hu.shape}, {self.lungs.shape}, {self.lesions.shape}")

    @staticmethod
    def concatenate(parts: Sequence[Slices]) -> Slices:
        return Slices(
            np.concatenate([part.hu for part in parts]),
            np.concatenate([part.lungs for part in parts]),
            np.concatenate([part.lesions for part in parts]),
        )


def resize_weights(source: int, target: int) -> NDArray[np.float32]:
    """(target, source) matrix of ONNX Resize "linear" with half-pixel centres, no anti-aliasing."""
    where = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    base = np.minimum(np.floor(where).astype(int), max(source - 2, 0))
    matrix = np.zeros((target, source), dtype=np.float32)
    matrix[np.arange(target), base] += (1.0 - (where - base)).astype(np.float32)
    matrix[np.arange(target), np.minimum(base + 1, source - 1)] += (where - base).astype(np.float32)
    return matrix


def to_network_size(
    hu: NDArray[np.int16], lungs: NDArray[np.uint8], lesions: NDArray[np.uint8], size: int = NETWORK_SIZE
) -> Slices:
    """Clip to HU_RANGE and resize (n, rows, columns) arrays to (n, size, size).

    A label wins a pixel when labels cover more than half of it and it covers the most.
    """
    rows, columns = resize_weights(hu.shape[1], size), resize_weights(hu.shape[2], size)

    def shrink(image: NDArray[np.generic]) -> NDArray[np.float32]:
        return np.asarray(rows @ image.astype(np.float32) @ columns.T, dtype=np.float32)

    def labels(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        out = np.zeros((size, size), dtype=np.uint8)
        values = [int(v) for v in np.unique(image) if v != 0]
        if values:
            shares = np.stack([shrink(image == value) for value in values])
            winner = np.asarray(values, dtype=np.uint8)[shares.argmax(0)]
            out = np.where(shares.sum(0) > 0.5, winner, 0).astype(np.uint8)
        return out

    return Slices(
        np.stack([np.rint(shrink(np.clip(plane, *HU_RANGE))).astype(np.int16) for plane in hu]),
        np.stack([labels(plane) for plane in np.where(lungs == IGNORE, IGNORE, lungs > 0).astype(np.uint8)]),
        np.stack([labels(plane) for plane in lesions]),
    )


def phantom_slices(seed: int, cache: Path | None = None) -> Slices:
    """One phantom's slices, read from ``cache`` when an earlier run left them there."""

    def make() -> Arrays:
        phantom = chest_phantom(seed, slices=SLICES_PER_PHANTOM)
        slices = to_network_size(phantom.hu, phantom.lungs, phantom.lesions)
        return {"hu": slices.hu, "lungs": slices.lungs, "lesions": slices.lesions}

    return Slices(**cached_arrays(cache, f"phantom_{seed}", make))


def phantom_set(seeds: Iterable[int], cache: Path | None = None, *, processes: int = 2) -> Slices:
    """All slices of several phantoms, made by ``processes`` processes."""
    return Slices.concatenate(each_phantom(phantom_slices, seeds, cache, processes=processes))
