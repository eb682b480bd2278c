"""Segmentation as it is served: HU int16 (n, rows, columns) in, uint8 at the same rows and columns out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from triton_models.architectures.windows import windowed
from triton_models.registry import HU_RANGE
from triton_models.served.base import Served

THRESHOLD = 0.5


class ServedSegmentation(Served):
    """Resizing to the network's resolution and back; subclasses turn probabilities into their outputs."""

    def probabilities(self, hu: Tensor) -> Tensor:
        """(n, rows, columns) int16 -> (n, channels, rows, columns) float in 0..1."""
        rows, columns = hu.shape[1], hu.shape[2]
        clipped = hu.to(torch.float32).clamp(float(HU_RANGE[0]), float(HU_RANGE[1])).unsqueeze(1)
        small = functional.interpolate(clipped, size=(self.size, self.size), mode="bilinear")
        logits = self.network(windowed(small))
        return torch.sigmoid(functional.interpolate(logits, size=(rows, columns), mode="bilinear"))


class ServedLungs(ServedSegmentation):
    """LUNGS: 1 where the probability of lung is at least THRESHOLD."""

    def forward(self, hu: Tensor) -> Tensor:
        return (self.probabilities(hu)[:, 0] >= THRESHOLD).to(torch.uint8)


class ServedLesions(ServedSegmentation):
    """LABELS: the likelier of ground glass (1) and consolidation (2) where it reaches THRESHOLD, else 0; a
    tie is consolidation.  PROBABILITIES: round(255 p), channels ground glass, consolidation."""

    def forward(self, hu: Tensor) -> tuple[Tensor, Tensor]:
        probability = self.probabilities(hu)
        ground, dense = probability[:, 0], probability[:, 1]
        consolidation = (dense >= THRESHOLD) & (dense >= ground)
        ground_glass = (ground >= THRESHOLD) & (dense < ground)
        labels = consolidation.to(torch.uint8) * 2 + ground_glass.to(torch.uint8)
        return labels, torch.round(probability * 255.0).to(torch.uint8)
