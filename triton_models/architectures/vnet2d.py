"""2D V-Net, plain and with self-attention on the skip connections (Deng et al. 2021, sections 2.2 and 3.1).

In: (n, 1, size, size) HU as float.  Out: (n, out_channels, size, size) logits.

From the paper: V-Net's encoder and decoder reduced to two dimensions; in each stage the input is added to
the output of its convolutions (residual learning); strided convolutions instead of pooling; PReLU; the
encoder's feature map passes a self-attention unit before it joins the decoder. Ours: narrow 3x3 stages with
batch normalisation, and attention between the cells of a 16 x 16 grid, so that a slice is cheap on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from triton_models.architectures.windows import WINDOWS, windowed

WIDTHS = (8, 16, 32, 64, 128)
CONVOLUTIONS = (1, 2, 2, 2, 2)
GRID = 16


class ResidualStage(nn.Module):
    """Convolutions whose input is added to their output (projected when the channel count changes)."""

    def __init__(self, in_channels: int, channels: int, convolutions: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(convolutions):
            source = in_channels if index == 0 else channels
            layers += [nn.Conv2d(source, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)]
            if index < convolutions - 1:
                layers.append(nn.PReLU(channels))
        self.convolutions = nn.Sequential(*layers)
        self.shortcut = nn.Identity() if in_channels == channels else nn.Conv2d(in_channels, channels, 1)
        self.activation = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.convolutions(x) + self.shortcut(x))
        return out


class SkipSelfAttention(nn.Module):
    """Scales a skip connection's features by what is elsewhere in the slice.

    Every cell of a GRID x GRID pooled map attends to all cells (scaled dot product); the result, spread back
    to full size, gates the features between 0 and 2.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        if size % GRID:
            raise ValueError(f"feature map size must be a multiple of {GRID}, got {size}")
        self.size = size
        self.depth = max(channels // 2, 8)
        self.pool = nn.AvgPool2d(size // GRID) if size > GRID else nn.Identity()
        self.query = nn.Conv2d(channels, self.depth, 1)
        self.key = nn.Conv2d(channels, self.depth, 1)
        self.value = nn.Conv2d(channels, self.depth, 1)
        self.gate = nn.Conv2d(self.depth, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(x)
        query, key, value = (part(pooled).flatten(2) for part in (self.query, self.key, self.value))
        scores = torch.softmax(query.transpose(1, 2) @ key * self.depth**-0.5, dim=-1)
        attended = (value @ scores.transpose(1, 2)).reshape(-1, self.depth, GRID, GRID)
        gate = torch.sigmoid(self.gate(attended)) * 2.0
        if self.size > GRID:
            gate = functional.interpolate(gate, size=(self.size, self.size), mode="bilinear")
        return x * gate


class VNet2D(nn.Module):
    """The network; ``size`` is the side of its square input in pixels, a multiple of 128."""

    def __init__(self, out_channels: int, size: int, *, attention: bool = True) -> None:
        super().__init__()
        self.encoder = nn.ModuleList()
        self.down = nn.ModuleList()
        self.attention = nn.ModuleList()
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for level, (width, count) in enumerate(zip(WIDTHS, CONVOLUTIONS, strict=True)):
            self.encoder.append(ResidualStage(len(WINDOWS) if level == 0 else width, width, count))
            if level + 1 < len(WIDTHS):
                below = WIDTHS[level + 1]
                self.down.append(
                    nn.Sequential(
                        nn.Conv2d(width, below, 2, stride=2), nn.BatchNorm2d(below), nn.PReLU(below)
                    )
                )
                self.attention.append(SkipSelfAttention(width, size >> level) if attention else nn.Identity())
                self.up.append(nn.Sequential(nn.ConvTranspose2d(below, width, 2, stride=2), nn.PReLU(width)))
                self.decoder.append(ResidualStage(2 * width, width, count))
        self.head = nn.Conv2d(WIDTHS[0], out_channels, 1)

    def forward(self, hu: Tensor) -> Tensor:
        x = windowed(hu)
        skips: list[Tensor] = []
        for level, stage in enumerate(self.encoder):
            x = stage(x)
            if level < len(self.down):
                skips.append(x)
                x = self.down[level](x)
        for level in reversed(range(len(self.decoder))):
            x = torch.cat([self.up[level](x), self.attention[level](skips[level])], dim=1)
            x = self.decoder[level](x)
        logits: Tensor = self.head(x)
        return logits


class PlainVNet2D(VNet2D):
    """The same without attention: the paper's second baseline."""

    def __init__(self, out_channels: int, size: int) -> None:
        super().__init__(out_channels, size, attention=False)
