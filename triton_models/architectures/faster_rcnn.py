"""Faster R-CNN on slices (Deng et al. 2021, abstract and section 5; Ren et al. 2015), with a feature pyramid.

In: (n, len(WINDOWS), size, size) float.  Out: ``Detections`` in pixels of that input, boxes as row start,
column start, row stop, column stop.

The paper takes Faster R-CNN for lesions without saying its backbone or anchors. Ours: a small residual
backbone with a feature pyramid (Lin et al. 2017) of strides 4 to 32, three aspect ratios of one size a level.
Everything has a fixed size, so that the graph suits TensorRT: the region proposal network's best boxes are
thinned by one look at the table of their overlaps instead of a loop, and region features are gathered by
matrix products: bilinear interpolation at the sampling points of ROI align (He et al. 2017) is a matrix of
hat functions along rows, and one along columns.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from triton_models.architectures.windows import WINDOWS

WIDTHS = (16, 32, 64, 96, 128)
CHANNELS = 48
STRIDES = (4, 8, 16, 32)
#: side of an anchor of each level in pixels of a network of 256, and rows per column of its shapes
ANCHOR_SIDES = (10.0, 24.0, 56.0, 120.0)
ANCHOR_RATIOS = (0.5, 1.0, 2.0)
#: proposals before and after thinning, and overlap from which the lower-ranked of two goes
BEFORE, PROPOSALS, OVERLAP = 256, 48, 0.6
#: levels that region features are taken from, bins of a region each way, samples of a bin each way
ROI_LEVELS, BINS, SAMPLES = 3, 7, 2
#: changes of a box are learned in these units: shift in sides, log of the sides' ratio
SCALES = (0.1, 0.1, 0.2, 0.2)
LOG_LIMIT = math.log(1000.0 / 16.0)


class Detections(NamedTuple):
    """boxes: (n, PROPOSALS, 4).  logits: (n, PROPOSALS, 1 + classes), of "no lesion" and of each class."""

    boxes: Tensor
    logits: Tensor


class Proposed(NamedTuple):
    """Of each anchor: logit (n, anchors) and changes (n, anchors, 4)."""

    logits: Tensor
    changes: Tensor


def changed(boxes: Tensor, changes: Tensor) -> Tensor:
    """Boxes (…, 4) moved and scaled by changes (…, 4) in SCALES."""
    units = changes * torch.tensor(SCALES, device=changes.device)
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-3)
    middle = (boxes[..., 2:] + boxes[..., :2]) / 2.0 + units[..., :2] * sides
    half = sides * units[..., 2:].clamp(-LOG_LIMIT, LOG_LIMIT).exp() / 2.0
    return torch.cat([middle - half, middle + half], dim=-1)


def changes_to(boxes: Tensor, truth: Tensor) -> Tensor:
    """What ``changed`` needs to make ``truth`` of ``boxes``; both (…, 4)."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-3)
    wanted = (truth[..., 2:] - truth[..., :2]).clamp(min=1e-3)
    shift = (truth[..., 2:] + truth[..., :2] - boxes[..., 2:] - boxes[..., :2]) / 2.0 / sides
    units = torch.cat([shift, (wanted / sides).log()], dim=-1)
    return units / torch.tensor(SCALES, device=boxes.device)


