"""Patches, their distances, and the placement of lesions by disease."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from triton_models.data import infection_patches as ip
from triton_models.data.lesions import lesion_field

SEEDS = (ip.TRAIN_SEEDS, ip.VALIDATION_SEEDS, ip.TEST_SEEDS)


def test_relative_distance_of_a_known_shape() -> None:
    lung = np.zeros((60, 80), dtype=bool)
    lung[10:40, 20:60] = True  # 30 x 40: diagonal 50
    distance = ip.relative_distances(lung)
    assert distance[25, 40] == pytest.approx(15 / 50)
    assert distance[10, 40] == pytest.approx(1 / 50)
    assert distance[25, 22] == pytest.approx(3 / 50)
    assert not distance[~lung].any()
    assert not ip.relative_distances(np.zeros((5, 5), dtype=bool)).any()


def test_distance_does_not_depend_on_the_pixel_size() -> None:
    lung = np.zeros((60, 80), dtype=bool)
    lung[10:40, 20:60] = True
    twice = lung.repeat(2, 0).repeat(2, 1)
    assert ip.relative_distances(twice)[50, 80] == pytest.approx(
        ip.relative_distances(lung)[25, 40], abs=0.02
    )


def test_patch_is_24_mm_around_its_centre_in_any_image() -> None:
    rows, columns = np.mgrid[:200, :220].astype(float)
    for mm in (0.5, 0.8):
        hu = np.rint(rows * mm * 2 - columns * mm).astype(np.int16)  # HU per mm: 2 down, -1 to the right
        patch = ip.cut_patch(hu, (100.0, 110.0), (mm, mm))
        assert patch.shape == (64, 64)
        assert patch[31:33, 31:33].mean() == pytest.approx((200 - 110) * mm, abs=1.0)
        assert patch[-1, 0] - patch[0, 0] == pytest.approx(2 * 63 * 0.375, abs=2.0)
        assert patch[0, -1] - patch[0, 0] == pytest.approx(-63 * 0.375, abs=2.0)


def test_beyond_the_border_is_air() -> None:
    patch = ip.cut_patch(np.full((100, 100), 50, dtype=np.int16), (0.0, 99.0), (0.5, 0.5))
    assert patch[0, 0] == patch[-1, -1] == -1024
    assert patch[-1, 0] == 50


def test_case_has_patches_of_its_disease_and_irrelevant_ones() -> None:
    patches = ip.case_patches(20000)
    assert patches.hu.dtype == np.int16
    assert patches.hu.shape == (len(patches), 64, 64)
    assert patches.distance.shape == (len(patches), 1)
    assert ((patches.distance >= 0) & (patches.distance < 0.3)).all()
    assert ip.IRRELEVANT in patches.label
    assert len(set(patches.label.tolist()) - {ip.IRRELEVANT}) <= 1
    again = ip.case_patches(20000)
    assert np.array_equal(patches.hu, again.hu)


def test_cached_patches_are_the_generated_ones(tmp_path: Path) -> None:
    made, read = ip.patches_of(20001, tmp_path), ip.patches_of(20001, tmp_path)
    assert np.array_equal(made.hu, read.hu)
    assert np.array_equal(made.distance, read.distance)


def test_sets_share_no_phantom() -> None:
    assert not any(set(one) & set(other) for one, other in itertools.combinations(SEEDS, 2))


def test_more_test_phantoms_than_there_are() -> None:
    with pytest.raises(ValueError, match="test phantoms, not 999"):
        next(ip.held_out_cases(999))


def test_covid_lies_nearer_to_the_pleura_and_both_overlap() -> None:
    axes = np.mgrid[-40:41:4, -60:61:4, -60:61:4]
    lung = (np.sqrt((axes**2).sum(0)) - 55.0).astype(np.float32)
    depths: dict[int, list[float]] = {ip.COVID19: [], ip.IAVP: []}
    for disease, number in itertools.product(depths, range(40)):
        rng = np.random.default_rng([disease, number])
        field = lesion_field(rng, lung, (4.0, 4.0, 4.0), pattern=ip.disease_pattern(disease, rng))
        where = field.ground_glass > 0
        depths[disease] += (-lung[where & (lung < 0)]).tolist()
    covid, iavp = (np.asarray(depths[disease]) for disease in (ip.COVID19, ip.IAVP))
    assert np.median(covid) < np.median(iavp)
    assert np.quantile(covid, 0.9) > np.median(iavp)
    assert np.quantile(iavp, 0.1) < np.median(covid)
