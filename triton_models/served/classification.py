"""Slice classifiers as they are served: HU int16 (n, rows, columns) in, probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from triton_models.architectures.lung_pooled import LungPooledClassifier, normalised
from triton_models.data.grey import GREY_HU
from triton_models.served.base import Served
from triton_models.served.resize import shrunk


def grey_window(hu: Tensor, size: int) -> Tensor:
    """HU int16 (n, rows, columns) -> grey 0 to 1 of the lung window, (n, size, size)."""
    low, high = GREY_HU
    grey = ((hu.to(torch.float32) - low) / (high - low)).clamp(0.0, 1.0)
    return shrunk(grey, size)


def lung_window(hu: Tensor, size: int) -> Tensor:
    """HU int16 (n, rows, columns) -> what ``LungPooledClassifier`` takes, (n, 1, size, size)."""
    return normalised(grey_window(hu, size).unsqueeze(1))


def mean_features(features: Callable[[Tensor], Tensor], hu: Tensor, sizes: Sequence[int]) -> Tensor:
    """(n, k): ``features`` of HU int16 (n, rows, columns) in the lung window, means over the sizes asked."""
    first, *others = [features(lung_window(hu, size)) for size in sizes]
    return sum(others, first) / len(sizes) if others else first


class ServedClasses(Served):
    """PROBABILITIES: float32 (n, classes), sums of 1."""

    def forward(self, hu: Tensor) -> Tensor:
        network = cast(LungPooledClassifier, self.network)
        logits = network.head(mean_features(network.features, hu, self.sizes))
        return torch.softmax(logits.float(), dim=1)
