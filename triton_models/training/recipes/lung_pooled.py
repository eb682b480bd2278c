"""How ``pneumonia_class`` is trained, and the small ``fusion`` (``recipes.small_fusion``).

The bodies learn to segment (``data.teaching``); then their features are frozen and a linear head is solved
for the classes of a list of pictures or, without one, of generated pneumonias. Neither pretrained weights nor
the classes' pictures take part in the first, so that cross-validation repeats only the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from triton_models.architectures.lung_pooled import LungPooled, LungPooledClassifier, normalised
from triton_models.data.folds import validation_fold
from triton_models.data.image_list import ImageList, is_image_list, read_image_list
from triton_models.data.labelled_2d import is_labelled_2d
from triton_models.data.pneumonia_slices import (
    TRAIN_SEEDS,
    VALIDATION_SEEDS,
    pneumonia_slices,
)
from triton_models.data.slices import IGNORE
from triton_models.data.teaching import Teaching
from triton_models.evaluation.class_metrics import class_estimates
from triton_models.registry import ModelEntry
from triton_models.served.classification import mean_features
from triton_models.training.linear_head import fit_linear_head
from triton_models.training.recipe import Random, Recipe
from triton_models.training.settings import TrainSettings

BATCH_SIZE = 24
TEACHING_SIZE = 160  # pixels a side; features are taken at the network's own size, which is larger
HEAD_DECAY = 0.1  # for each body: the more features there are, the less each may say


class ClassImage(Protocol):
    """A slice of a class; images of one group are of one patient or paper."""

    @property
    def label(self) -> str: ...
    @property
    def group(self) -> str: ...
    def hu(self) -> NDArray[np.int16]: ...


def teaching_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy and Dice over the batch, (n, 3, rows, columns) each; IGNORE counts in neither."""
    known = (masks != IGNORE).float()
    truth, logits = masks.float() * known, logits.float()
    pixelwise = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none") * known
    probability = torch.sigmoid(logits) * known
    overlap = (probability * truth).sum(dim=(0, 2, 3))
    dice = 1 - (2 * overlap + 10) / ((probability + truth).sum(dim=(0, 2, 3)) + 10)
    return 2 * pixelwise.mean() + dice.mean()


class LungPooledRecipe(Recipe[tuple[Tensor, Tensor]]):
    """A list of pictures may be among ``--data``, beside series and labelled pictures that only teach."""

    steps = 1500
    learning_rate = 2e-3
    weight_decay = 0.02
    validate_every = 250
    head_decay = HEAD_DECAY
    sees_fold = False
    curve: ClassVar[str] = "accuracy, AUC"

    def __init__(self, entry: ModelEntry, settings: TrainSettings) -> None:
        super().__init__(entry, settings)
        self._training: Sequence[ClassImage]
        self._validation: Sequence[ClassImage]
        self._teaching: Teaching | None = None
        self._classes = entry.classes

    @property
    def classes(self) -> tuple[str, ...]:
        return self._classes

    def prepare(self) -> None:
        lists = [folder for folder in self.settings.data if is_image_list(folder)]
        if len(lists) > 1:
            raise ValueError(f"{self.entry.name} learns classes from one list of pictures, got {len(lists)}")
        if lists:
            images = read_image_list(lists[0])
            self._classes = images.classes
            training, validation = self._split(images)
            self._training, self._validation = training.images, validation.images
        else:
            self._training = self.phantoms(TRAIN_SEEDS)
            self._validation = self.phantoms(VALIDATION_SEEDS)

    def phantoms(self, seeds: Sequence[int]) -> Sequence[ClassImage]:
        """What takes the place of a list of pictures."""
        return pneumonia_slices(seeds, self.settings.cache)

    def _split(self, images: ImageList) -> tuple[ImageList, ImageList]:
        """By the fold; else by the list's own split; else by groups."""
        fold = self.settings.fold
        if fold is None and images.for_training != images:
            return images.for_training, images.for_testing
        fold = fold or validation_fold([image.group for image in images.images])
        return images.without(fold), images.within(fold)

    def draw(self, random: Random) -> tuple[Tensor, Tensor]:
        if self._teaching is None:
            others = [folder for folder in self.settings.data if not is_image_list(folder)]
            self._teaching = Teaching(
                series=[folder for folder in others if not is_labelled_2d(folder)],
                pictures=[folder for folder in others if is_labelled_2d(folder)],
                cache=self.settings.cache,
            )
        return self._teaching.draw(BATCH_SIZE, TEACHING_SIZE, *random)

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        windows, masks = batch
        images = normalised(windows).contiguous(memory_format=torch.channels_last)
        losses = []
        for one in cast(LungPooledClassifier, network).pooled:
            pooled = cast(LungPooled, one)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.settings.bf16):
                logits = pooled.masks(pooled.body(images))
            losses.append(teaching_loss(logits, masks))
        return torch.stack(losses).sum()

    def settle(self, network: nn.Module) -> None:
        """Solve the head for the training pictures."""
        classifier = cast(LungPooledClassifier, network)
        features = self._features(classifier, self._training)
        labels = torch.tensor([self._classes.index(image.label) for image in self._training])
        decay = self.head_decay * len(classifier.pooled)
        fit_linear_head(classifier.head, features, labels, decay=decay, weights=self.weights(self._training))

    def weights(self, _images: Sequence[ClassImage]) -> Tensor | None:
        """How much each picture counts for the head; None: all the same."""
        return None

    def _features(self, network: LungPooledClassifier, images: Sequence[ClassImage]) -> Tensor:
        with torch.inference_mode():
            sizes = self.entry.sizes
            features = [
                mean_features(network.features, torch.from_numpy(image.hu()[None]), sizes) for image in images
            ]
        return torch.cat(features).clone()

    def validate(self, network: nn.Module) -> Mapping[str, float]:
        classifier = cast(LungPooledClassifier, network)
        with torch.inference_mode():
            features = self._features(classifier, self._validation)
            probabilities = torch.softmax(classifier.head(features), dim=1).numpy()
        truth = np.array([self._classes.index(image.label) for image in self._validation])
        groups: Sequence[str] = [image.group for image in self._validation]
        overall = class_estimates(probabilities, truth, self._classes, groups)["all"]
        return {name: one.value for name, one in overall.items() if name in {"accuracy", "auc", "macro_auc"}}
