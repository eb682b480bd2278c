"""Patches of candidates and their relative distance-from-edge."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines import patches


def test_relative_distance_of_a_known_shape() -> None:
    lung = np.zeros((60, 80), dtype=bool)
    lung[10:40, 20:60] = True  # 30 x 40: diagonal 50
    distance = patches.relative_distances(lung)
    assert distance[25, 40] == pytest.approx(15 / 50)
    assert distance[10, 40] == pytest.approx(1 / 50)
    assert distance[25, 22] == pytest.approx(3 / 50)
    assert not distance[~lung].any()
    assert not patches.relative_distances(np.zeros((5, 5), dtype=bool)).any()


def test_distance_does_not_depend_on_the_pixel_size() -> None:
    lung = np.zeros((60, 80), dtype=bool)
    lung[10:40, 20:60] = True
    twice = lung.repeat(2, 0).repeat(2, 1)
    assert patches.relative_distances(twice)[50, 80] == pytest.approx(
        patches.relative_distances(lung)[25, 40], abs=0.02
    )


def test_patch_is_24_mm_around_its_centre_in_any_image() -> None:
    rows, columns = np.mgrid[:200, :220].astype(float)
    for mm in (0.5, 0.8):
        hu = np.rint(rows * mm * 2 - columns * mm).astype(np.int16)  # HU per mm: 2 down, -1 to the right
        patch = patches.cut_patch(hu, (100.0, 110.0), (mm, mm))
        assert patch.shape == (64, 64)
        assert patch[31:33, 31:33].mean() == pytest.approx((200 - 110) * mm, abs=1.0)
        assert patch[-1, 0] - patch[0, 0] == pytest.approx(2 * 63 * 0.375, abs=2.0)
        assert patch[0, -1] - patch[0, 0] == pytest.approx(-63 * 0.375, abs=2.0)


def test_beyond_the_border_is_air() -> None:
    patch = patches.cut_patch(np.full((100, 100), 50, dtype=np.int16), (0.0, 99.0), (0.5, 0.5))
    assert patch[0, 0] == patch[-1, -1] == -1024
    assert patch[-1, 0] == 50


def test_distance_is_in_millimetres_of_either_axis() -> None:
    lung = np.zeros((60, 80), dtype=bool)
    lung[10:40, 20:60] = True  # 30 x 40 pixels of 2 x 1 mm: diagonal of 60 and 40 mm
    distance = patches.relative_distances(lung, (2.0, 1.0))
    assert distance[25, 40] == pytest.approx(20 / np.hypot(60, 40))  # the columns' edge is nearer
    assert distance[10, 40] == pytest.approx(2 / np.hypot(60, 40))
