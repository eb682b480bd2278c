"""Windows of normal slices and masks like lesions."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from triton_models.data import normal_slices as ns


@pytest.fixture(scope="module")
def slices() -> ns.NormalSlices:
    rng = np.random.default_rng(0)
    lungs = np.zeros((3, 256, 256), dtype=bool)
    lungs[:, 60:200, 30:100] = lungs[:, 60:200, 150:220] = True
    hu = np.where(lungs, -850, 40) + rng.integers(-20, 20, lungs.shape)
    return ns.NormalSlices(hu.astype(np.int16), lungs, ("a", "a", "b"))


def test_averaging_keeps_the_mean() -> None:
    image = np.random.default_rng(1).normal(size=(300, 300)).astype(np.float32)
    for side in (128, 200, 300):
        window = ns.cut_window(image, 0, 0, side)
        assert window.shape == (128, 128)
        assert window.mean() == pytest.approx(image[:side, :side].mean(), abs=1e-5)
    assert np.allclose(ns.cut_window(image, 5, 7, 128), image[5:133, 7:135], atol=1e-6)


def test_windows_have_lung_and_a_mask_within_it(slices: ns.NormalSlices) -> None:
    windows, groups = ns.random_windows(slices, 12, np.random.default_rng(2))
    assert windows.hu.shape == windows.mask.shape == (12, 128, 128)
    assert set(groups) <= {"a", "b"}
    for hu, mask in zip(windows.hu, windows.mask, strict=True):
        assert mask.sum() >= ns.SMALLEST_MASK
        assert np.median(hu[mask > 0]) < -800


def test_one_size_of_window(slices: ns.NormalSlices) -> None:
    windows, _ = ns.random_windows(slices, 2, np.random.default_rng(3), (256, 256))
    expected = ns.cut_window(slices.hu[0], 0, 0, 256)
    assert any(np.abs(hu - expected).max() < 30 for hu in windows.hu)


def test_no_mask_where_there_is_no_lung() -> None:
    assert not ns.lesion_mask(np.zeros((128, 128), dtype=bool), np.random.default_rng(0)).any()


def test_phantoms_have_no_lesions_and_are_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ns, "SLICES_PER_PHANTOM", 3)
    made, read = ns.phantom_normal(40000, tmp_path), ns.phantom_normal(40000, tmp_path)
    assert np.array_equal(made.hu, read.hu)
    assert np.array_equal(made.lungs, read.lungs)
    assert set(made.group) == {"40000"}


def test_sets_share_no_phantom() -> None:
    sets = (ns.TRAIN_SEEDS, ns.VALIDATION_SEEDS, ns.TEST_SEEDS)
    assert not any(set(one) & set(other) for one, other in itertools.combinations(sets, 2))
