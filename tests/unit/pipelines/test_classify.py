"""Which slices the classifiers see, and that they see the right pixels, whatever way the series was taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.classify import MOST_SLICES, SMALLEST_SHARE, SPEC, choose_key_slices, classify
from pipelines.geometry import AxialView
from pipelines.volume import Volume
from tests.unit.pipelines.examples import ByRule, axial_affine, volume
from tests.unit.pipelines.results.synthetic import ORIENTATIONS, chest


def cone(slices: int) -> tuple[Volume, NDArray[np.uint8]]:
    """Lung whose area grows by one row a slice, from none."""
    lungs = np.zeros((slices, slices, 10), np.uint8)
    for k in range(slices):
        lungs[k, :k] = 1
    return volume(np.zeros(lungs.shape, np.int16), axial_affine()), lungs


def test_only_slices_with_much_lung_evenly_spread() -> None:
    keys = choose_key_slices(*cone(91))
    indexes = [key.index for key in keys]
    assert len(indexes) == MOST_SLICES
    assert indexes[0] == 90 * SMALLEST_SHARE and indexes[-1] == 90
    assert set(np.diff(indexes)) == {4}
    assert [key.source_slice for key in keys] == indexes
    assert [key.z_mm for key in keys] == [2.0 * index for index in indexes]
    assert [key.lung_cm2 for key in keys] == [index * 10 / 100 for index in indexes]


def test_few_slices_are_all_taken_once() -> None:
    assert [key.index for key in choose_key_slices(*cone(7))] == [2, 3, 4, 5, 6]
    assert [key.index for key in choose_key_slices(*cone(2))] == [1]


@pytest.mark.parametrize("orientation", list(ORIENTATIONS))
def test_the_same_places_in_every_orientation(orientation: str) -> None:
    series, findings = chest(orientation)
    keys = choose_key_slices(series, findings.lungs)
    z = [key.z_mm for key in keys]
    assert z == sorted(z)
    assert -84 <= z[0] < -50 and 50 < z[-1] <= 84
    assert all((key.source_slice is None) == (orientation in ("coronal", "sagittal")) for key in keys)
    # an ellipsoid's largest section: two ellipses of 41 x 62 mm, half axes
    assert max(key.lung_cm2 for key in keys) == pytest.approx(2 * np.pi * 4.1 * 6.2, rel=0.1)
    seen = AxialView.of(series.affine).apply(series.hu)
    for key in keys:
        if key.source_slice is not None:
            assert np.isin(series.hu[key.source_slice], seen[key.index]).all()


def test_the_model_gets_the_key_slices_in_order() -> None:
    series, lungs = cone(91)
    series.hu[:] = np.arange(91)[:, None, None]
    asked: list[int] = []

    def rule(hu: NDArray[Any]) -> dict[str, NDArray[Any]]:
        asked.extend(hu[:, 0, 0].tolist())
        p = hu[:, 0, 0].astype(np.float32) / 100
        return {"PROBABILITIES": np.stack([1 - p, p, 0 * p], axis=1)}

    inference = ByRule(rule)
    keys = choose_key_slices(series, lungs)
    found = classify(series, keys, inference, inference.check(SPEC))
    assert asked == [key.index for key in keys]
    assert found.by_slice.shape == (16, 3)
    assert found.classes == ("normal", "bacterial", "viral")
    assert found.case["bacterial"] == pytest.approx(0.6, abs=1e-6)
    assert found.predicted == "bacterial"
    assert found.votes == {"normal": 6, "bacterial": 10, "viral": 0}  # 0.5 each: the first
