"""PSNR, SSIM and KMMD against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from triton_models.evaluation.image_metrics import (
    REGION,
    bounding_box,
    discrepancy_terms,
    kmmd,
    psnr,
    region,
    ssim_map,
)


def test_psnr_of_a_known_error() -> None:
    truth = np.zeros((4, 4), dtype=np.float32)
    assert psnr(truth, truth + np.float32(0.1)) == pytest.approx(20.0, abs=1e-4)
    assert psnr(truth, truth) == float("inf")


def test_ssim_of_flat_images_and_of_itself() -> None:
    rng = np.random.default_rng(0)
    image = rng.random((32, 32)).astype(np.float32)
    assert ssim_map(image, image) == pytest.approx(1.0)
    flat, other = np.full((32, 32), 0.2, np.float32), np.full((32, 32), 0.6, np.float32)
    assert ssim_map(flat, other) == pytest.approx((2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4), rel=1e-4)
    assert ssim_map(image, 1 - image).mean() < 0.0


def test_kmmd_by_hand() -> None:
    # one pixel: first 0 and 1, second 0 and 2; distances 1 1, 2 2, and 0 2 1 1 less those of equal index: 2 1
    first, second = np.array([[0.0], [1.0]], np.float32), np.array([[0.0], [2.0]], np.float32)
    twice_median_squared = 2.0 * 1.5**2  # of 1 1 2 2 2 1
    k = {d: np.exp(-(d**2) / twice_median_squared) for d in (0, 1, 2)}
    expected = (2 + 2 * k[1]) / 4 + (2 + 2 * k[2]) / 4 - 2 * (k[0] + k[2] + k[1] + k[1]) / 4
    assert kmmd(first, second) == pytest.approx(expected)


def test_kmmd_is_nought_for_a_copy_and_grows_with_the_change() -> None:
    rng = np.random.default_rng(1)
    images = rng.random((20, 8, 8)).astype(np.float32)
    values = [kmmd(images, images + np.float32(shift)) for shift in (0.0, 0.05, 0.2, 0.5)]
    assert values[0] == pytest.approx(0.0, abs=1e-12)
    assert values == sorted(values)
    assert kmmd(images, images[::-1].copy()) == pytest.approx(0.0, abs=1e-12)


def test_kmmd_is_the_mean_of_its_terms() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.random((2, 6, 5, 5)).astype(np.float32)
    assert discrepancy_terms(first, second).mean() == pytest.approx(kmmd(first, second))
    with pytest.raises(ValueError, match="equally many images"):
        kmmd(first, second[:4])


def test_region_is_the_mask_and_what_is_between() -> None:
    mask = np.zeros((20, 20), dtype=np.uint8)
    mask[3, 5] = mask[8, 14] = 1
    assert bounding_box(mask) == (slice(3, 9), slice(5, 15))
    image = np.add.outer(np.arange(20.0), 100.0 * np.arange(20.0)).astype(np.float32)
    cut = region(image, mask)
    assert cut.shape == (REGION, REGION)
    assert cut[0, 0] == image[3, 5]
    assert cut[-1, -1] == image[8, 14]
    with pytest.raises(ValueError, match="empty"):
        bounding_box(np.zeros((3, 3), dtype=np.uint8))
