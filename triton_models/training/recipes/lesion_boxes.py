"""How ``lesion_boxes`` is trained: slices of phantoms and of real CC BY series, as ``lesions`` is.

Loss: Faster R-CNN's four (Ren et al. 2015), cross-entropy and smooth L1 of the proposals and of the regions.
Boxes come from the labels after they were augmented. Components too small to count teach neither side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pipelines.boxes import OPERATIONS, chosen
from triton_models.architectures.faster_rcnn import FasterRCNN, changes_to, overlap_table
from triton_models.architectures.windows import windowed
from triton_models.data.augment import Augmentation, augment
from triton_models.data.boxes import components
from triton_models.data.slices import IGNORE, Slices, phantom_set
from triton_models.evaluation.froc import Found, froc
from triton_models.registry import MODELS, ModelEntry
from triton_models.served.detection import ranked
from triton_models.training.recipe import Random, Recipe
from triton_models.training.recipes.mixture import Mixture, training_mixture
from triton_models.training.settings import TrainSettings

VALIDATION_SEEDS = range(8000, 8006)
BATCH_SIZE = 8
#: mm a pixel at the network's resolution, for the gaps and sizes of components; the field of view isn't kept
PIXEL_MM = 1.45
#: anchors and regions from this overlap on are lesions, below that one they are not
ANCHOR_OVERLAPS, REGION_OVERLAP = (0.3, 0.5), 0.45
ANCHORS_LEARNED = 128
LOWEST_SCORE = 0.005


@dataclass(frozen=True)
class Truth:
    """Of one slice: boxes (k, 4) in pixels, their classes int64 (k,), from 1 on, and boxes (m, 4) where
    nothing is learned."""

    boxes: Tensor
    classes: Tensor
    ignored: Tensor

    @staticmethod
    def of(lesions: NDArray[np.uint8]) -> Truth:
        """lesions: (rows, columns), 0, 1 ground glass, 2 consolidation or IGNORE."""
        known = np.where(lesions == IGNORE, 0, lesions).astype(np.uint8)
        found = components(known, (PIXEL_MM, PIXEL_MM))
        unknown = components((lesions == IGNORE).astype(np.uint8), (PIXEL_MM, PIXEL_MM))
        ignored = np.concatenate([found.boxes[~found.counts], unknown.boxes])
        classes = 1 + (found.dense_share[found.counts] > 0.5).astype(np.int64)
        return Truth(
            torch.from_numpy(found.boxes[found.counts]), torch.from_numpy(classes), torch.from_numpy(ignored)
        )


def inside_share(boxes: Tensor, regions: Tensor) -> Tensor:
    """How much of each box (a, 4) lies in any one of the regions (b, 4): (a,)."""
    if not len(regions):
        return torch.zeros(len(boxes))
    start = torch.maximum(boxes[:, None, :2], regions[None, :, :2])
    stop = torch.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    shared = (stop - start).clamp(min=0.0).prod(dim=2)
    return (shared / (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).clamp(min=1e-3)[:, None]).amax(dim=1)


def anchor_loss(
    anchors: Tensor, logits: Tensor, changes: Tensor, truth: Truth, generator: torch.Generator
) -> Tensor:
    """Of one slice. Every true box teaches the anchor that overlaps it most, whatever the overlap."""
    low, high = ANCHOR_OVERLAPS
    lesion = torch.zeros(len(anchors), dtype=torch.bool)
    known = inside_share(anchors, truth.ignored) < 0.5
    which = torch.zeros(len(anchors), dtype=torch.int64)
    if len(truth.boxes):
        table = overlap_table(anchors, truth.boxes)
        best, which = table.max(dim=1)
        lesion = best >= high
        highest = table.amax(dim=0)
        rows, columns = torch.nonzero(table >= (highest - 1e-4).clamp(min=1e-3), as_tuple=True)
        lesion[rows], which[rows] = True, columns
        known = (known & (best < low)) | lesion
    right = _some(torch.nonzero(lesion)[:, 0], ANCHORS_LEARNED // 2, generator)
    wrong = torch.nonzero(known & ~lesion)[:, 0]
    # half of them those that look most like lesions, half any
    hard = wrong[logits.detach()[wrong].topk(min(len(wrong), ANCHORS_LEARNED // 4)).indices]
    wrong = torch.cat([hard, _some(wrong, ANCHORS_LEARNED // 4, generator)])
    total = functional.binary_cross_entropy_with_logits(logits[wrong], torch.zeros(len(wrong)))
    if len(right):
        total = total + functional.binary_cross_entropy_with_logits(logits[right], torch.ones(len(right)))
        wanted = changes_to(anchors[right], truth.boxes[which[right]])
        total = total + functional.smooth_l1_loss(changes[right], wanted, beta=0.5)
    return total


def region_loss(boxes: Tensor, logits: Tensor, changes: Tensor, truth: Truth) -> Tensor:
    """Of one slice's regions (k, 4)."""
    classes = torch.zeros(len(boxes), dtype=torch.int64)
    known = inside_share(boxes, truth.ignored) < 0.5
    total = torch.zeros(())
    if len(truth.boxes):
        best, which = overlap_table(boxes, truth.boxes).max(dim=1)
        lesion = best >= REGION_OVERLAP
        classes[lesion] = truth.classes[which[lesion]]
        known = known | lesion
        if lesion.any():
            wanted = changes_to(boxes[lesion], truth.boxes[which[lesion]])
            total = total + functional.smooth_l1_loss(changes[lesion], wanted, beta=0.5)
    each = functional.cross_entropy(logits, classes, reduction="none") * known
    # lesions are few among the regions; both sides weigh the same
    for side in (classes > 0, classes == 0):
        total = total + (each * side).sum() / (side & known).sum().clamp(min=1)
    return total


