"""How ``candidates`` is trained: phantoms, and real CC BY series with pasted lesions, at the working grid.

Loss: CenterNet's focal loss of the peaks (Zhou et al. 2019), L1 and intersection over union of the boxes,
Dice and cross-entropy of the lesion's cells. Components too small to count are learned as such cells only.

Every lesion is to count the same, as in the sensitivity over all scans: phantoms are drawn in proportion to
the root of their number of lesions, and the peaks' loss is divided by that root, where CenterNet divides by
the number itself; a lesion's share in the boxes' loss doesn't grow with its size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from pipelines.boxes import OPERATIONS, chosen
from triton_models.architectures.vnet_ir import STRIDE, Proposals
from triton_models.architectures.windows import windowed
from triton_models.data.boxes import components
from triton_models.data.real import load_real, paste_lesions
from triton_models.data.volumes import GRID, VOLUME_SEEDS, WorkingVolume, phantom_volumes, to_grid
from triton_models.evaluation.froc import Found, froc
from triton_models.registry import HU_RANGE, ModelEntry
from triton_models.served.detection import CANDIDATES, cell_boxes, top_peaks
from triton_models.training.recipe import Random, Recipe
from triton_models.training.settings import TrainSettings

VALIDATION_SEEDS = range(8000, 8060)
LOWEST_SCORE = 0.005
PASTED_COPIES = 12
REAL_SHARE = 0.2  # of the volumes drawn, when there is real data
LESION_SHARE = 0.85  # of the phantoms drawn
UNBENT_SHARE = 0.3  # of the volumes drawn: as sharp as what the served graph sees
USUAL_COUNT = 3  # of lesions in a phantom that has any, about the middle
CELLS = tuple(n // s for n, s in zip(GRID, STRIDE, strict=True))


@dataclass(frozen=True)
class Targets:
    """Of one volume, in cells. heat: (cells), 1 in the cell of a region's middle, falling off around it.
    ignored: (cells), where peaks are neither right nor wrong.  lesion: (cells).
    cells: int64 (k, 3), from which boxes are learned; boxes: float32 (k, 6); weights: float32 (k,)."""

    heat: Tensor
    ignored: Tensor
    lesion: Tensor
    cells: NDArray[np.int64]
    boxes: Tensor
    weights: Tensor


def targets_of(numbers: NDArray[np.uint8], counts: NDArray[np.bool_]) -> Targets:
    """numbers: GRID, 0 or 1 + index of a component, as an augmentation left it.

    The middle of a region is its voxel nearest to its box's middle, so that it lies in the lesion.
    """
    heat = np.zeros(CELLS, dtype=np.float32)
    ignored = np.zeros(CELLS, dtype=bool)
    axes = np.ogrid[tuple(slice(0, n) for n in CELLS)]
    stride = np.asarray(STRIDE)
    cells: list[NDArray[np.int64]] = []
    boxes: list[NDArray[np.float64]] = []
    weights: list[float] = []
    for number, where in enumerate(ndimage.find_objects(numbers), start=1):
        if where is None:
            continue
        start, stop = (np.asarray([getattr(s, side) for s in where]) for side in ("start", "stop"))
        voxels = np.argwhere(numbers[where] == number) + start
        sides = (stop - start) / stride
        away = (voxels + 0.5 - (start + stop) / 2) / (stop - start)
        middle = voxels[int((away**2).sum(axis=1).argmin())] // stride
        sigma = np.maximum(sides / 6.0, 0.6)
        bump = np.exp(-0.5 * sum(((a - m) / s) ** 2 for a, m, s in zip(axes, middle, sigma, strict=True)))
        if not counts[number - 1]:
            ignored |= bump > 0.2
            continue
        own = np.argwhere((bump > 0.5) & (bump > heat))
        cells.extend(own)
        boxes.extend([np.concatenate([start / stride, stop / stride])] * len(own))
        weights.extend(bump[tuple(own.T)] / bump[tuple(own.T)].sum())
        heat = np.maximum(heat, bump.astype(np.float32))
    lesion = functional.max_pool3d(torch.from_numpy(numbers > 0)[None].float(), STRIDE)[0]
    return Targets(
        torch.from_numpy(heat),
        torch.from_numpy(ignored) & (torch.from_numpy(heat) < 0.2),
        lesion,
        np.asarray(cells, dtype=np.int64).reshape(-1, 3),
        torch.from_numpy(np.asarray(boxes, dtype=np.float32).reshape(-1, 6)),
        torch.tensor(weights, dtype=torch.float32),
    )


def proposal_loss(proposals: Proposals, targets: Targets) -> Tensor:
    """Of a batch of one."""
    peak = proposals.peak[0, 0].float()
    known = (~targets.ignored).float()
    right = (targets.heat == 1.0).float()
    probability = torch.sigmoid(peak)
    focal = right * (1 - probability) ** 2 * functional.softplus(-peak)
    focal = focal + (1 - right) * known * (1 - targets.heat) ** 4 * probability**2 * functional.softplus(peak)
    total = focal.sum() / (right.sum().clamp(min=1.0) * USUAL_COUNT).sqrt()
    lesion = proposals.lesion[0, 0].float()
    share = torch.sigmoid(lesion)
    overlap = 2 * (share * targets.lesion).sum() + 1
    total = total + 1 - overlap / (share.sum() + targets.lesion.sum() + 1)
    total = total + 4.0 * functional.binary_cross_entropy_with_logits(lesion, targets.lesion)
    if len(targets.cells):
        total = total + box_loss(cell_boxes(proposals.places.float())[0], targets)
    return total


def box_loss(boxes: Tensor, targets: Targets) -> Tensor:
    """boxes: (6, cells), in cells. Distances of the faces in sides of the true box, and 1 - overlap."""
    z, y, x = torch.from_numpy(targets.cells).T
    found, truth = boxes[:, z, y, x].T, targets.boxes
    sides = (truth[:, 3:] - truth[:, :3]).clamp(min=0.5)
    faces = functional.smooth_l1_loss(
        found / sides.repeat(1, 2), truth / sides.repeat(1, 2), beta=0.1, reduction="none"
    ).sum(dim=1)
    shared = (torch.minimum(found[:, 3:], truth[:, 3:]) - torch.maximum(found[:, :3], truth[:, :3])).clamp(
        min=0
    )
    volumes = [(b[:, 3:] - b[:, :3]).prod(dim=1) for b in (found, truth)]
    overlap = shared.prod(dim=1) / (volumes[0] + volumes[1] - shared.prod(dim=1) + 1e-3)
    losses = 0.5 * faces + 1.0 - overlap
    return (losses * targets.weights).sum() / targets.weights.sum()


def move(
    hu: Tensor, numbers: Tensor, rng: np.random.Generator, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One volume mirrored, turned in the plane, scaled and shifted; then new contrast, offset and noise.

    hu: float GRID.  numbers: uint8 GRID. Outside of the moved image there is air. UNBENT_SHARE of the volumes
    are mirrored at most, since interpolating blurs.
    """
    low, high = (float(v) for v in HU_RANGE)
    reach = 0.0 if rng.random() < UNBENT_SHARE else 1.0
    angle = rng.uniform(-0.2, 0.2) * reach
    scale = rng.uniform(0.85, 1.18, 3) ** reach
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    turn = np.array([[np.cos(angle) * mirror, -np.sin(angle), 0], [np.sin(angle) * mirror, np.cos(angle), 0]])
    matrix = np.zeros((3, 4))  # grid_sample's order is column, row, slice
    matrix[:2, :3] = turn * np.array([scale[2], scale[1], 1.0])
    matrix[2, 2] = scale[0]
    matrix[:, 3] = rng.uniform(-0.12, 0.12, 3) * reach
    theta = torch.from_numpy(matrix).float()[None]
    grid = functional.affine_grid(theta, [1, 1, *GRID], align_corners=False)
    moved = functional.grid_sample((hu - low)[None, None], grid, mode="bilinear", align_corners=False)[0, 0]
    labels = functional.grid_sample(numbers[None, None].float(), grid, mode="nearest", align_corners=False)
    moved = moved * float(rng.uniform(0.96, 1.04)) + low + float(rng.uniform(-25, 25))
    strength = float(rng.random() ** 2 * 40.0)
    if strength > 2.0:
        noise = torch.randn(GRID, generator=generator)
        if rng.random() < 0.5:
            noise = 2.0 * functional.avg_pool2d(noise[None], 3, stride=1, padding=1)[0]
        moved = moved + strength * noise
    return moved.clamp(low, high), labels[0, 0].to(torch.uint8)


