"""Slices that teach a classifier's body what lungs and infiltrates look like, before it sees any class.

In: phantoms, CC BY series with pasted opacities, and labelled pictures where they are given.  Out: batches of
lung windows with masks. Level and width of a window are drawn by chance, as pictures in papers differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from triton_models.data.grey import GREY_HU
from triton_models.data.labelled_2d import UNTYPED, read_labelled_2d
from triton_models.data.phantom import chest_phantom
from triton_models.data.phantom_cache import Arrays, cached_arrays, each_phantom
from triton_models.data.real import load_real
from triton_models.data.slices import IGNORE, resize_weights

#: seeds of the phantoms, met by no other set, and how they are made
SEEDS = range(62000, 62240)
SLICES, SIDE = 12, 256
SMALLEST_LUNG = 0.02  # share of the slice
SIZE = 192  # pixels a side of what is kept; batches are samples of it
BODY_HU, BODY_SHARE = -300, 0.1  # a row or column is of the body when so much of it is denser
PHANTOM_SHARE, REAL_SHARE = 7 / 16, 4 / 16  # the rest of a batch are labelled pictures, if there are any
LESION_SHARE = 0.75  # of the phantoms' slices that have lesions
PASTED_SHARE = 0.6  # of real slices that get opacities
SOFT_TISSUE_SHARE = 0.07  # of windows in which no ground glass can be seen


@dataclass(frozen=True)
class TaughtSlices:
    """hu: int16 (n, SIZE, SIZE), cropped to the body.  masks: uint8 (n, 3, SIZE, SIZE): lungs, lesion,
    consolidation; 0, 1 or IGNORE."""

    hu: NDArray[np.int16]
    masks: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.hu)


def _cropped(hu: NDArray[np.int16], masks: NDArray[np.uint8]) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """One slice (rows, columns) and its masks (3, rows, columns), cropped to the body and resized."""
    dense = hu > BODY_HU
    rows = np.flatnonzero(dense.mean(axis=1) > BODY_SHARE)
    columns = np.flatnonzero(dense.mean(axis=0) > BODY_SHARE)
    if len(rows) > hu.shape[0] // 4 and len(columns) > hu.shape[1] // 4:
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        hu, masks = hu[box], masks[(slice(None), *box)]
    down, across = resize_weights(hu.shape[0], SIZE), resize_weights(hu.shape[1], SIZE)
    nearest = np.ix_(down.argmax(axis=1), across.argmax(axis=1))
    small = np.rint(down @ hu.astype(np.float32) @ across.T).astype(np.int16)
    return small, np.stack([mask[nearest] for mask in masks])


def taught(hu: NDArray[np.int16], lungs: NDArray[np.uint8], lesions: NDArray[np.uint8]) -> TaughtSlices:
    """Those of (n, rows, columns) slices that show lung, cropped."""
    kept = []
    for index in np.flatnonzero((lungs == 1).mean(axis=(1, 2)) > SMALLEST_LUNG):
        found = lesions[index]
        lesion, dense = (np.where(found == IGNORE, IGNORE, found >= value) for value in (1, 2))
        kept.append(_cropped(hu[index], np.stack([lungs[index], lesion, dense]).astype(np.uint8)))
    return TaughtSlices(
        np.array([one for one, _ in kept], dtype=np.int16).reshape(-1, SIZE, SIZE),
        np.array([masks for _, masks in kept], dtype=np.uint8).reshape(-1, 3, SIZE, SIZE),
    )


def taught_phantoms(cache: Path | None, *, processes: int = 2) -> TaughtSlices:
    """Of the phantoms of SEEDS, made by ``processes`` processes or read from ``cache``."""
    found = each_phantom(_taught_phantom, SEEDS, cache, processes=processes)
    return TaughtSlices(
        np.concatenate([one.hu for one in found]), np.concatenate([one.masks for one in found])
    )


def _taught_phantom(seed: int, cache: Path | None) -> TaughtSlices:
    def make() -> Arrays:
        phantom = chest_phantom(seed, slices=SLICES, rows=SIDE, columns=SIDE)
        slices = taught(phantom.hu, (phantom.lungs > 0).astype(np.uint8), phantom.lesions)
        return {"hu": slices.hu, "masks": slices.masks}

    return TaughtSlices(**cached_arrays(cache, f"teaching_{seed}", make))


def taught_pictures(folder: Path) -> TaughtSlices:
    """Labelled pictures; their lungs aren't labelled, nor is consolidation in those without types."""
    parts = []
    for image in read_labelled_2d(folder):
        lesion = (image.labels > 0).astype(np.uint8)
        dense = np.where(image.labels == UNTYPED, IGNORE, image.labels == 2).astype(np.uint8)
        parts.append(_cropped(image.hu, np.stack([np.full_like(lesion, IGNORE), lesion, dense])))
    return TaughtSlices(np.stack([hu for hu, _ in parts]), np.stack([masks for _, masks in parts]))


