"""Filling in masked parts of a slice: generators and critics (Deng et al. 2021, image diagnosis).

In: image in -1..1, zero where masked, and mask, both (n, 1, size, size).  Out: the same shape in -1..1.  The
critic takes a whole image with its mask and returns (n,).

The paper trains DCGAN, WGAN-GP and PGGAN on 128 x 128 slices and then searches a latent code whose image
agrees with what isn't masked. Ours fills in by one forward pass, as a context encoder does (the same
adversarial losses beside the reconstruction; a search has no place in a served graph). A fixed field of noise
is the generator's only randomness, so that the same input always gives the same answer.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

#: HU that -1 and 1 stand for
HU_LOW, HU_HIGH = -1024.0, 400.0
WIDTHS = (32, 64, 96, 128)
CRITIC_WIDTHS = (16, 32, 64, 96, 128)
DC_WIDTHS = (16, 32, 64, 96, 128)
NOISE_SEED = 20210
SLOPE = 0.2


def scaled(hu: Tensor) -> Tensor:
    """HU as float -> -1..1."""
    return (hu.clamp(HU_LOW, HU_HIGH) - HU_LOW) / (HU_HIGH - HU_LOW) * 2.0 - 1.0


def unscaled(x: Tensor) -> Tensor:
    """-1..1 -> HU."""
    return (x + 1.0) * 0.5 * (HU_HIGH - HU_LOW) + HU_LOW


def fixed_noise(size: int) -> Tensor:
    """(1, 1, size, size), the same in every network."""
    return torch.randn((1, 1, size, size), generator=torch.Generator().manual_seed(NOISE_SEED))


def _conv(source: int, target: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(source, target, 3, stride, padding=dilation, dilation=dilation), nn.LeakyReLU(SLOPE)
    )


class Generator(nn.Module):
    """Encoder and decoder with skip connections and a dilated middle, no normalisation.

    It works on 2 x 2 blocks of pixels as channels (pixel shuffle), a quarter of the cost.
    """

    noise: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("noise", fixed_noise(size), persistent=False)
        self.enter = nn.Sequential(nn.PixelUnshuffle(2), _conv(12, WIDTHS[0]))
        self.down = nn.ModuleList(nn.Sequential(_conv(a, b, 2), _conv(b, b)) for a, b in pairwise(WIDTHS))
        self.middle = nn.Sequential(*(_conv(WIDTHS[-1], WIDTHS[-1], dilation=d) for d in (1, 2, 3)))
        self.up = nn.ModuleList(_conv(a + b, a) for a, b in pairwise(WIDTHS))
        self.leave = nn.Sequential(
            _conv(WIDTHS[0], WIDTHS[0]), nn.Conv2d(WIDTHS[0], 4, 3, padding=1), nn.PixelShuffle(2)
        )

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        x = self.enter(torch.cat([image, mask, self.noise * mask], dim=1))
        skips = []
        for layer in self.down:
            skips.append(x)
            x = layer(x)
        x = self.middle(x)
        for layer, skip in zip(reversed(self.up), reversed(skips), strict=True):
            x = layer(torch.cat([functional.interpolate(x, scale_factor=2.0), skip], dim=1))
        return torch.tanh(self.leave(x))


class Critic(nn.Module):
    """Strided convolutions without batch normalisation, as the gradient penalty demands."""

    def __init__(self, size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 2
        for width in CRITIC_WIDTHS:
            layers += [nn.Conv2d(before, width, 4, 2, padding=1), nn.LeakyReLU(SLOPE)]
            before = width
        side = size >> len(CRITIC_WIDTHS)
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * side * side, 1))

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        scores: Tensor = self.layers(torch.cat([image, mask], dim=1))
        return scores[:, 0]


class InpaintGAN(nn.Module):
    """Generator and critic; forward is the generator alone. ``out_channels`` is 1."""

    def __init__(self, out_channels: int, size: int) -> None:
        super().__init__()
        if out_channels != 1 or size % 32:
            raise ValueError(f"one channel and a multiple of 32 pixels, not {out_channels} and {size}")
        self.generator: nn.Module = Generator(size)
        self.critic: nn.Module = Critic(size)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        filled: Tensor = self.generator(image, mask)
        return filled


class DCGenerator(nn.Module):
    """Radford et al. 2016 as a context encoder: strided and transposed convolutions, batch normalisation,
    ReLU and tanh, a bottleneck instead of skip connections."""

    noise: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("noise", fixed_noise(size), persistent=False)
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        before = 3
        for width in DC_WIDTHS:
            down += [
                nn.Conv2d(before, width, 4, 2, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.LeakyReLU(SLOPE),
            ]
            before = width
        for width in reversed(DC_WIDTHS[:-1]):
            up += [nn.ConvTranspose2d(before, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.layers = nn.Sequential(*down, *up, nn.ConvTranspose2d(before, 1, 4, 2, 1), nn.Tanh())

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        filled: Tensor = self.layers(torch.cat([image, mask, self.noise * mask], dim=1))
        return filled


class DCGAN(InpaintGAN):
    """The paper's first baseline: batch-normalised generator and discriminator, cross-entropy."""

    def __init__(self, out_channels: int, size: int) -> None:
        super().__init__(out_channels, size)
        self.generator = DCGenerator(size)
        critic = Critic(size)
        layers: list[nn.Module] = []
        for layer in critic.layers:
            layers.append(layer)
            if isinstance(layer, nn.Conv2d) and layer.in_channels > 2:
                layers.append(nn.BatchNorm2d(layer.out_channels))
        critic.layers = nn.Sequential(*layers)
        self.critic = critic
