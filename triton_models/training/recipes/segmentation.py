"""How slices are segmented by training: ``lungs`` here, ``lesions`` on top of it (``recipes.lesions``).

Loss: Dice plus binary cross-entropy; pixels labelled IGNORE count in neither. Validation is on phantoms that
training never sees; real data is too little to be split.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional

from triton_models.data.augment import Augmentation, augment
from triton_models.data.labelled_2d import is_labelled_2d
from triton_models.data.slices import IGNORE, VALIDATION_SEEDS, Slices, phantom_set
from triton_models.registry import ModelEntry
from triton_models.served.base import build_served
from triton_models.training.recipe import Random, Recipe
from triton_models.training.recipes.mixture import Mixture, training_mixture
from triton_models.training.settings import TrainSettings

BATCH_SIZE = 12
VALIDATED_AT_ONCE = 16
VALIDATED_EVERY = 2  # slices


def segmentation_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice + cross-entropy loss. logits, targets: (n, channels, rows, columns); IGNORE is masked.

    Dice is taken over the batch: a slice without foreground would otherwise make it all or nothing.
    """
    known = (targets != IGNORE).float()
    truth = targets.float() * known
    logits = logits.float()
    dice: Tensor = DiceLoss(batch=True, smooth_nr=1.0, smooth_dr=1.0)(torch.sigmoid(logits) * known, truth)
    pixelwise = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    total: Tensor = dice + (pixelwise * known).sum() / known.sum().clamp(min=1.0)
    return total


class SegmentationRecipe(Recipe[tuple[Tensor, Tensor]]):
    """Slices of HU and their targets."""

    def __init__(self, entry: ModelEntry, settings: TrainSettings) -> None:
        super().__init__(entry, settings)
        self.batch_size = BATCH_SIZE
        self.augmentation = Augmentation()
        self._mixture: Mixture
        self._validation: Slices

    def prepare(self) -> None:
        for folder in self.settings.data:
            if is_labelled_2d(folder):
                raise ValueError(f"{folder}: has labels of lesions, none for {self.entry.name}")
        self._mixture = training_mixture(self.entry, self.settings)
        self._validation = phantom_set(VALIDATION_SEEDS, self.settings.cache)

    def draw(self, random: Random) -> tuple[Tensor, Tensor]:
        rng, generator = random
        hu, targets = self._mixture.draw(self.batch_size, rng)
        return augment(hu, targets, self.augmentation, generator, size=self.entry.network_size)

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        hu, targets = batch
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.settings.bf16):
            answer = network(hu.unsqueeze(1))
        return self.criterion(answer, targets)

    def criterion(self, answer: Any, targets: Tensor) -> Tensor:
        """The loss of what the network answers in training mode."""
        return segmentation_loss(answer, targets)

    def found(self, answer: Any) -> Tensor:
        """What the served graph answers -> bool (n, classes, rows, columns)."""
        mask: Tensor = answer[:, None] == 1
        return mask

    def truth(self, slices: Slices, index: slice) -> tuple[Tensor, Tensor]:
        """What ``found`` should be, and where that is known."""
        lungs = torch.from_numpy(slices.lungs[index])[:, None]
        return lungs == 1, lungs != IGNORE

    def validate(self, network: nn.Module) -> Mapping[str, float]:
        """Pooled Dice of each class on every other slice, of the network as it is served."""
        served = build_served(self.entry, network).eval()
        overlap = np.zeros(len(self.entry.classes))
        total = np.zeros(len(self.entry.classes))
        step = VALIDATED_AT_ONCE * VALIDATED_EVERY
        with torch.inference_mode():
            for start in range(0, len(self._validation), step):
                index = slice(start, start + step, VALIDATED_EVERY)
                found = self.found(served(torch.from_numpy(self._validation.hu[index])))
                truth, known = self.truth(self._validation, index)
                found, truth = found & known, truth & known
                overlap += (truth & found).sum(dim=(0, 2, 3)).numpy()
                total += (truth.sum(dim=(0, 2, 3)) + found.sum(dim=(0, 2, 3))).numpy()
        return {
            f"dice_{name}": float(2 * o / t) if t else 1.0
            for name, o, t in zip(self.entry.classes, overlap, total, strict=True)
        }