def overlap_table(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes (…, a, 4) with boxes (…, b, 4): (…, a, b)."""
    start = torch.maximum(first[..., :, None, :2], second[..., None, :, :2])
    stop = torch.minimum(first[..., :, None, 2:], second[..., None, :, 2:])
    sides = (stop - start).clamp(min=0.0)
    shared = sides[..., 0] * sides[..., 1]
    areas = [(b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1]) for b in (first, second)]
    return shared / (areas[0][..., :, None] + areas[1][..., None, :] - shared).clamp(min=1e-6)


def region_features(features: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
    """ROI align: (n, k, BINS, channels, BINS) of boxes (n, k, 4), each from the level that suits its size."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1.0).prod(dim=-1).sqrt()
    level = (size / ANCHOR_SIDES[0] / 1.6).clamp(min=1.0).log2().floor().clamp(max=float(ROI_LEVELS - 1))
    total = torch.zeros(1, device=boxes.device)
    for index in range(ROI_LEVELS):
        here = (level == float(index)).to(boxes.dtype)
        scaled = boxes / float(STRIDES[index])
        map_ = features[index].to(boxes.dtype)
        channels, rows, columns = map_.shape[1:]
        down = _hats(scaled[..., 0], scaled[..., 2], rows) * here[..., None, None]
        across = _hats(scaled[..., 1], scaled[..., 3], columns)
        count = down.shape[1]
        lines = down.flatten(1, 2) @ map_.permute(0, 2, 1, 3).flatten(2)
        lines = lines.reshape(-1, count, BINS * channels, columns)
        total = total + (lines @ across.transpose(2, 3)).reshape(-1, count, BINS, channels, BINS)
    return total


def _hats(start: Tensor, stop: Tensor, cells: int) -> Tensor:
    """Weights (n, k, BINS, cells): mean of the interpolation at a bin's samples between start and stop
    (n, k), in cells."""
    points = BINS * SAMPLES
    where = (torch.arange(points, device=start.device, dtype=start.dtype) + 0.5) / points
    at = (start[..., None] + (stop - start)[..., None] * where - 0.5).clamp(0.0, float(cells - 1))
    grid = torch.arange(cells, device=start.device, dtype=start.dtype)
    hats = (1.0 - (at[..., None] - grid).abs()).clamp(min=0.0)
    return hats.reshape(*hats.shape[:2], BINS, SAMPLES, cells).mean(dim=3)


class _Stage(nn.Module):
    """Halves the map; two 3x3 convolutions with a residual."""

    def __init__(self, source: int, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(source, channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return torch.relu(x + self.second(x))


class FasterRCNN(nn.Module):
    """The network; ``size`` is the side of its square input in pixels, a multiple of 32."""

    anchors: Tensor
    better: Tensor

    def __init__(self, out_channels: int, size: int) -> None:
        super().__init__()
        if size % STRIDES[-1]:
            raise ValueError(f"size must be a multiple of {STRIDES[-1]}, got {size}")
        self.size = size
        self.stages = nn.ModuleList(
            _Stage(source, width) for source, width in zip((len(WINDOWS), *WIDTHS), WIDTHS, strict=False)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(width, CHANNELS, 1) for width in WIDTHS[1:])
        self.smooth = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in WIDTHS[1:])
        shapes = len(ANCHOR_RATIOS)
        self.propose = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU())
        self.propose_logits = nn.Conv2d(CHANNELS, shapes, 1)
        self.propose_changes = nn.Conv2d(CHANNELS, 4 * shapes, 1)
        nn.init.constant_(self.propose_logits.bias, -4.0)  # type: ignore[arg-type]
        self.head = nn.Sequential(
            nn.Linear(BINS * BINS * CHANNELS, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()
        )
        self.classify = nn.Linear(128, 1 + out_channels)
        self.refine = nn.Linear(128, 4)
        for layer, spread in ((self.propose_changes, 0.01), (self.classify, 0.01), (self.refine, 0.001)):
            nn.init.normal_(layer.weight, std=spread)
            nn.init.constant_(layer.bias, 0.0)  # type: ignore[arg-type]
        self.register_buffer("anchors", anchor_boxes(size), persistent=False)
        # of the ranked boxes, those that come before each
        ranked = torch.tril(torch.ones(BEFORE, BEFORE), diagonal=-1)
        self.register_buffer("better", ranked, persistent=False)

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """The pyramid, finest level first."""
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        above: Tensor | None = None
        pyramid: list[Tensor] = []
        for index in reversed(range(len(STRIDES))):
            level = self.lateral[index](maps[index + 1])
            if above is not None:
                level = level + functional.interpolate(above, scale_factor=2.0, mode="nearest")
            above = level
            pyramid.insert(0, self.smooth[index](level))
        return tuple(pyramid)

    def proposed(self, features: tuple[Tensor, ...]) -> Proposed:
        """The region proposal network's answer in the anchors' order."""
        logits, changes = [], []
        for level in features:
            hidden = self.propose(level)
            logits.append(self.propose_logits(hidden).permute(0, 2, 3, 1).flatten(1))
            raw = self.propose_changes(hidden).permute(0, 2, 3, 1)
            changes.append(raw.reshape(raw.shape[0], -1, 4))
        return Proposed(torch.cat(logits, dim=1).float(), torch.cat(changes, dim=1).float())

    def proposals(self, proposed: Proposed) -> Tensor:
        """The best boxes (n, PROPOSALS, 4) of which none overlaps a better one by more than OVERLAP, as long
        as there are so many."""
        scores, where = torch.topk(proposed.logits, BEFORE, dim=1)
        changes = torch.gather(proposed.changes, 1, where.unsqueeze(2).expand(-1, -1, 4))
        boxes = changed(self.anchors[where], changes).clamp(0.0, float(self.size))
        worst = (overlap_table(boxes, boxes) * self.better).amax(dim=2)
        scores = torch.sigmoid(scores) * (worst <= OVERLAP).to(scores.dtype)
        _, kept = torch.topk(scores, PROPOSALS, dim=1)
        return torch.gather(boxes, 1, kept.unsqueeze(2).expand(-1, -1, 4))

    def regions(self, features: tuple[Tensor, ...], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """The box head: logits (n, k, 1 + classes) and changes (n, k, 4) of boxes (n, k, 4)."""
        hidden = self.head(region_features(features, boxes).flatten(2))
        return self.classify(hidden).float(), self.refine(hidden).float()

    def forward(self, x: Tensor) -> Detections:
        features = self.features(x)
        boxes = self.proposals(self.proposed(features))
        logits, changes = self.regions(features, boxes)
        return Detections(changed(boxes, changes).clamp(0.0, float(self.size)), logits)


def anchor_boxes(size: int) -> Tensor:
    """(anchors, 4): by level, row, column, ratio."""
    levels = []
    for stride, side in zip(STRIDES, ANCHOR_SIDES, strict=True):
        middle = (torch.arange(size // stride) + 0.5) * stride
        rows, columns = torch.meshgrid(middle, middle, indexing="ij")
        shapes = torch.tensor([[r**0.5, r**-0.5] for r in ANCHOR_RATIOS]) * side * size / 256.0 / 2.0
        centres = torch.stack([rows, columns], dim=-1)[:, :, None, :]
        levels.append(torch.cat([centres - shapes, centres + shapes], dim=-1).reshape(-1, 4))
    return torch.cat(levels)
