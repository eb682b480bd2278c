"""Volumes, densities, what is peripheral, and the severity grade."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.candidates import Chest
from pipelines.quantify import PERCENTILES, SEVERITY, hu_percentiles, measure_lungs, severity
from pipelines.volume import Lesion, Lung
from tests.unit.pipelines.examples import axial_affine, volume


def chest() -> Chest:
    """A right lung of 100 x 100 x 10 voxels of 1 x 1 x 2 mm, none on the left."""
    hu = np.full((10, 120, 240), -850, np.int16)
    lungs, lesions = np.zeros(hu.shape, np.uint8), np.zeros(hu.shape, np.uint8)
    lungs[:, 10:110, 10:110] = Lung.RIGHT
    return Chest.of(volume(hu, axial_affine()), lungs, lesions)


def test_a_lung_by_hand() -> None:
    scene = chest()
    scene.lesions[:, 10:20, 10:110] = Lesion.GROUND_GLASS  # a tenth, at the edge
    scene.lesions[:, 55:65, 55:65] = Lesion.CONSOLIDATION  # a hundredth, in the middle
    scene.hu[scene.lesions == Lesion.CONSOLIDATION] = 0
    measures = measure_lungs(scene)
    right, left = measures[Lung.RIGHT], measures[Lung.LEFT]
    assert right.volume_ml == pytest.approx(200.0)
    assert right.lesion_volume_ml == {
        "ground_glass": pytest.approx(20.0),
        "consolidation": pytest.approx(2.0),
    }
    assert right.involved_percent == pytest.approx(11.0)
    assert right.mean_hu == pytest.approx(-841.5)
    assert right.hu_percentiles == {5: -850, 50: -850, 95: -850}
    assert right.peripheral_percent == pytest.approx(100 * 20 / 22)
    assert (left.volume_ml, left.lesions_ml, left.involved_percent, left.peripheral_percent) == (0, 0, 0, 0)


def test_peripheral_is_within_20_mm_whatever_the_pixels() -> None:
    hu = np.full((2, 200, 400), -850, np.int16)
    lungs, lesions = np.zeros(hu.shape, np.uint8), np.zeros(hu.shape, np.uint8)
    lungs[:, 10:190, 10:390] = Lung.LEFT
    lesions[:, 100, 10:200] = Lesion.GROUND_GLASS  # from the edge to the middle, 0.5 mm a column
    scene = Chest.of(volume(hu, axial_affine((2.0, 1.0, 0.5))), lungs, lesions)
    assert measure_lungs(scene)[Lung.LEFT].peripheral_percent == pytest.approx(100 * 40 / 190, abs=2.0)


def test_touching_lungs_have_an_edge_each() -> None:
    scene = chest()
    scene.lungs[:, 10:110, 110:210] = Lung.LEFT
    scene.lesions[:, 60, 100:110] = Lesion.GROUND_GLASS
    assert measure_lungs(scene)[Lung.RIGHT].peripheral_percent == 100.0


def test_percentiles_are_numpy_s() -> None:
    values = np.random.default_rng(0).integers(-1024, 300, 1001).astype(np.int16)
    for some in (values, values[:2], values[:1], np.array([-32768, 32767], np.int16)):
        expected = np.percentile(some.astype(np.float64), PERCENTILES)
        assert list(hu_percentiles(some).values()) == pytest.approx(expected.tolist())
    assert hu_percentiles(values[:0]) == {5: 0.0, 50: 0.0, 95: 0.0}


@pytest.mark.parametrize(
    ("percent", "grade"),
    [
        (0.0, "none"),
        (0.01, "minimal"),
        (25.0, "minimal"),
        (25.1, "mild"),
        (60.0, "moderate"),
        (100.0, "severe"),
    ],
)
def test_the_grade_of_a_share(percent: float, grade: str) -> None:
    assert severity(percent) == grade
    assert grade in SEVERITY
