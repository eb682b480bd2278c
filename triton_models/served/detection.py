"""Detectors as they are served: HU int16 in; a fixed number of boxes, ranked by score, out.

Boxes are in voxel (pixel) coordinates of the input, half-open: voxel i covers i to i + 1. Cutting at a
threshold and non-maximum suppression are the caller's (``pipelines.boxes``).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from triton_models.architectures.faster_rcnn import Detections
from triton_models.architectures.vnet_ir import STRIDE, Proposals
from triton_models.architectures.windows import windowed
from triton_models.registry import HU_RANGE
from triton_models.served.base import Served

#: slices of the working grid of ``candidates``
GRID_SLICES = 64
#: boxes in an answer of ``candidates``, of ``lesion_boxes``
CANDIDATES, LESION_BOXES = 64, 32
#: log of the largest and smallest side of a box, in cells
LOG_SIDE = (-2.5, 3.6)


def on_grid(hu: Tensor, size: int) -> Tensor:
    """HU int16 (n, slices, rows, columns) -> float (n, 1, GRID_SLICES, size, size).

    As ``data.volumes.to_grid`` does it. Slices take the place of channels in the plane's resizing, rows times
    columns that of columns in the slices': two bilinear steps are quicker than a trilinear one.
    """
    clipped = hu.to(torch.float32).clamp(float(HU_RANGE[0]), float(HU_RANGE[1]))
    twice = functional.interpolate(clipped, size=(2 * size, 2 * size), mode="bilinear")
    small = functional.avg_pool2d(twice, 2).flatten(2).unsqueeze(1)
    depth = functional.interpolate(small, size=(GRID_SLICES, size * size), mode="bilinear")
    return depth.reshape(-1, 1, GRID_SLICES, size, size)


def on_image(shares: Tensor, hu: Tensor) -> Tensor:
    """Boxes (n, k, 2 axes) in shares of each side -> in voxels of hu (n, …), cut at its borders."""
    axes = hu.ndim - 1
    faces = [shares[..., i].clamp(0.0, 1.0) * hu.shape[1 + i % axes] for i in range(2 * axes)]
    return torch.stack(faces, dim=2)


def cell_boxes(places: Tensor) -> Tensor:
    """Raw box channels (n, 6, cells…) -> boxes (n, 6, cells…) in cells: the middle's offset from the cell's
    middle and the logs of the sides become three starts and three stops."""
    axes = [torch.arange(n, device=places.device, dtype=places.dtype) + 0.5 for n in places.shape[2:]]
    middle = torch.stack(torch.meshgrid(*axes, indexing="ij")) + places[:, :3]
    half = places[:, 3:].clamp(*LOG_SIDE).exp() / 2.0
    return torch.cat([middle - half, middle + half], dim=1)


class ServedCandidates(Served):
    """BOXES (n, CANDIDATES, 6): slice, row, column of start, then of stop.  SCORES (n, CANDIDATES):
    descending, 0 to 1, and 0 for what only fills the answer up.

    A cell proposes its box when its score is the highest of the 3 x 3 x 3 cells around it.
    """

    def forward(self, hu: Tensor) -> tuple[Tensor, Tensor]:
        boxes, scores = top_peaks(self.network(windowed(on_grid(hu, self.size))), CANDIDATES)
        grid = (GRID_SLICES, self.size, self.size)
        cells = torch.tensor([n / s for n, s in zip(grid, STRIDE, strict=True)] * 2, device=boxes.device)
        return on_image(boxes / cells, hu), scores


def top_peaks(proposals: Proposals, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` highest local maxima: boxes (n, count, 6) in cells and scores (n, count)."""
    score = torch.sigmoid(proposals.peak)
    highest = functional.max_pool3d(score, 3, stride=1, padding=1)
    peaks = (score * (score >= highest).to(score.dtype)).flatten(1)
    best, where = torch.topk(peaks, count, dim=1)
    boxes = cell_boxes(proposals.places).flatten(2).transpose(1, 2)
    return torch.gather(boxes, 1, where.unsqueeze(2).expand(-1, -1, 6)), best


def ranked(detections: Detections) -> tuple[Tensor, Tensor, Tensor]:
    """The LESION_BOXES best: boxes (n, k, 4) in the network's pixels, scores (n, k) of being any lesion, and
    of each class, given that it is one, (n, k, classes)."""
    probability = torch.softmax(detections.logits, dim=2)
    scores, where = torch.topk(1.0 - probability[..., 0], LESION_BOXES, dim=1)
    spread = where.unsqueeze(2)
    boxes = torch.gather(detections.boxes, 1, spread.expand(-1, -1, 4))
    classes = torch.softmax(detections.logits[..., 1:], dim=2)
    return boxes, scores, torch.gather(classes, 1, spread.expand(-1, -1, classes.shape[2]))


class ServedLesionBoxes(Served):
    """BOXES (n, LESION_BOXES, 4): row and column of start, then of stop.  SCORES (n, LESION_BOXES):
    descending, 0 to 1.  TYPES (n, LESION_BOXES, 2): probabilities of ground glass and of consolidation if it
    is a lesion; they add up to 1."""

    def forward(self, hu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        clipped = hu.to(torch.float32).clamp(float(HU_RANGE[0]), float(HU_RANGE[1])).unsqueeze(1)
        small = functional.interpolate(clipped, size=(self.size, self.size), mode="bilinear")
        boxes, scores, types = ranked(self.network(windowed(small)))
        return on_image(boxes / float(self.size), hu), scores, types
