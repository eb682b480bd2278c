"""COVSeg-NET (Zhang et al. 2021, sections 2.3 and 3.2, tables 2 to 4).

In: (n, 1, size, size) HU as float.  Out: (n, 2, size, size) logits, of infection and of the share of
consolidation in it; ``type_probabilities`` makes the sigmoids of the paper's two types of them. In training
mode a list: the logits, with a third channel of lung, then those of the auxiliary heads, at lower
resolutions.

From the paper: nine numbered convolutional layers, four down and four up; 3x3 convolutions with ELU and
batch normalisation; 3x3 max pooling; dropout 0.5; inception blocks (1x1, 3x3, 5x5, 3x3 pool side by side);
2x2 upsampling; merges of layers 4 and 6, 3 and 7, 2 and 8, 1 and 9; its 128 pixels inside. Ours: the widths
(the paper's tables did not survive in the text we have), inception blocks that add to what they read, a stem
that takes 2x2 pixels to channels and a head that takes them back, inputs relative to the slice's own lung and
tissue, and what serves in training only: auxiliary heads, and that the network tells lung (with its lesions)
too, so that it learns where a lesion can be.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (16, 32, 64, 96, 128)
DROPOUT = 0.5
STEM = 2
OUTPUTS = 2  # infection, share of consolidation
LEARNED = OUTPUTS + 1  # and lung
AUXILIARY_LEVELS = (1, 2)

#: (low, high) HU mapped to -1..1: the lung window of pictures, its dark half, its bright half
WINDOWS = ((-1050.0, 250.0), (-1050.0, -400.0), (-530.0, 250.0))
CHANNELS = len(WINDOWS) + 2
PADDING_HU = -1020.0  # what is darker is padding, or air that is like it
TWO_MEANS_ROUNDS = 3
SMALLEST_CONTRAST_HU = 130.0


def slice_channels(hu: Tensor) -> Tensor:
    """(n, 1, rows, columns) HU -> (n, CHANNELS, rows, columns), about -1 to 2.

    Beside ``WINDOWS``: HU relative to the means of the dark and of the bright pixels (lung is 0, tissue 1, by
    two-means clustering), and the same twice as steep. Pictures whose window nobody wrote down, and slices
    of other kernels and doses, look alike there.
    """
    low, high = WINDOWS[0]
    clipped = hu.clamp(low, high)
    seen = (hu > PADDING_HU).to(hu.dtype)

    def mean_of(chosen: Tensor) -> Tensor:
        return (clipped * chosen).sum((2, 3), keepdim=True) / chosen.sum((2, 3), keepdim=True).clamp(min=1.0)

    cut = mean_of(seen)
    for _ in range(TWO_MEANS_ROUNDS):
        dark = mean_of(seen * (clipped < cut).to(hu.dtype))
        bright = mean_of(seen * (clipped >= cut).to(hu.dtype))
        cut = (dark + bright) / 2
    relative = (clipped - dark) / (bright - dark).clamp(min=SMALLEST_CONTRAST_HU)
    windows = [((hu - a) / (b - a)).clamp(0.0, 1.0) * 2.0 - 1.0 for a, b in WINDOWS]
    return torch.cat([*windows, relative.clamp(-1.0, 2.0), (relative * 2.0).clamp(-1.0, 1.0)], dim=1)


def type_probabilities(logits: Tensor) -> Tensor:
    """The network's logits -> probabilities of ground glass and of consolidation, (n, 2, …)."""
    infection, share = torch.sigmoid(logits).unbind(dim=1)
    return torch.stack([infection * (1.0 - share), infection * share], dim=1)


def _convolution(in_channels: int, channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ELU(),
    )


class Inception(nn.Module):
    """1x1, 3x3 and 5x5 convolutions and a 3x3 max pool side by side, a quarter of the channels each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % 4:
            raise ValueError(f"an inception block needs a multiple of 4 channels, got {channels}")
        quarter = channels // 4
        pooled = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), _convolution(channels, quarter, 1))
        self.branches = nn.ModuleList(
            [*(_convolution(channels, quarter, kernel) for kernel in (1, 3, 5)), pooled]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Layer(nn.Module):
    """One numbered layer: a 3x3 convolution, and an inception block that adds to it."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.first = _convolution(in_channels, channels, 3)
        self.second = Inception(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        added: Tensor = x + self.second(x)
        return added


class COVSegNet(nn.Module):
    """The network. ``size`` is the side of its square input in pixels, a multiple of 32."""

    def __init__(self, out_channels: int, size: int) -> None:
        super().__init__()
        if size % (16 * STEM):
            raise ValueError(f"size must be a multiple of {16 * STEM} for five halvings, got {size}")
        if out_channels != OUTPUTS:
            raise ValueError(f"tells ground glass and consolidation, two classes, not {out_channels}")
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        source = CHANNELS * STEM**2
        for level, width in enumerate(WIDTHS):
            self.down.append(Layer(source, width))
            if level + 1 < len(WIDTHS):
                self.up.append(Layer(WIDTHS[level + 1] + width, width))
            source = width
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Conv2d(WIDTHS[0], LEARNED * STEM**2, 1)
        self.auxiliary = nn.ModuleList([nn.Conv2d(WIDTHS[level], LEARNED, 1) for level in AUXILIARY_LEVELS])

    def forward(self, hu: Tensor) -> Tensor | list[Tensor]:
        x = functional.pixel_unshuffle(slice_channels(hu), STEM)
        merged: list[Tensor] = []
        for level, layer in enumerate(self.down):
            x = layer(x)
            if level < len(self.up):
                merged.append(x)
                x = self.pool(x)
        x = self.dropout(x)
        decoded: dict[int, Tensor] = {}
        # layer 6 merges 4, 7 merges 3, 8 merges 2, 9 merges 1
        for level in reversed(range(len(self.up))):
            x = self.up[level](torch.cat([self.upsample(x), merged[level]], dim=1))
            decoded[level] = x
        logits = functional.pixel_shuffle(self.head(x), STEM)
        if not self.training:
            return logits[:, :OUTPUTS]
        heads = zip(self.auxiliary, AUXILIARY_LEVELS, strict=True)
        return [logits, *(head(decoded[level]) for head, level in heads)]
