"""Filling in is measured against what was there, beside trivial fillings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from triton_models.evaluation.evaluate import evaluate
from triton_models.evaluation.generation import TRIVIAL, collect
from triton_models.evaluation.predictor import Arrays
from triton_models.evaluation.source import Source
from triton_models.registry import MODELS

ENTRY = MODELS["inpaint"]


class Filling:
    """Fills in with what a function of HU and mask says."""

    weights_sha256 = "00"
    classes = ENTRY.classes

    def __init__(self, fill: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]) -> None:
        self._fill = fill

    def __call__(self, inputs: Arrays) -> Arrays:
        return {"INPAINTED": self._fill(inputs["HU"], inputs["MASK"])}


def test_perfect_filling_and_trivial_ones() -> None:
    result = evaluate(ENTRY, Filling(lambda hu, mask: hu), Source(phantoms=2))
    perfect = result.metrics["windows"]
    assert perfect["kmmd"].value == pytest.approx(0.0, abs=1e-9)
    assert perfect["ssim"].value == pytest.approx(1.0)
    assert math.isinf(perfect["psnr"].value)
    for kind in ("windows", "slices"):
        mean, air = result.metrics[f"{kind}_mean"], result.metrics[f"{kind}_air"]
        assert 0 < mean["kmmd_region"].value < air["kmmd_region"].value
        assert mean["psnr_region"].value > air["psnr_region"].value
        assert mean["ssim_region"].value < mean["ssim"].value
        assert mean["absolute_error_hu"].low <= mean["absolute_error_hu"].value


def test_masks_lie_in_the_lungs_and_windows_are_the_same_again() -> None:
    first, second = (collect(ENTRY, Filling(lambda hu, mask: hu), Source(phantoms=1)) for _ in range(2))
    assert np.array_equal(first.real, second.real)
    assert np.array_equal(first.mask, second.mask)
    inside = first.real[first.mask > 0]
    assert np.median(inside) < -700
    assert (first.mask.sum(axis=(1, 2)) > 0).all()
    with pytest.raises(ValueError, match="normal test phantoms, not"):
        collect(ENTRY, Filling(lambda hu, mask: hu), Source(phantoms=99))


def test_smooth_filling_continues_a_slope() -> None:
    rows, columns = np.mgrid[:30, :30]
    hu = (10 * rows - 5 * columns - 800).astype(np.int16)
    inside = np.zeros(hu.shape, dtype=bool)
    inside[5:20, 8:25] = True
    hidden = np.where(inside, 0, hu).astype(np.int16)
    assert np.abs(TRIVIAL["smooth"](hidden, inside) - hu).max() <= 1
    assert (TRIVIAL["air"](hidden, inside)[inside] == -1024).all()
    assert np.array_equal(TRIVIAL["mean"](hidden, inside)[~inside], hu[~inside])