def _some(indices: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return indices[torch.randperm(len(indices), generator=generator)[:count]]


class LesionBoxesRecipe(Recipe[tuple[Tensor, Sequence[Truth], torch.Generator]]):
    """Slices of HU and their boxes."""

    steps = 1500
    learning_rate = 1.5e-3
    curve: ClassVar[str] = "sensitivity"

    def __init__(self, entry: ModelEntry, settings: TrainSettings) -> None:
        super().__init__(entry, settings)
        self._mixture: Mixture
        self._validation: Slices

    def prepare(self) -> None:
        # the same slices as lesions, whose label channels the mixture knows
        self._mixture = training_mixture(MODELS["lesions"], self.settings)
        self._validation = phantom_set(VALIDATION_SEEDS, self.settings.cache)

    def draw(self, random: Random) -> tuple[Tensor, Sequence[Truth], torch.Generator]:
        rng, generator = random
        hu, channels = self._mixture.draw(BATCH_SIZE, rng)
        hu, channels = augment(hu, channels, Augmentation(), generator)
        lesions = torch.where(channels[:, 1] == 1, 2, channels[:, 0].to(torch.int64))
        lesions = torch.where(channels[:, 0] == IGNORE, IGNORE, lesions).to(torch.uint8)
        return hu, [Truth.of(one.numpy()) for one in lesions], generator

    def loss(self, network: nn.Module, batch: tuple[Tensor, Sequence[Truth], torch.Generator]) -> Tensor:
        assert isinstance(network, FasterRCNN)  # noqa: S101 - by the registry
        hu, truths, generator = batch
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.settings.bf16):
            features = network.features(
                windowed(hu.unsqueeze(1)).contiguous(memory_format=torch.channels_last)
            )
            proposed = network.proposed(features)
        total = torch.zeros(())
        with torch.no_grad():
            boxes = with_truth(network.proposals(proposed), truths)
        logits, changes = network.regions(tuple(level.float() for level in features), boxes)
        for index, truth in enumerate(truths):
            total = total + anchor_loss(
                network.anchors, proposed.logits[index], proposed.changes[index], truth, generator
            )
            total = total + region_loss(boxes[index], logits[index], changes[index], truth)
        return total / len(truths)

    def validate(self, network: nn.Module) -> Mapping[str, float]:
        """Sensitivity at 1 and 4 false positives a slice."""
        network.eval()
        operation = replace(OPERATIONS["lesion_boxes"], score=LOWEST_SCORE)
        images = []
        for hu, lesions in zip(self._validation.hu, self._validation.lesions, strict=True):
            with torch.inference_mode():
                found, scores, _ = ranked(network(windowed(torch.from_numpy(hu).float()[None, None])))
            boxes, ranks = found[0].numpy(), scores[0].numpy()
            kept = chosen(boxes, ranks, operation)
            truth = components(lesions, (PIXEL_MM, PIXEL_MM))
            images.append(Found.of(boxes[kept], ranks[kept], truth.boxes, truth.counts))
        figures = froc(images, operation.score, "slice")
        return {name: figures[name].value for name in ("sensitivity_at_1", "sensitivity_at_4")}


def with_truth(boxes: Tensor, truths: Sequence[Truth]) -> Tensor:
    """Proposals (n, k, 4), the last of which are replaced by the slice's true boxes: otherwise the head would
    see no lesion before the proposals find any."""
    boxes = boxes.clone()
    for index, truth in enumerate(truths):
        count = min(len(truth.boxes), boxes.shape[1] // 2)
        if count:
            boxes[index, -count:] = truth.boxes[:count]
    return boxes
