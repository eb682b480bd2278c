"""Augmentation of training slices (Deng et al. 2021, section 2.1): image and label move together.

In: a batch of HU and labels as tensors.  Out: the batch rotated, shifted, mirrored, scaled and elastically
deformed, labels by the same transformation; then the image alone gets new contrast and noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from triton_models.registry import HU_RANGE

GAMMA_HU = (-1050.0, 250.0)


@dataclass(frozen=True)
class Augmentation:
    """Largest deviation of each kind; 0 switches a kind off.

    rotation: radians.  translation: fraction of the side.  scaling: fraction.  stretching: fraction by which
    a side may grow while the other shrinks.  elastic: standard deviation of its knots, fraction of half a
    side.  mirror, upside_down, blur: probabilities.  noise_hu, offset_hu: HU.  contrast: fraction, about
    -1000 HU, or about the slice's mean.  gamma: logarithm of the exponent that is applied to the share of
    GAMMA_HU.  sharpening: how far ``blur`` may go the other way, as a share of it.
    """

    rotation: float = 0.30
    translation: float = 0.10
    scaling: float = 0.22
    elastic: float = 0.012
    mirror: float = 0.5
    upside_down: float = 0.06
    noise_hu: float = 35.0
    offset_hu: float = 25.0
    contrast: float = 0.04
    contrast_about_mean: bool = False
    blur: float = 0.25
    stretching: float = 0.0
    gamma: float = 0.0
    sharpening: float = 0.0


def augment(
    hu: Tensor,
    labels: Tensor,
    settings: Augmentation,
    generator: torch.Generator,
    *,
    size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """hu: (n, rows, columns) float; labels: (n, channels, rows, columns). Returns new tensors.

    size: side of what is returned, in pixels; as given by default. Sampling from a grid as coarse as that
    blurs, and the network is asked about sharper images later; so give a finer one where there is one.
    Integer labels are those of the nearest pixel, float ones (shares of a pixel) are interpolated. Outside of
    the moved image there is air (the low end of HU_RANGE) with label 0.
    """
    n, rows, columns = hu.shape
    grid = _sampling_grid((n, size or rows, size or columns), settings, generator)
    low, high = (float(v) for v in HU_RANGE)
    moved = functional.grid_sample((hu - low).unsqueeze(1), grid, mode="bilinear", align_corners=False) + low
    sampling = "bilinear" if labels.is_floating_point() else "nearest"
    moved_labels = functional.grid_sample(labels.float(), grid, mode=sampling, align_corners=False)
    return _intensity(moved[:, 0], settings, generator).clamp(low, high), moved_labels.to(labels.dtype)


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    """(count,) in -1..1."""
    return torch.rand(count, generator=generator) * 2.0 - 1.0


def _sampling_grid(shape: tuple[int, int, int], settings: Augmentation, generator: torch.Generator) -> Tensor:
    n, rows, columns = shape
    angle = _uniform(n, generator) * settings.rotation
    scale = 1.0 + _uniform(n, generator) * settings.scaling
    flip_x = torch.where(torch.rand(n, generator=generator) < settings.mirror, -1.0, 1.0)
    flip_y = torch.where(torch.rand(n, generator=generator) < settings.upside_down, -1.0, 1.0)
    stretch = torch.ones(n)
    if settings.stretching > 0:
        stretch = 1.0 + _uniform(n, generator) * settings.stretching
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    shift_x, shift_y = (_uniform(n, generator) * 2 * settings.translation for _ in range(2))
    matrix = torch.stack(
        [
            torch.stack([cos * flip_x * stretch, -sin * stretch, shift_x], dim=1),
            torch.stack([sin / stretch, cos * flip_y / stretch, shift_y], dim=1),
        ],
        dim=1,
    )
    grid = functional.affine_grid(matrix, [n, 1, rows, columns], align_corners=False)
    if settings.elastic > 0:
        knots = torch.randn((n, 2, 7, 7), generator=generator) * settings.elastic
        bend = functional.interpolate(knots, size=(rows, columns), mode="bicubic", align_corners=False)
        grid = grid + bend.permute(0, 2, 3, 1)
    return grid


def _intensity(hu: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    n = hu.shape[0]

    def per_image(values: Tensor) -> Tensor:
        return values[:, None, None]

    out = hu
    if settings.gamma > 0:
        low, high = GAMMA_HU
        exponent = per_image(torch.exp(_uniform(n, generator) * settings.gamma))
        bent = low + (high - low) * ((out - low) / (high - low)).clamp(0.0, 1.0) ** exponent
        out = torch.where(out < high, bent, out)
    scale = per_image(1.0 + _uniform(n, generator) * settings.contrast)
    offset = per_image(_uniform(n, generator) * settings.offset_hu)
    middle = out.mean(dim=(1, 2), keepdim=True) if settings.contrast_about_mean else -1000.0
    out = (out - middle) * scale + middle + offset
    blurred = functional.avg_pool2d(out.unsqueeze(1), 3, stride=1, padding=1, count_include_pad=False)[:, 0]
    chosen = per_image(torch.rand(n, generator=generator) < settings.blur)
    if settings.sharpening > 0:
        weight = torch.rand(n, generator=generator) * (1 + settings.sharpening) - settings.sharpening
        blurred = torch.lerp(out, blurred, per_image(weight))
    out = torch.where(chosen, blurred, out)
    strength = per_image(torch.rand(n, generator=generator)) ** 2 * settings.noise_hu
    return out + torch.randn(hu.shape, generator=generator) * strength