class CandidatesRecipe(Recipe[tuple[Tensor, Targets]]):
    """One volume a step, (1, 1, *GRID)."""

    steps = 5000
    learning_rate = 2e-3
    average_decay = 0.995
    validate_every = 500
    curve: ClassVar[str] = "sensitivity"

    def __init__(self, entry: ModelEntry, settings: TrainSettings) -> None:
        super().__init__(entry, settings)
        self._diseased: list[WorkingVolume]
        self._chances: NDArray[np.float64]
        self._healthy: list[WorkingVolume]
        self._real: list[WorkingVolume]
        self._validation: list[WorkingVolume]

    def prepare(self) -> None:
        cache = self.settings.cache
        phantoms = phantom_volumes(VOLUME_SEEDS, cache)
        with_lesions = [one for one in phantoms if one.counts.any()]
        self._diseased = with_lesions or phantoms
        roots = np.sqrt([max(int(one.counts.sum()), 1) for one in self._diseased])
        self._chances = roots / roots.sum()
        self._healthy = [one for one in phantoms if not len(one.counts)] or phantoms
        self._validation = phantom_volumes(VALIDATION_SEEDS, cache)
        rng = np.random.default_rng(self.settings.seed)
        self._real = []
        for real in load_real(list(self.settings.data)):
            if len(real.series.hu) > 3:
                for _ in range(PASTED_COPIES):
                    hu, lesions = paste_lesions(real, rng)
                    lesions[lesions == 255] = 0
                    self._real.append(to_grid(hu, components(lesions, real.series.spacing_mm)))

    def draw(self, random: Random) -> tuple[Tensor, Targets]:
        rng, generator = random
        if self._real and rng.random() < REAL_SHARE:
            volume = self._real[int(rng.integers(len(self._real)))]
        elif rng.random() < LESION_SHARE:
            volume = self._diseased[int(rng.choice(len(self._diseased), p=self._chances))]
        else:
            volume = self._healthy[int(rng.integers(len(self._healthy)))]
        hu, numbers = move(
            torch.from_numpy(volume.hu).float(), torch.from_numpy(volume.numbers), rng, generator
        )
        return hu[None, None], targets_of(numbers.numpy(), volume.counts)

    def loss(self, network: nn.Module, batch: tuple[Tensor, Targets]) -> Tensor:
        hu, targets = batch
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.settings.bf16):
            proposals = network(windowed(hu).contiguous(memory_format=torch.channels_last_3d))
        return proposal_loss(proposals, targets)

    def validate(self, network: nn.Module) -> Mapping[str, float]:
        """Sensitivity at 1 and 8 false positives a scan."""
        network.eval()
        operation = replace(OPERATIONS["candidates"], score=LOWEST_SCORE)
        images = []
        for volume in self._validation:
            hu = torch.from_numpy(volume.hu).float()[None, None]
            with (
                torch.inference_mode(),
                torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.settings.bf16),
            ):
                proposals = network(windowed(hu).contiguous(memory_format=torch.channels_last_3d))
                found, scores = top_peaks(Proposals(*(part.float() for part in proposals)), CANDIDATES)
            boxes, ranks = found[0].numpy(), scores[0].numpy()
            kept = chosen(boxes, ranks, operation)
            truth = grid_boxes(volume)
            images.append(Found.of(boxes[kept], ranks[kept], *truth))
        figures = froc(images, operation.score, "scan")
        return {name: figures[name].value for name in ("sensitivity_at_1", "sensitivity_at_8")}


def grid_boxes(volume: WorkingVolume) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """True boxes in cells, and whether each must be found."""
    rows, counts = [], []
    for index, where in enumerate(ndimage.find_objects(volume.numbers)):
        if where is not None:
            sides = [[getattr(s, side) for s in where] for side in ("start", "stop")]
            rows.append(np.concatenate([np.asarray(side) / np.asarray(STRIDE) for side in sides]))
            counts.append(bool(volume.counts[index]))
    return np.asarray(rows, dtype=np.float32).reshape(-1, 6), np.asarray(counts, dtype=bool)
