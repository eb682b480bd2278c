"""The phantom is reproducible, and looks like a chest in Hounsfield units."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, TypedDict

import numpy as np
import pytest

from triton_models.data.lesions import PATTERNS
from triton_models.data.phantom import Phantom, chest_phantom
from triton_models.data.scanner import outside_circle


class Size(TypedDict):
    slices: int
    rows: int
    columns: int


SMALL: Size = {"slices": 10, "rows": 128, "columns": 128}


def test_same_seed_gives_the_same_arrays() -> None:
    first, second = chest_phantom(7, **SMALL), chest_phantom(7, **SMALL)
    assert np.array_equal(first.hu, second.hu)
    assert np.array_equal(first.lungs, second.lungs)
    assert np.array_equal(first.lesions, second.lesions)
    assert first.meta == second.meta


def test_other_seeds_give_other_patients() -> None:
    assert not np.array_equal(chest_phantom(7, **SMALL).lungs, chest_phantom(8, **SMALL).lungs)


def test_labels_have_the_shape_and_values_that_are_promised(small_phantom: Phantom) -> None:
    assert small_phantom.hu.dtype == np.int16
    assert (
        small_phantom.hu.shape == small_phantom.lungs.shape == small_phantom.lesions.shape == (12, 160, 160)
    )
    assert set(np.unique(small_phantom.lungs)) == {0, 1, 2}
    assert set(np.unique(small_phantom.lesions)) == {0, 1, 2}
    assert not (small_phantom.lesions[small_phantom.lungs == 0]).any()


@pytest.mark.parametrize("seed", range(20, 26))
def test_right_lung_lies_at_smaller_x_and_below_air_density(seed: int) -> None:
    phantom = chest_phantom(seed, slices=10, rows=160, columns=160, lesions=False)
    right, left = (np.argwhere(phantom.lungs == side) for side in (1, 2))
    assert right[:, 2].mean() < left[:, 2].mean() - 20
    lung_hu = phantom.hu[phantom.lungs > 0]
    assert -930 < np.median(lung_hu) < -700
    volume_litres = (phantom.lungs > 0).sum() * np.prod(phantom.spacing_mm) / 1e6
    assert 1.5 < volume_litres < 9.0


def test_densities_order_air_lung_ground_glass_consolidation(small_phantom: Phantom) -> None:
    normal = small_phantom.hu[(small_phantom.lungs > 0) & (small_phantom.lesions == 0)]
    ground, dense = (small_phantom.hu[small_phantom.lesions == value] for value in (1, 2))
    assert np.median(normal) + 60 < np.median(ground) < np.median(dense) - 100
    assert -200 < np.median(dense) < 120


def test_without_lesions_there_are_none() -> None:
    assert not chest_phantom(3, **SMALL, lesions=False).lesions.any()


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_every_pattern_makes_lesions(pattern: str) -> None:
    phantom = chest_phantom(5, **SMALL, lesions=pattern)
    assert phantom.lesions.any()
    assert phantom.meta.pattern == pattern


def test_padding_fills_the_outside_of_the_reconstruction_circle() -> None:
    phantoms = [chest_phantom(seed, slices=1, rows=64, columns=64) for seed in range(12)]
    padded = [p for p in phantoms if p.meta.scanner.padding_hu is not None]
    assert {p.meta.scanner.padding_hu for p in padded} - {None, -1024}, "no unusual padding in 12 seeds"
    for phantom in padded:
        assert (phantom.hu[0][outside_circle((64, 64))] == phantom.meta.scanner.padding_hu).all()


def test_given_spacing_and_thickness_are_kept() -> None:
    phantom = chest_phantom(2, **SMALL, spacing_mm=(5.0, 2.8, 2.8), thickness_mm=5.0)
    assert phantom.spacing_mm == (5.0, 2.8, 2.8)
    assert phantom.meta.thickness_mm == 5.0


@pytest.mark.parametrize(
    "arguments",
    [
        {"slices": 0},
        {"rows": 8},
        {"spacing_mm": (1.0, 0.7, 0.8)},
        {"spacing_mm": (0.0, 0.7, 0.7)},
        {"thickness_mm": 99.0},
        {"lesions": "measles"},
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"phantom|spacing_mm|thickness_mm|pattern"):
        chest_phantom(1, **{**SMALL, **arguments})


def test_runs_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from triton_models.data import dicom_series, phantom\n"
        "phantom.chest_phantom(1, slices=1, rows=64, columns=64)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
