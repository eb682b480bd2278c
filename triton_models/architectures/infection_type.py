"""Patch classifier with location attention (Xu et al. 2020, Fig. 4).

In: (n, len(WINDOWS), size, size) float and (n, 1) relative distance-from-edge.  Out: (n, classes) logits.

From the paper: ResNet-18 as feature extractor, flattened to a 256-dimensional vector, a fully connected layer
to 16; the relative distance, "normalized to the same order of magnitude", joins those 16; three fully
connected layers. The baseline lacks the distance. Ours: a quarter of ResNet-18's widths (0.8 instead of 11
million parameters), because patches of generated phantoms teach no more; two HU windows instead of colours;
the widths of the last layers, which the paper doesn't state.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from triton_models.architectures.windows import WINDOWS

WIDTHS = (16, 32, 64, 128)
BLOCKS = (2, 2, 2, 2)  # ResNet-18
FLAT, FEATURES = 256, 16
HIDDEN = (32, 16)
#: middle and spread of the relative distances of lung tissue
DISTANCE_MEAN, DISTANCE_SCALE = 0.05, 0.03


class BasicBlock(nn.Module):
    """Two 3x3 convolutions whose input, projected where the shape changes, is added to their output."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.convolutions(x) + self.shortcut(x))


class LocationAttention(nn.Module):
    """The network; ``size`` is the side of a patch in pixels, a multiple of 32."""

    def __init__(self, out_channels: int, size: int, *, location: bool = True) -> None:
        super().__init__()
        if size % 32:
            raise ValueError(f"patch size must be a multiple of 32, got {size}")
        self.location = location
        layers: list[nn.Module] = [
            nn.Conv2d(len(WINDOWS), WIDTHS[0], 7, 2, padding=3, bias=False),
            nn.BatchNorm2d(WIDTHS[0]),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
        ]
        before = WIDTHS[0]
        for level, (width, count) in enumerate(zip(WIDTHS, BLOCKS, strict=True)):
            for number in range(count):
                layers.append(BasicBlock(before, width, 2 if level and not number else 1))
                before = width
        self.extractor = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(before * (size // 32) ** 2, FLAT), nn.ReLU()
        )
        self.features = nn.Sequential(nn.Linear(FLAT, FEATURES), nn.ReLU())
        self.head = nn.Sequential(
            nn.Linear(FEATURES + (1 if location else 0), HIDDEN[0]),
            nn.ReLU(),
            nn.Linear(HIDDEN[0], HIDDEN[1]),
            nn.ReLU(),
            nn.Linear(HIDDEN[1], out_channels),
        )

    def forward(self, x: Tensor, distance: Tensor) -> Tensor:
        features = self.features(self.extractor(x))
        if self.location:
            features = torch.cat([features, (distance - DISTANCE_MEAN) / DISTANCE_SCALE], dim=1)
        logits: Tensor = self.head(features)
        return logits


class PlainResNet(LocationAttention):
    """The same without the distance, which it takes and ignores: the paper's baseline."""

    def __init__(self, out_channels: int, size: int) -> None:
        super().__init__(out_channels, size, location=False)
