"""Filling in as it is served.

In: HU int16 and MASK uint8, not 0 where to fill in, both (n, size, size).  Out: INPAINTED int16 of the same
shape, the input's own values outside of the mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from triton_models.architectures.inpaint import scaled, unscaled
from triton_models.served.base import Served


class ServedInpaint(Served):
    """Scaling, hiding what is masked, and composition around the generator."""

    def forward(self, hu: Tensor, mask: Tensor) -> Tensor:
        wanted = (mask > 0).unsqueeze(1)
        share = wanted.to(torch.float32)
        given = hu.to(torch.float32).unsqueeze(1)  # exact: ONNX Runtime chooses between no 16-bit integers
        filled = torch.round(unscaled(self.network(scaled(given) * (1.0 - share), share)))
        return torch.where(wanted, filled, given).to(torch.int16)[:, 0]
