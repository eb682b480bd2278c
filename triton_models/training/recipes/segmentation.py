"""How ``lungs`` and ``lesions`` are trained: phantoms, CC BY series, or labelled 2D slices.

Loss: Dice plus binary cross-entropy or focal loss; pixels labelled IGNORE count in neither. Validation is on
phantoms that training never sees; real data is too little to be split.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from monai.losses import DiceLoss
from monai.losses.focal_loss import sigmoid_focal_loss
from torch import Tensor, nn
from torch.nn import functional

from triton_models.architectures.windows import windowed
from triton_models.data.augment import Augmentation, augment
from triton_models.data.folds import inside, validation_fold
from triton_models.data.labelled_2d import is_labelled_2d
from triton_models.data.slices import IGNORE, VALIDATION_SEEDS, Slices, phantom_set
from triton_models.registry import ModelEntry
from triton_models.training.recipe import Random, Recipe
from triton_models.training.recipes.mixture import (
    Mixture,
    picture_slices,
    subset,
    target_channels,
    training_mixture,
)
from triton_models.training.settings import TrainSettings

BATCH_SIZE = 12
LESION_CROP = 160  # pixels a side; lesions are small, rare and local


def segmentation_loss(logits: Tensor, targets: Tensor, *, focal: bool) -> Tensor:
    """Dice + cross-entropy (or focal) loss. logits, targets: (n, channels, rows, columns); IGNORE is masked.

    Dice is taken over the batch: a slice without foreground would otherwise make it all or nothing.
    """
    known = (targets != IGNORE).float()
    truth = targets.float() * known
    logits = logits.float()
    dice: Tensor = DiceLoss(batch=True, smooth_nr=1.0, smooth_dr=1.0)(torch.sigmoid(logits) * known, truth)
    if focal:
        pixelwise = 10.0 * sigmoid_focal_loss(logits, truth, gamma=2.0, alpha=0.6)
    else:
        pixelwise = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    total: Tensor = dice + (pixelwise * known).sum() / known.sum().clamp(min=1.0)
    return total


class SegmentationRecipe(Recipe[tuple[Tensor, Tensor]]):
    """Slices of HU and their target channels.

    focal: focal loss instead of binary cross-entropy beside the Dice loss (small, rare foreground).
    crop: side in pixels of a random window that is learned from, None for whole slices; for networks that are
    fully convolutional (COVSegNet is, VNet2D's attention wants the whole slice).
    """

    def __init__(self, entry: ModelEntry, settings: TrainSettings) -> None:
        super().__init__(entry, settings)
        self.focal = entry.name == "lesions"
        self.crop = LESION_CROP if entry.name == "lesions" else None
        self._mixture: Mixture
        self._validation: Slices

    def prepare(self) -> None:
        if any(is_labelled_2d(folder) for folder in self.settings.data):
            self._prepare_pictures()
            return
        self._mixture = training_mixture(self.entry, self.settings)
        self._validation = phantom_set(VALIDATION_SEEDS, self.settings.cache)

    def _prepare_pictures(self) -> None:
        """Labelled pictures are learned from alone: their licence may not allow what phantoms' does."""
        if self.entry.name != "lesions":
            raise ValueError(f"labelled pictures have labels of lesions, none for {self.entry.name}")
        slices, names = picture_slices(self.settings.data)
        held_out = inside(names, self.settings.fold or validation_fold(names))
        self._mixture = Mixture(self.entry, (subset(slices, ~held_out),), (1.0,))
        self._validation = subset(slices, held_out)

    def draw(self, random: Random) -> tuple[Tensor, Tensor]:
        rng, generator = random
        hu, targets = self._mixture.draw(BATCH_SIZE, rng)
        hu, targets = augment(hu, targets, Augmentation(), generator)
        if self.crop is not None:
            top, left = (int(v) for v in rng.integers(0, hu.shape[-1] - self.crop + 1, 2))
            window = (..., slice(top, top + self.crop), slice(left, left + self.crop))
            hu, targets = hu[window], targets[window]
        return hu, targets

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        hu, targets = batch
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.settings.bf16):
            logits = network(windowed(hu.unsqueeze(1)).contiguous(memory_format=torch.channels_last))
        return segmentation_loss(logits, targets, focal=self.focal)

    def validate(self, network: nn.Module) -> Mapping[str, float]:
        return pooled_dice(self.entry, network, self._validation)


def pooled_dice(entry: ModelEntry, network: nn.Module, slices: Slices, *, every: int = 2) -> dict[str, float]:
    """Pooled Dice of each class on every ``every``-th slice, at the network's resolution."""
    network.eval()
    overlap = np.zeros(len(entry.classes))
    total = np.zeros(len(entry.classes))
    with torch.inference_mode():
        for start in range(0, len(slices), 16 * every):
            index = np.arange(start, min(start + 16 * every, len(slices)), every)
            hu = torch.from_numpy(slices.hu[index]).float().unsqueeze(1)
            predicted = network(windowed(hu)) >= 0
            targets = target_channels(entry, slices, index)
            known = targets != IGNORE
            truth, predicted = (targets == 1) & known, predicted & known
            overlap += (truth & predicted).sum(dim=(0, 2, 3)).numpy()
            total += (truth.sum(dim=(0, 2, 3)) + predicted.sum(dim=(0, 2, 3))).numpy()
    return {
        f"dice_{name}": float(2 * o / t) if t else 1.0
        for name, o, t in zip(entry.classes, overlap, total, strict=True)
    }
