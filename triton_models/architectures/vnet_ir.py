"""3D V-Net with inception-residual blocks and a region proposal head (Xu et al. 2020, VNET-IR-RPN).

In: (n, len(WINDOWS), slices, rows, columns) float, slices a multiple of 16, rows and columns of 32.
Out: ``Proposals`` on a grid of cells of ``STRIDE`` voxels, which on a chest are about 1 cm wide each way.

From the paper (candidate regions, and its reference 17): V-Net's encoder and decoder with strided
convolutions and residual learning (Milletari et al. 2016), inception-residual blocks in the stages, a region
proposal head of which only the box regression is used, at a low threshold. The paper gives neither widths nor
the head's details. Ours: the first stage halves rows and columns only, so that voxels become about as long as
wide; the decoder ends where the head is; the head has one peak for each region instead of anchors (as
CenterNet, Zhou et al. 2019), since infections have no usual size or shape, and regresses the box's middle and
sides. Its auxiliary output, the lesion's cells, is V-Net's segmentation; it teaches the features and isn't
served.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from triton_models.architectures.windows import WINDOWS

WIDTHS = (16, 32, 64, 96)
BLOCKS = (1, 2, 2, 1)
#: voxels of the input that a cell covers: slices, rows, columns
STRIDE = (2, 4, 4)
#: logit of a cell before anything is learned: regions are rare
PRIOR = -4.0


class Proposals(NamedTuple):
    """Of each cell, (n, channels, cells, cells, cells).

    peak: logit that a region's middle is here, 1 channel.  places: of the region's box, in cells along
    slices, rows, columns, the middle's offset from the cell's middle, then the logs of the sides, 6 channels.
    lesion: logit that lesion is in the cell, 1 channel.
    """

    peak: Tensor
    places: Tensor
    lesion: Tensor


def _norm(channels: int) -> nn.Module:
    """Of each volume by itself: a batch is one volume, whose statistics a running average wouldn't meet."""
    return nn.InstanceNorm3d(channels, affine=True)


def _convolution(source: int, channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(source, channels, kernel, padding=kernel // 2, bias=False),
        _norm(channels),
        nn.ReLU(),
    )


class InceptionResidual(nn.Module):
    """Branches that see 1, 3 and 5 voxels, joined by a 1x1x1 convolution; their sum with the input; PReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.one = _convolution(channels, half, 1)
        self.three = _convolution(channels, half, 3)
        self.five = nn.Sequential(_convolution(channels, half, 3), _convolution(half, half, 3))
        self.join = nn.Sequential(nn.Conv3d(3 * half, channels, 1, bias=False), _norm(channels))
        self.activation = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        branches = torch.cat([self.one(x), self.three(x), self.five(x)], dim=1)
        out: Tensor = self.activation(x + self.join(branches))
        return out


class VNetIR(nn.Module):
    """The network. out_channels must be 1: a region proposal head has one class. ``size`` isn't needed."""

    def __init__(self, out_channels: int, size: int) -> None:
        super().__init__()
        if out_channels != 1 or size % 32:
            raise ValueError(
                f"proposals have 1 class and a size of a multiple of 32, got {out_channels}, {size}"
            )
        steps = ((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
        self.down, self.encoder = nn.ModuleList(), nn.ModuleList()
        source = len(WINDOWS)
        for width, count, step in zip(WIDTHS, BLOCKS, steps, strict=True):
            # 4 voxels where 2 become 1, 3 where they stay; the lower stages are small enough for 3
            first = source == len(WINDOWS)
            kernel = (3, 4, 4) if first else (3, 3, 3)
            self.down.append(
                nn.Sequential(
                    nn.Conv3d(source, width, kernel, stride=step, padding=1, bias=False),
                    _norm(width),
                    nn.ReLU(),
                )
            )
            self.encoder.append(nn.Sequential(*[InceptionResidual(width) for _ in range(count)]))
            source = width
        self.up, self.decoder = nn.ModuleList(), nn.ModuleList()
        for width in (WIDTHS[2], WIDTHS[1]):
            self.up.append(nn.ConvTranspose3d(source, width, 2, stride=2))
            self.decoder.append(nn.Sequential(_convolution(2 * width, width, 1), InceptionResidual(width)))
            source = width
        self.lesion = nn.Conv3d(source, 1, 1)
        self.head = nn.Sequential(_convolution(source + 1, source, 3), InceptionResidual(source))
        self.peak = nn.Conv3d(source, 1, 1)
        self.places = nn.Conv3d(source, 6, 1)
        nn.init.constant_(self.peak.bias, PRIOR)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Proposals:
        skips: list[Tensor] = []
        for down, stage in zip(self.down, self.encoder, strict=True):
            x = stage(down(x))
            skips.append(x)
        for up, stage, skip in zip(self.up, self.decoder, (skips[2], skips[1]), strict=True):
            x = stage(torch.cat([up(x), skip], dim=1))
        lesion = self.lesion(x)
        x = self.head(torch.cat([x, torch.sigmoid(lesion)], dim=1))
        return Proposals(self.peak(x), self.places(x), lesion)
