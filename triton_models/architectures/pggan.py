"""PGGAN (Karras et al. 2018), the paper's second baseline for filling in: grows from a quarter of the side.

In and out: as ``inpaint``.  While training, first the coarsest level learns, then each finer one is faded in;
``progress`` (0 to 1, a buffer, so that a resumed run goes on where it was) says how far. Afterwards, and in
evaluation mode, the network is at its full size.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from triton_models.architectures.inpaint import SLOPE, InpaintGAN, fixed_noise

#: of the levels from coarse (size / 4) to fine (size), and of the two below the coarsest
LEVEL_WIDTHS = (48, 24, 12)
CORE_WIDTHS = (96, 128)
FINEST = len(LEVEL_WIDTHS) - 1


def level_at(progress: float) -> tuple[int, float]:
    """(finest level in use, its weight): each level has an equal share, half of it to be faded in."""
    share = progress * (FINEST + 1)
    level = min(int(share), FINEST)
    return level, 1.0 if level == 0 else min(2.0 * (share - level), 1.0)


class PixelNorm(nn.Module):
    """Features of each pixel to unit mean square."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


def _conv(source: int, target: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(source, target, 3, stride, padding=1), nn.LeakyReLU(SLOPE))


class _Growing(nn.Module):
    """What generator and critic share: the level in use, and inputs of each level."""

    progress: Tensor

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.register_buffer("progress", torch.zeros(()))
        self.enter = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, width, 1), nn.LeakyReLU(SLOPE)) for width in LEVEL_WIDTHS
        )
        #: from each level but the coarsest to the next coarser
        self.down = nn.ModuleList(_conv(fine, coarse, 2) for coarse, fine in pairwise(LEVEL_WIDTHS))

    def in_use(self) -> tuple[int, float]:
        return level_at(float(self.progress)) if self.training else (FINEST, 1.0)

    def descend(self, given: Tensor, level: int, weight: float) -> tuple[Tensor, list[Tensor]]:
        """Features at the coarsest level, and those of the finer ones, finest first."""

        def entered(at: int) -> Tensor:
            factor = 1 << (FINEST - at)
            features: Tensor = self.enter[at](functional.avg_pool2d(given, factor) if factor > 1 else given)
            return features

        x, skips = entered(level), []
        for at in range(level, 0, -1):
            skips.append(x)
            x = self.down[at - 1](x)
            if at == level and weight < 1.0:
                x = torch.lerp(entered(at - 1), x, weight)
        return x, skips


class PGGenerator(_Growing):
    """A U-Net whose outer levels grow."""

    noise: Tensor

    def __init__(self, size: int) -> None:
        super().__init__(3)
        self.register_buffer("noise", fixed_noise(size), persistent=False)
        inner, core = LEVEL_WIDTHS[0], CORE_WIDTHS
        self.core_down = nn.ModuleList([_conv(inner, core[0], 2), _conv(core[0], core[1], 2)])
        self.core_up = nn.ModuleList(
            [
                nn.Sequential(_conv(core[1] + core[0], core[0]), PixelNorm()),
                nn.Sequential(_conv(core[0] + inner, inner), PixelNorm()),
            ]
        )
        self.up = nn.ModuleList(
            nn.Sequential(_conv(coarse + fine, fine), PixelNorm(), _conv(fine, fine), PixelNorm())
            for coarse, fine in pairwise(LEVEL_WIDTHS)
        )
        self.leave = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in LEVEL_WIDTHS)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        level, weight = self.in_use()
        x, skips = self.descend(torch.cat([image, mask, self.noise * mask], dim=1), level, weight)
        inside = []
        for layer in self.core_down:
            inside.append(x)
            x = layer(x)
        for layer, skip in zip(self.core_up, reversed(inside), strict=True):
            x = layer(torch.cat([functional.interpolate(x, scale_factor=2.0), skip], dim=1))
        coarser = x
        for at, skip in enumerate(reversed(skips), start=1):
            coarser = x
            x = self.up[at - 1](torch.cat([functional.interpolate(x, scale_factor=2.0), skip], dim=1))
        out = self.leave[level](x)
        if weight < 1.0:
            before = functional.interpolate(self.leave[level - 1](coarser), scale_factor=2.0)
            out = torch.lerp(before, out, weight)
        if level < FINEST:
            out = functional.interpolate(out, scale_factor=float(1 << (FINEST - level)))
        return torch.tanh(out)


class PGCritic(_Growing):
    """Grows with the generator; sees how much a batch varies."""

    def __init__(self, size: int) -> None:
        super().__init__(2)
        inner, core = LEVEL_WIDTHS[0], CORE_WIDTHS
        self.core = nn.Sequential(
            _conv(inner, core[0], 2), _conv(core[0], core[1], 2), _conv(core[1], core[1], 2)
        )
        side = size >> (FINEST + 3)
        self.leave = nn.Linear((core[1] + 1) * side * side, 1)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        x, _ = self.descend(torch.cat([image, mask], dim=1), *self.in_use())
        x = self.core(x)
        spread = (x.var(dim=0, unbiased=False) + 1e-8).sqrt().mean().expand(x.shape[0], 1, *x.shape[2:])
        scores: Tensor = self.leave(torch.cat([x, spread], dim=1).flatten(1))
        return scores[:, 0]


class PGGAN(InpaintGAN):
    """Growing generator and critic."""

    def __init__(self, out_channels: int, size: int) -> None:
        super().__init__(out_channels, size)
        self.generator = PGGenerator(size)
        self.critic = PGCritic(size)

    def grow(self, share: float) -> None:
        """Another share of the training is done."""
        for part in (self.generator, self.critic):
            assert isinstance(part, _Growing)  # noqa: S101 - tells mypy what __init__ says
            part.progress.add_(share).clamp_(max=1.0)
