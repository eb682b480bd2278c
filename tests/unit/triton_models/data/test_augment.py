"""Augmentation moves image and labels by one transformation."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional

from triton_models.data.augment import Augmentation, augment
from triton_models.registry import HU_RANGE

OFF = Augmentation(
    rotation=0.0,
    translation=0.0,
    scaling=0.0,
    elastic=0.0,
    mirror=0.0,
    upside_down=0.0,
    noise_hu=0.0,
    offset_hu=0.0,
    contrast=0.0,
    blur=0.0,
)
GEOMETRY_ONLY = Augmentation(noise_hu=0.0, offset_hu=0.0, contrast=0.0, blur=0.0)


def _disc(n: int = 6, size: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Soft tissue in air, off centre; the label is the tissue."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    inside = ((rows - 50) ** 2 / 600 + (columns - 75) ** 2 / 300) < 1
    hu = torch.where(inside, 50.0, -1024.0).repeat(n, 1, 1)
    return hu, inside.to(torch.uint8).repeat(n, 1, 1)[:, None]


def test_label_follows_image() -> None:
    hu, label = _disc()
    moved, moved_label = augment(hu, label, GEOMETRY_ONLY, torch.Generator().manual_seed(1))
    assert not torch.equal(moved_label, label)
    disagree = (moved > -487.0) != (moved_label[:, 0] == 1)
    edge = moved_label.sum() ** 0.5
    assert disagree.sum() < 4 * edge  # only where bilinear and nearest sampling differ, on the border
    assert moved_label.dtype == torch.uint8
    assert set(moved_label.flatten().tolist()) <= {0, 1}


def test_every_kind_off_changes_nothing() -> None:
    hu, label = _disc(2)
    moved, moved_label = augment(hu, label, OFF, torch.Generator().manual_seed(1))
    assert torch.allclose(moved, hu, atol=1e-2)
    assert torch.equal(moved_label, label)


def test_same_generator_state_gives_the_same_batch() -> None:
    hu, label = _disc()
    first = augment(hu, label, Augmentation(), torch.Generator().manual_seed(3))
    second = augment(hu, label, Augmentation(), torch.Generator().manual_seed(3))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_mirroring_happens_and_noise_leaves_labels_alone() -> None:
    hu, label = _disc(8)
    mirror = replace(OFF, mirror=1.0)
    moved, moved_label = augment(hu, label, mirror, torch.Generator().manual_seed(0))
    assert torch.allclose(moved, hu.flip(-1), atol=1e-2)
    assert torch.equal(moved_label, label.flip(-1))
    noisy = replace(OFF, noise_hu=50.0, offset_hu=20.0, contrast=0.05, blur=0.5)
    changed, same_label = augment(hu, label, noisy, torch.Generator().manual_seed(0))
    assert not torch.allclose(changed, hu)
    assert torch.equal(same_label, label)
    assert changed.min() >= HU_RANGE[0]


def test_a_finer_image_is_sampled_to_the_size_asked_for() -> None:
    hu, label = _disc(2, size=128)
    generator = torch.Generator().manual_seed(1)
    small, shares = augment(hu, label.float(), OFF, generator, size=64)
    assert small.shape == (2, 64, 64)
    assert torch.allclose(small, functional.avg_pool2d(hu[:, None], 2)[:, 0], atol=1e-2)
    assert torch.allclose(shares, functional.avg_pool2d(label.float(), 2), atol=1e-5), "shares of pixels"


def test_contrast_about_the_mean_keeps_it() -> None:
    hu = torch.rand(4, 32, 32, generator=torch.Generator().manual_seed(1)) * 300 - 700
    contrast = replace(OFF, contrast=0.2, contrast_about_mean=True)
    changed, _ = augment(hu, torch.zeros(4, 1, 32, 32), contrast, torch.Generator().manual_seed(2))
    assert torch.allclose(changed.mean((1, 2)), hu.mean((1, 2)), atol=0.5)
    ratio = changed.std((1, 2)) / hu.std((1, 2))
    assert (ratio - 1).abs().max() > 0.05
    assert (ratio - 1).abs().max() < 0.2
