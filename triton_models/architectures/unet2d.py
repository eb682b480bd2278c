"""U-Net (Ronneberger et al. 2015), the first baseline of Deng et al. 2021 (section 2.2): four down, four up.

In: (n, 1, size, size) HU as float.  Out: (n, out_channels, size, size) logits.

As in the original: two 3x3 convolutions with ReLU a level, 2x2 max pooling, 2x2 transposed convolutions,
concatenated skip connections. Ours: padding, so that input and output have one size, batch normalisation, and
the V-Net's widths, so that the two compare.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from triton_models.architectures.vnet2d import WIDTHS
from triton_models.architectures.windows import WINDOWS, windowed


def _level(in_channels: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for source in (in_channels, channels):
        layers += [
            nn.Conv2d(source, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


class UNet2D(nn.Module):
    """The network; ``size`` is the side of its square input in pixels, a multiple of 16."""

    def __init__(self, out_channels: int, size: int) -> None:
        super().__init__()
        if size % 16:
            raise ValueError(f"size must be a multiple of 16 for four downsamplings, got {size}")
        sources = (len(WINDOWS), *WIDTHS)
        pairs = list(zip(sources, WIDTHS, strict=False))
        self.down = nn.ModuleList([_level(source, width) for source, width in pairs])
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(below, width, 2, stride=2) for width, below in pairwise(WIDTHS)]
        )
        self.merge = nn.ModuleList([_level(2 * width, width) for width in WIDTHS[:-1]])
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Conv2d(WIDTHS[0], out_channels, 1)

    def forward(self, hu: Tensor) -> Tensor:
        x = windowed(hu)
        skips: list[Tensor] = []
        for number, level in enumerate(self.down):
            x = level(self.pool(x) if number else x)
            skips.append(x)
        for number in reversed(range(len(self.up))):
            x = self.merge[number](torch.cat([self.up[number](x), skips[number]], dim=1))
        logits: Tensor = self.head(x)
        return logits
