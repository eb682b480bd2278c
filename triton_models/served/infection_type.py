"""The infection type of patches as it is served.

In: HU int16 (n, size, size), DISTANCE float32 (n, 1).  Out: PROBABILITIES float32 (n, classes).
"""

from __future__ import annotations

import torch
from torch import Tensor

from triton_models.architectures.windows import windowed
from triton_models.registry import HU_RANGE
from triton_models.served.base import Served


class ServedInfectionType(Served):
    """Clipping, windowing and softmax around the network."""

    def forward(self, hu: Tensor, distance: Tensor) -> Tensor:
        clipped = hu.to(torch.float32).clamp(float(HU_RANGE[0]), float(HU_RANGE[1])).unsqueeze(1)
        return torch.softmax(self.network(windowed(clipped), distance), dim=1)
