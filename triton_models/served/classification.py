"""Slice classifiers as they are served: HU int16 (n, rows, columns) in, probabilities out."""

from __future__ import annotations

import torch
from torch import Tensor

from triton_models.architectures.lung_pooled import normalised
from triton_models.data.grey import GREY_HU
from triton_models.served.base import Served


def shrink_weights(count: Tensor, size: int) -> Tensor:
    """(size, count) weights of linear interpolation that averages what it skips, from (count,) positions.

    A triangle as wide as the step between two results, the filter of "antialiased bilinear"; as a matrix,
    because Resize with anti-aliasing is none of TensorRT's operators.
    """
    step = count.shape[0] / size
    centres = (torch.arange(size, dtype=torch.float32) + 0.5) * step - 0.5
    distance = (count[None, :] - centres[:, None]).abs()
    width = distance.new_ones(()) * step
    weights = (1 - distance / width.clamp(min=1.0)).clamp(min=0.0)
    return weights / weights.sum(dim=1, keepdim=True)


def grey_window(hu: Tensor, size: int) -> Tensor:
    """HU int16 (n, rows, columns) -> grey 0 to 1 of the lung window, (n, size, size)."""
    low, high = GREY_HU
    grey = ((hu.to(torch.float32) - low) / (high - low)).clamp(0.0, 1.0)
    rows = shrink_weights(torch.arange(hu.shape[1], dtype=torch.float32), size)
    columns = shrink_weights(torch.arange(hu.shape[2], dtype=torch.float32), size)
    return rows @ grey @ columns.transpose(0, 1)


def lung_window(hu: Tensor, size: int) -> Tensor:
    """HU int16 (n, rows, columns) -> what ``LungPooledClassifier`` takes, (n, 1, size, size)."""
    return normalised(grey_window(hu, size).unsqueeze(1))


class ServedClasses(Served):
    """PROBABILITIES: float32 (n, classes), sums of 1."""

    def forward(self, hu: Tensor) -> Tensor:
        return torch.softmax(self.network(lung_window(hu, self.size)).float(), dim=1)
