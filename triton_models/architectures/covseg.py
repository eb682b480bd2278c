"""COVSeg-NET (Zhang et al. 2021, sections 2.3 and 3.2, tables 2 to 4).

In: (n, len(WINDOWS), size, size) float.  Out: (n, out_channels, size, size) logits; the sigmoid of the paper
is applied by the loss and by the served graph.

From the paper: nine numbered convolutional layers, four down and four up; 3x3 convolutions with ELU and
batch normalisation; 3x3 max pooling; dropout 0.5; inception blocks (1x1, 3x3, 5x5, 3x3 pool side by side);
2x2 upsampling; merges of layers 4 and 6, 3 and 7, 2 and 8, 1 and 9. Ours: the widths, 256 instead of 128
pixels, and inception in layers 3 to 7 only, where 5x5 convolutions are cheap (the paper's tables did not
survive in the text we have).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from triton_models.architectures.windows import WINDOWS

WIDTHS = (8, 20, 40, 80, 128)
INCEPTION_FROM_LEVEL = 2
DROPOUT = 0.5


def _convolution(in_channels: int, channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ELU(),
    )


class Inception(nn.Module):
    """1x1, 3x3 and 5x5 convolutions and a 3x3 max pool side by side, a quarter of the channels each."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        if channels % 4:
            raise ValueError(f"an inception block needs a multiple of 4 channels, got {channels}")
        quarter = channels // 4
        self.branches = nn.ModuleList(
            [
                _convolution(in_channels, quarter, 1),
                _convolution(in_channels, quarter, 3),
                _convolution(in_channels, quarter, 5),
                nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), _convolution(in_channels, quarter, 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Layer(nn.Sequential):
    """One numbered layer: a 3x3 convolution, then an inception block or a second 3x3 convolution."""

    def __init__(self, in_channels: int, channels: int, *, inception: bool) -> None:
        second = Inception(channels, channels) if inception else _convolution(channels, channels, 3)
        super().__init__(_convolution(in_channels, channels, 3), second)


class COVSegNet(nn.Module):
    """The network. ``size`` is the side of its square input in pixels, a multiple of 16."""

    def __init__(self, out_channels: int, size: int) -> None:
        super().__init__()
        if size % 16:
            raise ValueError(f"size must be a multiple of 16 for four downsamplings, got {size}")
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        source = len(WINDOWS)
        for level, width in enumerate(WIDTHS):
            inception = level >= INCEPTION_FROM_LEVEL
            self.down.append(Layer(source, width, inception=inception))
            if level + 1 < len(WIDTHS):
                self.up.append(Layer(WIDTHS[level + 1] + width, width, inception=inception))
            source = width
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Conv2d(WIDTHS[0], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        merged: list[Tensor] = []
        for level, layer in enumerate(self.down):
            x = layer(x)
            if level < len(self.up):
                merged.append(x)
                x = self.pool(x)
        x = self.dropout(x)
        # layer 6 merges 4, 7 merges 3, 8 merges 2, 9 merges 1
        for level in reversed(range(len(self.up))):
            x = self.up[level](torch.cat([self.upsample(x), merged[level]], dim=1))
        logits: Tensor = self.head(x)
        return logits
