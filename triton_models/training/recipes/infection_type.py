"""How ``infection_type`` is trained: patches of phantoms, cross-entropy (Xu et al. 2020).

With and without location attention see the same batches in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from triton_models.architectures.windows import windowed
from triton_models.data.infection_patches import TRAIN_SEEDS, VALIDATION_SEEDS, Patches, patch_set
from triton_models.evaluation.class_metrics import class_table
from triton_models.training.recipe import Random, Recipe

BATCH_SIZE = 64
NOISE_HU, OFFSET_HU, CONTRAST = 30.0, 25.0, 0.04
SHIFT = 3  # pixels at most: the distance still holds

Batch = tuple[Tensor, Tensor, Tensor]


def augment_patches(hu: Tensor, generator: torch.Generator) -> Tensor:
    """(n, size, size) float HU, mirrored, turned by quarters, shifted a little; new contrast and noise."""
    n, size = hu.shape[0], hu.shape[-1]

    def uniform() -> Tensor:
        return torch.rand((n, 1, 1), generator=generator) * 2.0 - 1.0

    hu = torch.where(uniform() < 0, hu.flip(-1), hu)
    hu = torch.where(uniform() < 0, hu.flip(-2), hu)
    hu = torch.where(uniform() < 0, hu.transpose(-1, -2), hu)
    padded = functional.pad(hu.unsqueeze(1), (SHIFT,) * 4, mode="replicate")[:, 0]
    moves = torch.randint(0, 2 * SHIFT + 1, (n, 2), generator=generator).tolist()
    hu = torch.stack([one[r : r + size, c : c + size] for one, (r, c) in zip(padded, moves, strict=True)])
    hu = (hu + 1000.0) * (1.0 + uniform() * CONTRAST) - 1000.0 + uniform() * OFFSET_HU
    strength = uniform() ** 2 * NOISE_HU
    return hu + torch.randn(hu.shape, generator=generator) * strength


class InfectionTypeRecipe(Recipe[Batch]):
    """Patches, their relative distances and classes."""

    steps = 2200
    learning_rate = 2e-3
    weight_decay = 5e-3
    average_decay = 0.995
    validate_every = 200
    curve: ClassVar[str] = "Accuracy, F1"

    _training: Patches
    _validation: Patches

    def prepare(self) -> None:
        if self.settings.data:
            raise ValueError("infection_type learns from phantoms only: leave out --data")
        self._training = patch_set(TRAIN_SEEDS, self.settings.cache)
        self._validation = patch_set(VALIDATION_SEEDS, self.settings.cache)

    def draw(self, random: Random) -> Batch:
        rng, generator = random
        index = rng.integers(len(self._training), size=BATCH_SIZE)
        hu = torch.from_numpy(self._training.hu[index]).float()
        return (
            augment_patches(hu, generator),
            torch.from_numpy(self._training.distance[index]),
            torch.from_numpy(self._training.label[index]),
        )

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        hu, distance, label = batch
        x = windowed(hu.unsqueeze(1)).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.settings.bf16):
            logits = network(x, distance)
        return functional.cross_entropy(logits.float(), label, label_smoothing=0.05)

    def validate(self, network: nn.Module) -> Mapping[str, float]:
        parts = []
        with torch.inference_mode():
            for start in range(0, len(self._validation), 256):
                part = slice(start, start + 256)
                hu = torch.from_numpy(self._validation.hu[part]).float().unsqueeze(1)
                logits = network(windowed(hu), torch.from_numpy(self._validation.distance[part]))
                parts.append(torch.softmax(logits, dim=1).numpy())
        table = class_table(np.concatenate(parts), self._validation.label, self.classes)
        return {name: float(table["all"][name][0]) for name in ("accuracy", "macro_f1", "macro_auc")}
