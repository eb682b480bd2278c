"""Segmentation as it is served: HU int16 (n, rows, columns) in, uint8 at the same rows and columns out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from triton_models.architectures.covseg import type_probabilities
from triton_models.registry import HU_RANGE
from triton_models.served.base import Served
from triton_models.served.resize import shrunk

THRESHOLD = 0.5
#: the Dice of a mask is largest near half of what it reaches (Lipton et al. 2014, arXiv:1402.1892), which is
#: 0.75 to 0.85 for lesions
LESION_THRESHOLD = 0.4


class ServedSegmentation(Served):
    """Resizing to the network's resolution and back; subclasses turn logits into their outputs."""

    def answer(self, hu: Tensor) -> Tensor:
        """The network's logits, of HU (n, 1, size, size)."""
        logits: Tensor = self.network(hu)
        return logits

    def logits(self, hu: Tensor) -> Tensor:
        """(n, rows, columns) int16 -> (n, channels, rows, columns): the mean over the sizes asked."""
        rows, columns = hu.shape[1], hu.shape[2]
        clipped = hu.to(torch.float32).clamp(float(HU_RANGE[0]), float(HU_RANGE[1])).unsqueeze(1)
        first, *others = [
            functional.interpolate(
                self.answer(self.resized(clipped, size)), size=(rows, columns), mode="bilinear"
            )
            for size in self.sizes
        ]
        return sum(others, first) / len(self.sizes) if others else first

    def resized(self, hu: Tensor, size: int) -> Tensor:
        """(n, 1, rows, columns) -> (n, 1, size, size). Half of 512 pixels is their mean in twos."""
        return functional.interpolate(hu, size=(size, size), mode="bilinear")


class ServedLungs(ServedSegmentation):
    """LUNGS: 1 where the probability of lung is at least THRESHOLD."""

    def forward(self, hu: Tensor) -> Tensor:
        return (torch.sigmoid(self.logits(hu))[:, 0] >= THRESHOLD).to(torch.uint8)


class ServedLesions(ServedSegmentation):
    """LABELS: where ground glass (1) and consolidation (2) together reach LESION_THRESHOLD the likelier of
    the two (a tie is consolidation), else 0.  PROBABILITIES: round(255 p) of each. The network answers the
    slice and its mirror image; what counts is the mean."""

    def resized(self, hu: Tensor, size: int) -> Tensor:
        return shrunk(hu, size)  # pictures have any size: none of their pixels is skipped

    def answer(self, hu: Tensor) -> Tensor:
        logits: Tensor = self.network(torch.cat([hu, hu.flip(-1)]))
        plain, mirrored = logits.reshape(2, -1, *logits.shape[1:]).unbind()
        return (plain + mirrored.flip(-1)) / 2

    def forward(self, hu: Tensor) -> tuple[Tensor, Tensor]:
        probability = type_probabilities(self.logits(hu))
        ground, dense = probability[:, 0], probability[:, 1]
        infection = (ground + dense >= LESION_THRESHOLD).to(torch.uint8)
        labels = infection * (1 + (dense >= ground).to(torch.uint8))
        return labels, torch.round(probability * 255.0).to(torch.uint8)
