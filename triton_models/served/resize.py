"""Resizing inside of the served graphs, of operators that TensorRT's ONNX parser has."""

from __future__ import annotations

import torch
from torch import Tensor


def shrunk(images: Tensor, size: int) -> Tensor:
    """(…, rows, columns) -> (…, size, size), "antialiased bilinear": what is skipped is averaged."""
    rows, columns = (
        _weights(torch.arange(images.shape[axis], dtype=torch.float32), size) for axis in (-2, -1)
    )
    return rows @ images @ columns.transpose(0, 1)


def _weights(count: Tensor, size: int) -> Tensor:
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
