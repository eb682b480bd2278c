"""Slice classifiers that look at the lungs: segmentation teaches the features, a linear head reads them.

In: (n, 1, size, size) float, a lung window as ``normalised`` gives it.  Out: (n, classes) logits.

A body learns to segment lungs, lesions and consolidation (a light top-down decoder beside it). For the class,
its stages' features are averaged over the lungs and over the lesions that it found, and so are their
deviations; a linear layer reads all four. With few labelled pictures that generalises where training all of
the network to the classes does not (docs/evaluation.md has what was tried).

``PneumoniaNet`` has the ResNet-34 of the platform paper (seeds "ctcloud"; it trained on 6000 pictures).
``SmallFusion`` concatenates the features of three bodies (Ji et al. 2021, section 2.3, with seven); its layer
reads their square roots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from triton_models.architectures.backbones import (
    Body,
    ResNet34,
    SmallDenseNet,
    SmallXception,
    convolution,
)

#: what the decoder finds, in order
MASKS = ("lungs", "lesion", "consolidation")
LUNGS, LESION = 0, 1
DECODER_CHANNELS = 32
FIRST_POOLED_STAGE = 1  # of four; the first knows only edges
POOLED_OVER = 2  # lungs, lesions
#: of a place outside, so that everything has an average: of a slice without lungs that of the slice, of lungs
#: without lesions that of the lungs
SMALLEST_WEIGHT = 1e-3


def normalised(window: Tensor) -> Tensor:
    """Grey of a lung window, 0 to 1, to about -1.5 to 1.5."""
    return (window - 0.5) * 3.0


class LungPooled(nn.Module):
    """A body, its decoder, and the features that are pooled over the lungs and over their lesions."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        self.lateral = nn.ModuleList([nn.Conv2d(c, DECODER_CHANNELS, 1) for c in body.channels])
        self.smooth = convolution(DECODER_CHANNELS, DECODER_CHANNELS)
        self.head = nn.Conv2d(DECODER_CHANNELS, len(MASKS), 1)

    @property
    def feature_count(self) -> int:
        return 2 * POOLED_OVER * sum(self.body.channels[FIRST_POOLED_STAGE:])

    def masks(self, maps: Sequence[Tensor]) -> Tensor:
        """(n, len(MASKS), size / 4, size / 4) logits."""
        x: Tensor = self.lateral[-1](maps[-1])
        for lateral, finer in zip(reversed(self.lateral[:-1]), reversed(maps[:-1]), strict=True):
            x = functional.interpolate(x, size=finer.shape[-2:], mode="nearest") + lateral(finer)
        logits: Tensor = self.head(self.smooth(x))
        return logits

    def mirrored_features(self, x: Tensor) -> Tensor:
        """(n, feature_count), means of the slice's and its mirror image's."""
        features = self.features(torch.cat([x, x.flip(-1)]))
        return features.reshape(2, -1, features.shape[1]).mean(dim=0)

    def features(self, x: Tensor) -> Tensor:
        """(n, feature_count): mean and standard deviation of each pooled channel over the lungs, then over
        the lesions."""
        maps = self.body(x)
        found = torch.sigmoid(self.masks(maps).float())
        lesions = found[:, LESION][:, None]
        lungs = torch.maximum(found[:, LUNGS][:, None], lesions) + SMALLEST_WEIGHT
        pooled: list[Tensor] = []
        for weights in (lungs, lesions + SMALLEST_WEIGHT * lungs):
            for level in range(FIRST_POOLED_STAGE, len(maps)):
                pooled += mean_and_deviation(maps[level].float(), functional.avg_pool2d(weights, 2**level))
        return torch.cat(pooled, dim=1)


def mean_and_deviation(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Of each channel of (n, channels, rows, columns), (n, channels) each; weights: (n, 1, rows, columns)."""
    total = weights.sum(dim=(2, 3))
    mean = (values * weights).sum(dim=(2, 3)) / total
    variance = ((values - mean[:, :, None, None]) ** 2 * weights).sum(dim=(2, 3)) / total
    return mean, torch.sqrt(variance + 1e-8)


class StandardisedLinear(nn.Module):
    """A linear layer that reads standardised features; ``training.linear_head`` solves it.

    middle, scale: (feature_count,), of the training features.
    """

    middle: Tensor
    scale: Tensor

    def __init__(self, feature_count: int, out_channels: int) -> None:
        super().__init__()
        self.register_buffer("middle", torch.zeros(feature_count))
        self.register_buffer("scale", torch.ones(feature_count))
        self.linear = nn.Linear(feature_count, out_channels)

    def spread(self, features: Tensor) -> Tensor:
        """What is standardised: the features themselves."""
        return features

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.linear((self.spread(features) - self.middle) / self.scale)
        return logits


class RootLinear(StandardisedLinear):
    """One that reads the features' square roots, with their sign: means and deviations of activations have a
    few large values, which would have most to say.

    exponent: (), kept with the weights, which mean nothing without it.
    """

    exponent: Tensor

    def __init__(self, feature_count: int, out_channels: int) -> None:
        super().__init__(feature_count, out_channels)
        self.register_buffer("exponent", torch.tensor(0.5))

    def spread(self, features: Tensor) -> Tensor:
        """The roots."""
        return torch.sign(features) * features.abs() ** self.exponent.to(features.dtype)


class LungPooledClassifier(nn.Module):
    """Bodies side by side, their features concatenated, and what reads them.

    ``size``: side of the square input in pixels, a multiple of 32.
    """

    head_type: type[StandardisedLinear] = StandardisedLinear

    def __init__(self, bodies: Sequence[Body], out_channels: int, size: int) -> None:
        super().__init__()
        if size % 32:
            raise ValueError(f"size must be a multiple of 32 for stride 32, got {size}")
        pooled = [LungPooled(body) for body in bodies]
        self.pooled = nn.ModuleList(pooled)
        self.head = self.head_type(sum(one.feature_count for one in pooled), out_channels)

    def features(self, x: Tensor) -> Tensor:
        """(n, all bodies' feature_count)."""
        return torch.cat([cast(LungPooled, one).mirrored_features(x) for one in self.pooled], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


class PneumoniaNet(LungPooledClassifier):
    """One ResNet-34."""

    def __init__(self, out_channels: int, size: int) -> None:
        super().__init__([ResNet34()], out_channels, size)


class SmallFusion(LungPooledClassifier):
    """Three light bodies: ``PneumoniaNet``'s ResNet-34, a DenseNet and an Xception."""

    head_type = RootLinear

    def __init__(self, out_channels: int, size: int) -> None:
        super().__init__([ResNet34(), SmallDenseNet(), SmallXception()], out_channels, size)
