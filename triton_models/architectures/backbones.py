"""Convolutional bodies for whole slices, small enough to be trained from scratch on a CPU.

In: (n, 1, size, size) float.  Out: feature maps at strides 4, 8, 16 and 32, as many channels as ``channels``.

``ResNet34`` (He et al. 2016; the platform paper's network), ``SmallDenseNet`` (Huang et al. 2017) and
``SmallXception`` (Chollet 2017) are the small fusion's. Ours: their widths, a stem of two 3x3 convolutions,
and average pooling before the projection of a shortcut (He et al. 2019), so that no pixel is skipped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

RESNET_BLOCKS = (3, 4, 6, 3)
#: half of ResNet-34's, and a last stage that keeps its weights below 8 MB in half precision
RESNET_CHANNELS = (32, 64, 128, 176)
DENSE_GROWTH, DENSE_LAYERS = 16, (4, 6, 8, 6)
XCEPTION_CHANNELS, XCEPTION_BLOCKS = (32, 64, 128, 256), (2, 3, 4, 2)


class Body(nn.Module):
    """A stem to stride 4 and four stages; each stage but the first halves the resolution."""

    def __init__(self, width: int, stages: list[nn.Module], channels: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            convolution(1, width // 2, stride=2), convolution(width // 2, width), nn.MaxPool2d(3, 2, 1)
        )
        self.stages = nn.ModuleList(stages)
        self.channels = channels

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def convolution(
    in_channels: int, channels: int, kernel: int = 3, *, stride: int = 1, active: bool = True
) -> nn.Sequential:
    """Convolution, batch normalisation and, if ``active``, ReLU."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(channels),
    ]
    return nn.Sequential(*layers, *([nn.ReLU()] if active else []))


class _Residual(nn.Module):
    """Adds the (projected) input to what ``inner`` makes of it."""

    def __init__(self, inner: nn.Module, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.inner = inner
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != channels:
            pool = [nn.AvgPool2d(2)] if stride > 1 else []
            self.shortcut = nn.Sequential(*pool, convolution(in_channels, channels, 1, active=False))
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.inner(x) + self.shortcut(x))
        return out


def _residual_stages(
    channels: tuple[int, ...], counts: tuple[int, ...], inner: Callable[[int, int, int], nn.Module]
) -> list[nn.Module]:
    """Stages of ``counts`` residual blocks. inner: what a block adds, of channels in and out and stride."""
    stages: list[nn.Module] = []
    before = channels[0]
    for level, (count, after) in enumerate(zip(counts, channels, strict=True)):
        blocks = []
        for number in range(count):
            stride = 2 if level and not number else 1
            blocks.append(_Residual(inner(before, after, stride), before, after, stride))
            before = after
        stages.append(nn.Sequential(*blocks))
    return stages


class ResNet34(Body):
    """3, 4, 6 and 3 basic blocks."""

    def __init__(self, channels: tuple[int, ...] = RESNET_CHANNELS) -> None:
        super().__init__(channels[0], _residual_stages(channels, RESNET_BLOCKS, self._basic), channels)

    @staticmethod
    def _basic(before: int, after: int, stride: int) -> nn.Module:
        last = nn.BatchNorm2d(after)
        nn.init.zeros_(last.weight)  # every block begins as the identity
        second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        return nn.Sequential(convolution(before, after, stride=stride), second, last)


class _DenseLayer(nn.Module):
    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.ReLU(),
            nn.Conv2d(in_channels, 2 * DENSE_GROWTH, 1, bias=False),
            nn.BatchNorm2d(2 * DENSE_GROWTH),
            nn.ReLU(),
            nn.Conv2d(2 * DENSE_GROWTH, DENSE_GROWTH, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], dim=1)


class SmallDenseNet(Body):
    """DenseNet-BC with growth 16; half of the channels pass from stage to stage."""

    def __init__(self) -> None:
        width = 2 * DENSE_GROWTH
        stages: list[nn.Module] = []
        channels: list[int] = []
        count = width
        for level, layers in enumerate(DENSE_LAYERS):
            parts: list[nn.Module] = []
            if level:
                half = count // 32 * 16
                parts += [nn.BatchNorm2d(count), nn.ReLU(), nn.Conv2d(count, half, 1, bias=False)]
                parts.append(nn.AvgPool2d(2))
                count = half
            for _ in range(layers):
                parts.append(_DenseLayer(count))
                count += DENSE_GROWTH
            stages.append(nn.Sequential(*parts, nn.BatchNorm2d(count), nn.ReLU()))
            channels.append(count)
        super().__init__(width, stages, tuple(channels))


class SmallXception(Body):
    """Blocks of two depthwise separable convolutions."""

    def __init__(self, channels: tuple[int, ...] = XCEPTION_CHANNELS) -> None:
        super().__init__(channels[0], _residual_stages(channels, XCEPTION_BLOCKS, self._separable), channels)

    @staticmethod
    def _separable(before: int, after: int, stride: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(before, before, 3, padding=1, groups=before, bias=False),
            convolution(before, after, 1),
            nn.Conv2d(after, after, 3, stride, padding=1, groups=after, bias=False),
            convolution(after, after, 1, active=False),
        )
