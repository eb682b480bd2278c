"""Patches, their distances, and the placement of lesions by disease."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from triton_models.data import infection_patches as ip
from triton_models.data.lesions import lesion_field

SEEDS = (ip.TRAIN_SEEDS, ip.VALIDATION_SEEDS, ip.TEST_SEEDS)


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