class Teaching:
    """Draws batches of windows with masks."""

    def __init__(
        self, *, series: Sequence[Path] = (), pictures: Sequence[Path] = (), cache: Path | None = None
    ) -> None:
        phantoms = taught_phantoms(cache)
        diseased = (phantoms.masks[:, 1] == 1).any(axis=(1, 2))
        self._phantoms = [
            TaughtSlices(phantoms.hu[keep], phantoms.masks[keep]) for keep in (diseased, ~diseased)
        ]
        labelled = [taught(one.series.hu, one.lungs, one.lesions) for one in load_real(list(series))]
        self._real = [one for one in labelled if len(one)]
        self._pictures = [taught_pictures(folder) for folder in pictures]

    def draw(
        self, count: int, size: int, rng: np.random.Generator, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Windows float (count, 1, size, size), 0 to 1, and masks uint8 (count, 3, size / 4, size / 4)."""
        windows = torch.empty(count, 1, SIZE, SIZE)
        masks = torch.empty(count, 3, SIZE, SIZE, dtype=torch.uint8)
        for number in range(count):
            hu, mask, is_hu = self._one(rng, generator)
            level, width = rng.uniform(-720, -450), rng.uniform(1000, 2000)
            if is_hu and rng.random() < SOFT_TISSUE_SHARE:
                level, width = rng.uniform(-50, 80), rng.uniform(300, 600)
                mask[1] = IGNORE
            if not is_hu:  # a picture has its window already
                level, width = (GREY_HU[0] + GREY_HU[1]) / 2, GREY_HU[1] - GREY_HU[0]
            windows[number, 0] = ((hu - level) / width + 0.5).clamp(0, 1)
            masks[number] = mask
        order = torch.from_numpy(rng.permutation(count))
        return _moved(windows[order], masks[order], size, generator)

    def _one(self, rng: np.random.Generator, generator: torch.Generator) -> tuple[Tensor, Tensor, bool]:
        chance = rng.random()
        if self._real and PHANTOM_SHARE <= chance < PHANTOM_SHARE + REAL_SHARE:
            hu, mask = _pick(self._real[rng.integers(len(self._real))], rng)
            if rng.random() < PASTED_SHARE:
                hu, mask = _with_opacity(hu, mask, rng, generator)
            return hu, mask, True
        if self._pictures and chance >= PHANTOM_SHARE + REAL_SHARE:
            return *_pick(self._pictures[rng.integers(len(self._pictures))], rng), False
        return *_pick(self._phantoms[int(rng.random() >= LESION_SHARE)], rng), True


def _pick(slices: TaughtSlices, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    index = int(rng.integers(len(slices)))
    return torch.from_numpy(slices.hu[index]).float(), torch.from_numpy(slices.masks[index].copy())


def _noise(knots: int, generator: torch.Generator, mode: str = "bicubic") -> Tensor:
    coarse = torch.randn(1, 1, knots, knots, generator=generator)
    return functional.interpolate(coarse, size=(SIZE, SIZE), mode=mode)[0, 0]


def _with_opacity(
    hu: Tensor, mask: Tensor, rng: np.random.Generator, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A haze or a consolidation of random outline in the lungs of a real slice."""
    field = _noise(int(rng.integers(4, 14)), generator)
    cover = torch.sigmoid((field - rng.uniform(0.6, 1.6)) * rng.uniform(4, 15)) * (mask[0] == 1)
    dense = rng.random() < 0.35
    density = rng.uniform(-250, 30) if dense else rng.uniform(-720, -350)
    texture = _noise(int(rng.integers(24, 96)), generator, "bilinear") * rng.uniform(10, 90)
    hu = torch.maximum(hu, hu * (1 - cover) + cover * (density + texture))
    mask = mask.clone()
    seen = cover > 0.4
    mask[1][seen] = 1
    if dense:
        mask[2][seen] = 1
    return hu, mask


def _moved(windows: Tensor, masks: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirrored, scaled, stretched, turned, shifted and bent; then the image alone is ``_photographed``."""
    n = len(windows)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    scale, aspect = torch.exp(uniform(-0.51, 0.14)), torch.exp(uniform(-0.11, 0.11))
    angle, mirror = uniform(-0.21, 0.21), torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    room = (1 - scale).clamp(min=0) + 0.1
    across = torch.stack([scale * aspect * angle.cos() * mirror, -scale * aspect * angle.sin()], 1)
    down = torch.stack([scale / aspect * angle.sin() * mirror, scale / aspect * angle.cos()], 1)
    shift = torch.stack([uniform(-0.7, 0.7) * room, uniform(-0.7, 0.7) * room], 1)
    matrix = torch.cat([torch.stack([across, down], 1), shift[:, :, None]], 2)
    grid = functional.affine_grid(matrix, [n, 1, size, size], align_corners=False)
    knots = torch.randn(n, 2, 5, 5, generator=generator) * 0.02
    bend = functional.interpolate(knots, size=(size, size), mode="bicubic", align_corners=False)
    grid = grid + bend.permute(0, 2, 3, 1)
    image = functional.grid_sample(windows, grid, padding_mode="border", align_corners=False)
    coarse = functional.avg_pool2d(grid.permute(0, 3, 1, 2), 4).permute(0, 2, 3, 1)
    labels = functional.grid_sample(
        masks.float(), coarse, mode="nearest", padding_mode="border", align_corners=False
    )
    return _photographed(image, generator), labels.to(torch.uint8)


def _photographed(image: Tensor, generator: torch.Generator) -> Tensor:
    """What printing and copying does to a picture: another window, gamma, blur, noise."""
    n = len(image)

    def uniform(low: float, high: float) -> Tensor:
        return (torch.rand(n, generator=generator) * (high - low) + low)[:, None, None, None]

    low, high = uniform(-0.0875, 0.1625), 1 + uniform(-0.2275, 0.1225)
    image = ((image - low) / (high - low)).clamp(1e-3, 1) ** torch.exp(uniform(-0.5, 0.5))
    blurred = functional.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
    image = torch.where(uniform(0, 1) < 0.33, blurred, image)
    return image + torch.randn(image.shape, generator=generator) * uniform(0, 1) ** 2 * 0.06
