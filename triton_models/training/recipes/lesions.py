"""How ``lesions`` is trained: on phantoms and CC BY series, or on labelled pictures alone.

Each slice counts by itself and so does the batch: Dice of infection and of ground glass per slice (a small
lesion weighs as much as a large one), Dice of both types over the batch, cross-entropy of infection, and of
the type where there is one; and of lung, which costs no labels: phantoms have them, pictures show them well
enough (``data.lung_field``). The same at the resolutions of the auxiliary heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from triton_models.architectures.covseg import OUTPUTS, type_probabilities
from triton_models.data.augment import Augmentation
from triton_models.data.folds import inside, validation_fold
from triton_models.data.labelled_2d import UNTYPED, is_labelled_2d
from triton_models.data.slices import IGNORE, Slices
from triton_models.registry import ModelEntry
from triton_models.training.recipe import Random
from triton_models.training.recipes.mixture import Mixture, picture_slices, subset
from triton_models.training.recipes.segmentation import SegmentationRecipe
from triton_models.training.settings import TrainSettings

CROP = 192  # pixels a side of the window that is learned from: half of the work, and another shift
#: pixels a side that pictures are kept with, about their own, and that the network sees of them: they show
#: the lungs and little else, so that its pixels are then as large as those of a whole slice
PICTURE_SIZE, PICTURE_NETWORK_SIZE = 320, 192
#: pictures are of any scale, so that answers at several sizes are averaged; and those of several networks,
#: since there are few pictures to learn from
PICTURE_ASKED_SIZES, PICTURE_NETWORKS = (160, 192, 224), 2
BATCH_SIZE = 4  # more and smaller steps do better than fewer and larger ones
AUXILIARY_WEIGHT, LUNGS_WEIGHT = 0.25, 0.5
DICE_SMOOTHING = 50.0  # pixels
#: of pictures that were printed, photographed and cropped to the lungs
PICTURE_AUGMENTATION = Augmentation(
    rotation=0.21,
    translation=0.03,
    scaling=0.15,
    stretching=0.07,
    elastic=0.02,
    upside_down=0.0,
    gamma=0.18,
    contrast=0.18,
    contrast_about_mean=True,
    offset_hu=80.0,
    noise_hu=40.0,
    blur=0.4,
    sharpening=0.6,
)


def lesion_loss(logits: Sequence[Tensor], targets: Tensor) -> Tensor:
    """logits: of COVSegNet in training mode.  targets: (n, 6, size, size), see ``mixture.lesion_targets``."""
    total = _loss_at(logits[0], targets)
    for coarse in logits[1:]:
        smaller = functional.adaptive_avg_pool2d(targets, (coarse.shape[2], coarse.shape[3]))
        total = total + AUXILIARY_WEIGHT * _loss_at(coarse, smaller)
    return total


def _loss_at(logits: Tensor, targets: Tensor) -> Tensor:
    logits = logits.float()
    lungs = _one_mask_loss(logits[:, OUTPUTS], targets[:, 4], (targets[:, 5] < 0.5).float())
    return _infection_loss(logits[:, :OUTPUTS], targets[:, :4]) + LUNGS_WEIGHT * lungs


def _infection_loss(logits: Tensor, targets: Tensor) -> Tensor:
    typed, untyped, ignored = targets[:, :2], targets[:, 2], targets[:, 3]
    of_type = typed.sum(dim=1)
    known = (ignored < 0.5).float()
    type_known = (known * (untyped < 0.5))[:, None]
    infection = (of_type + untyped).clamp(max=1.0)
    share = typed[:, 1] / of_type.clamp(min=1e-3)
    probability, truth = type_probabilities(logits) * type_known, typed * type_known
    return (
        _one_mask_loss(logits[:, 0], infection, known)
        + 0.5 * _cross_entropy(logits[:, 1], share, of_type)
        + 0.5 * _dice_loss(probability, truth, (0, 2, 3))
        + 0.5 * _dice_loss(probability[:, 0], truth[:, 0], (1, 2))
    )


def _one_mask_loss(logits: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    dice = _dice_loss(torch.sigmoid(logits) * known, truth * known, (1, 2))
    return _cross_entropy(logits, truth, known) + dice


def _cross_entropy(logits: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    unlike = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return (unlike * weight).sum() / weight.sum().clamp(min=1.0)


def _dice_loss(probability: Tensor, truth: Tensor, over: tuple[int, ...]) -> Tensor:
    overlap = (probability * truth).sum(over)
    dice = (2 * overlap + DICE_SMOOTHING) / (probability.sum(over) + truth.sum(over) + DICE_SMOOTHING)
    return 1 - dice.mean()


class LesionsRecipe(SegmentationRecipe):
    """Labelled pictures among ``--data`` are learned from alone: their licence may not allow what phantoms'
    does."""

    steps = 2000
    learning_rate = 3e-3
    weight_decay = 1e-2
    average_decay = 0.99
    validate_every = 200

    def __init__(self, entry: ModelEntry, settings: TrainSettings) -> None:
        super().__init__(entry, settings)
        self.batch_size = BATCH_SIZE
        self._on_pictures = any(is_labelled_2d(folder) for folder in settings.data)
        if self._on_pictures:
            self.networks = PICTURE_NETWORKS

    def prepare(self) -> None:
        if not self._on_pictures:
            super().prepare()
            return
        self.entry = replace(self.entry, network_size=PICTURE_NETWORK_SIZE, asked_sizes=PICTURE_ASKED_SIZES)
        slices, names = picture_slices(self.settings.data, PICTURE_SIZE)
        held_out = inside(names, self.settings.fold or validation_fold(names))
        self._mixture = Mixture(self.entry, (subset(slices, ~held_out),), (1.0,))
        self._validation = subset(slices, held_out)
        self.augmentation = PICTURE_AUGMENTATION

    def draw(self, random: Random) -> tuple[Tensor, Tensor]:
        hu, targets = super().draw(random)
        top, left = (int(start) for start in random[0].integers(0, hu.shape[-1] - CROP + 1, 2))
        window = (..., slice(top, top + CROP), slice(left, left + CROP))
        return hu[window], targets[window]

    def criterion(self, answer: Any, targets: Tensor) -> Tensor:
        return lesion_loss(answer, targets)

    def found(self, answer: Any) -> Tensor:
        labels, _ = answer
        return torch.stack([labels == 1, labels == 2], dim=1)

    def truth(self, slices: Slices, index: slice) -> tuple[Tensor, Tensor]:
        lesions = torch.from_numpy(slices.lesions[index])[:, None]
        return torch.cat([lesions == 1, lesions == 2], dim=1), (lesions != IGNORE) & (lesions != UNTYPED)
