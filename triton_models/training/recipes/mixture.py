"""Which slices a training batch is made of.

In: phantoms and labelled real series, or labelled pictures.  Out: ``Mixture.draw``, batches of HU and target
channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triton_models.data.labelled_2d import UNTYPED, read_labelled_2d
from triton_models.data.lung_field import lung_field
from triton_models.data.real import load_real, real_slices
from triton_models.data.slices import IGNORE, TRAIN_SEEDS, Slices, phantom_set, to_network_size
from triton_models.registry import ModelEntry
from triton_models.training.settings import TrainSettings

#: of each batch, when there is real data
REAL_SHARES = {"lungs": 0.3, "lesions": 0.4}
PASTED_COPIES = 10  # of each real series, with synthetic lesions
SEEN_PIXELS = 30  # a consolidation of fewer pixels at the network's resolution teaches nothing


def lesion_targets(slices: Slices, index: NDArray[np.int64]) -> Tensor:
    """float (n, 6, size, size), 1 where a pixel is: ground glass, consolidation, a lesion of unknown type,
    unknown whether a lesion, lung, unknown whether lung. Moved and averaged pixels are shares of each."""
    lesions, lungs = (torch.from_numpy(labels[index]) for labels in (slices.lesions, slices.lungs))
    planes = [lesions == value for value in (1, 2, UNTYPED, IGNORE)]
    return torch.stack([*planes, lungs == 1, lungs == IGNORE], dim=1).float()


def targets_of(entry: ModelEntry, slices: Slices, index: NDArray[np.int64]) -> Tensor:
    """Targets of the chosen slices: uint8 (n, 1, size, size) of lungs, 0, 1 or IGNORE; ``lesion_targets``."""
    if entry.name == "lungs":
        return torch.from_numpy(slices.lungs[index])[:, None]
    return lesion_targets(slices, index)


@dataclass(frozen=True)
class Mixture:
    """Pools of slices, each drawn from with its weight."""

    entry: ModelEntry
    pools: tuple[Slices, ...]
    weights: tuple[float, ...]

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """HU float (count, size, size) and their targets."""
        weights = np.asarray(self.weights)
        chosen = rng.choice(len(self.pools), count, p=weights / weights.sum())
        images, targets = [], []
        for pool_number in np.unique(chosen):
            pool = self.pools[pool_number]
            index = rng.integers(len(pool), size=int((chosen == pool_number).sum()))
            images.append(torch.from_numpy(pool.hu[index]).float())
            targets.append(targets_of(self.entry, pool, index))
        return torch.cat(images), torch.cat(targets)


def training_mixture(entry: ModelEntry, settings: TrainSettings) -> Mixture:
    """Phantoms, with and without lesions, and real slices, untouched and with pasted lesions."""
    phantoms = phantom_set(TRAIN_SEEDS, settings.cache)
    dense = (phantoms.lesions == 2).sum(axis=(1, 2)) >= SEEN_PIXELS
    ground = (phantoms.lesions == 1).any(axis=(1, 2)) & ~dense
    # shares of slices with consolidation, with only ground glass, and without either
    shares = (0.2, 0.3, 0.5) if entry.name == "lungs" else (0.5, 0.25, 0.25)
    pools: list[tuple[Slices, float]] = [
        (subset(phantoms, keep), share)
        for keep, share in zip((dense, ground, ~dense & ~ground), shares, strict=True)
    ]
    if settings.data:
        share = REAL_SHARES[entry.name]
        scale = share / (1.0 - share)
        pools += [(pool, weight * scale) for pool, weight in _real_pools(settings)]
    usable = [(pool, weight) for pool, weight in pools if len(pool)]
    return Mixture(entry, tuple(pool for pool, _ in usable), tuple(weight for _, weight in usable))


def picture_slices(folders: Sequence[Path], size: int) -> tuple[Slices, tuple[str, ...]]:
    """The labelled pictures of folders as slices of size x size pixels, and the group of each.

    Raises FileNotFoundError and ValueError as ``read_labelled_2d``.
    """
    images = [image for folder in folders for image in read_labelled_2d(folder)]
    parts = []
    for image in images:
        lungs = lung_field(image.hu, image.labels > 0)
        field = lungs[None].astype(np.uint8)
        parts.append(to_network_size(image.hu[None], field, image.labels[None], size))
    return Slices.concatenate(parts), tuple(image.name for image in images)


def subset(slices: Slices, keep: NDArray[np.bool_]) -> Slices:
    return Slices(slices.hu[keep], slices.lungs[keep], slices.lesions[keep])


def _real_pools(settings: TrainSettings) -> list[tuple[Slices, float]]:
    series = load_real(list(settings.data))
    whole = [one for one in series if len(one.series.hu) > 3]
    single = [one for one in series if len(one.series.hu) <= 3]
    pools = []
    if whole:
        rng = np.random.default_rng(settings.seed)
        pasted = [real_slices(one, rng) for one in whole for _ in range(PASTED_COPIES)]
        pools += [
            (Slices.concatenate([real_slices(one) for one in whole]), 0.45),
            (Slices.concatenate(pasted), 0.45),
        ]
    if single:
        pools.append((Slices.concatenate([real_slices(one) for one in single]), 0.10))
    return pools
