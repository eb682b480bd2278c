"""How Hounsfield units enter a network."""

from __future__ import annotations

import torch
from torch import Tensor

#: (low, high) HU mapped to 0..1: lung window, and soft tissue to tell consolidation from contrast and bone
WINDOWS = ((-1024.0, -200.0), (-300.0, 300.0))


def windowed(hu: Tensor) -> Tensor:
    """(n, 1, …) HU as float -> (n, len(WINDOWS), …) in 0..1."""
    return torch.cat([((hu - low) / (high - low)).clamp(0.0, 1.0) for low, high in WINDOWS], dim=1)
