"""Regions: components, confidence, measurements, and what is left out with its reason."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines import lesions
from pipelines.lesions import LesionMaps, segment_lesions
from pipelines.regions import MAXIMUM_REGIONS, find_regions, relative_distance_from_edge
from pipelines.volume import Lesion, Lung, Volume
from tests.unit.pipelines.examples import ByRule, axial_affine, volume

SHAPE = (20, 60, 80)


def scene() -> tuple[Volume, np.ndarray, LesionMaps]:
    """Right lung in columns 5..35, left in 45..75, 2x1x1 mm voxels, no lesion yet."""
    series = volume(np.full(SHAPE, -850, np.int16), axial_affine())
    lungs = np.zeros(SHAPE, np.uint8)
    lungs[:, 10:50, 5:35] = Lung.RIGHT
    lungs[:, 10:50, 45:75] = Lung.LEFT
    return series, lungs, LesionMaps(np.zeros(SHAPE, np.uint8), np.zeros((2, *SHAPE), np.uint8))


def add(maps: LesionMaps, where: tuple[slice, slice, slice], lesion: Lesion, probability: float) -> None:
    maps.labels[where] = lesion
    maps.probabilities[(int(lesion) - 1, *where)] = round(probability * 255)


def test_a_region_is_measured_in_patient_space() -> None:
    series, lungs, maps = scene()
    where = (slice(4, 8), slice(20, 30), slice(50, 60))
    add(maps, where, Lesion.GROUND_GLASS, 0.8)
    series.hu[where] = -600
    found = find_regions(series, lungs, maps)
    (region,) = found.regions
    assert (region.finding_type, region.laterality) == ("ground_glass", Lung.LEFT)
    assert region.volume_ml == pytest.approx(400 * 2 / 1000)
    assert region.mean_hu == -600
    assert region.probability == pytest.approx(204 / 255)
    assert region.type_probabilities == {"ground_glass": pytest.approx(0.8), "consolidation": 0.0}
    assert region.bounding_box == ((4, 8), (20, 30), (50, 60))
    assert region.centroid_lps_mm == pytest.approx((54.5, 24.5, 11.0))
    assert 4 <= region.key_slice < 8
    np.testing.assert_array_equal(found.labels > 0, maps.labels > 0)


def test_touching_types_are_one_region_of_the_larger_type() -> None:
    series, lungs, maps = scene()
    add(maps, (slice(4, 8), slice(20, 30), slice(50, 60)), Lesion.GROUND_GLASS, 0.9)
    add(maps, (slice(5, 7), slice(23, 27), slice(53, 57)), Lesion.CONSOLIDATION, 0.9)
    (region,) = find_regions(series, lungs, maps).regions
    assert region.finding_type == "ground_glass"


def test_regions_are_numbered_by_volume() -> None:
    series, lungs, maps = scene()
    add(maps, (slice(1, 4), slice(12, 22), slice(10, 20)), Lesion.CONSOLIDATION, 0.9)
    add(maps, (slice(8, 14), slice(20, 30), slice(50, 60)), Lesion.GROUND_GLASS, 0.6)
    regions = find_regions(series, lungs, maps).regions
    assert [r.number for r in regions] == [1, 2]
    assert regions[0].volume_ml > regions[1].volume_ml
    assert [r.laterality for r in regions] == [Lung.LEFT, Lung.RIGHT]


def test_small_and_unsure_components_are_left_out_and_said_so() -> None:
    series, lungs, maps = scene()
    add(maps, (slice(4, 5), slice(20, 23), slice(50, 53)), Lesion.GROUND_GLASS, 0.9)
    add(maps, (slice(8, 14), slice(20, 30), slice(50, 60)), Lesion.GROUND_GLASS, 0.4)
    found = find_regions(series, lungs, maps)
    assert found.regions == ()
    assert len(found.notes) == 2
    assert not found.labels.any()


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("head_first", [True, False])
def test_the_dome_of_the_diaphragm_is_left_out(axes: tuple[int, ...], head_first: bool) -> None:
    """A flat component on tissue is left out; the same one under tissue, higher, or inside of lung isn't."""
    _, lungs, maps = scene()
    lungs[:8, 20:30, 10:20] = 0  # the dome
    add(maps, (slice(8, 10), slice(20, 30), slice(10, 20)), Lesion.GROUND_GLASS, 0.9)
    lungs[12:, 20:30, 50:60] = 0
    add(maps, (slice(10, 12), slice(20, 30), slice(50, 60)), Lesion.GROUND_GLASS, 0.9)
    lungs[:8, 34:44, 10:20] = 0
    add(maps, (slice(8, 12), slice(34, 44), slice(10, 20)), Lesion.GROUND_GLASS, 0.9)
    add(maps, (slice(0, 2), slice(34, 44), slice(62, 72)), Lesion.GROUND_GLASS, 0.9)
    affine = axial_affine()
    turn = [slice(None, None, 1 if head_first else -1), slice(None), slice(None)]
    if not head_first:
        affine[:3, 3] += affine[:3, 0] * (SHAPE[0] - 1)
        affine[:3, 0] *= -1
    affine[:, :3] = affine[:, list(axes)]
    stored = [np.ascontiguousarray(a[tuple(turn)].transpose(axes)) for a in (lungs, maps.labels)]
    probabilities = np.stack(
        [np.ascontiguousarray(p[tuple(turn)].transpose(axes)) for p in maps.probabilities]
    )
    series = volume(np.full(stored[0].shape, -850, np.int16), affine)
    found = find_regions(series, stored[0], LesionMaps(stored[1], probabilities))
    assert len(found.regions) == 3
    assert next(note for note in found.notes if "dome" in note).startswith("1 component(s)")


def test_no_more_than_the_largest_regions() -> None:
    series = volume(np.full((4, 200, 400), -850, np.int16), axial_affine())
    lungs = np.full(series.hu.shape, Lung.RIGHT, np.uint8)
    maps = LesionMaps(np.zeros(series.hu.shape, np.uint8), np.zeros((2, *series.hu.shape), np.uint8))
    for i in range(MAXIMUM_REGIONS + 3):
        row, column = divmod(i, 10)
        rows, columns = slice(row * 20, row * 20 + 10), slice(column * 20, column * 20 + 10)
        add(maps, (slice(0, 4), rows, columns), Lesion.CONSOLIDATION, 0.9)
    found = find_regions(series, lungs, maps)
    assert len(found.regions) == MAXIMUM_REGIONS
    assert found.notes == (f"3 component(s) beyond the {MAXIMUM_REGIONS} largest, left out of the Noisy-OR",)


def test_relative_distance_by_hand() -> None:
    """Xu et al. 2020: lungs span rows 10..49 and columns 5..74; the centre is 5 pixels inside the edge."""
    series, lungs, _ = scene()
    value = relative_distance_from_edge(series, lungs, np.array([3.0, 30.0, 10.0]))
    assert value == pytest.approx(5.0 / np.hypot(40.0, 70.0))


def test_relative_distance_is_the_same_for_a_coronal_series() -> None:
    series, lungs, _ = scene()
    coronal_affine = series.affine[:, [1, 0, 2, 3]]
    coronal = volume(np.ascontiguousarray(series.hu.transpose(1, 0, 2)), coronal_affine)
    expected = relative_distance_from_edge(series, lungs, np.array([3.0, 30.0, 10.0]))
    got = relative_distance_from_edge(coronal, lungs.transpose(1, 0, 2), np.array([30.0, 3.0, 10.0]))
    assert got == pytest.approx(expected)


def test_only_slices_with_lung_are_sent_and_nothing_outside_counts() -> None:
    series, lungs, _ = scene()
    lungs[:5] = 0
    inference = ByRule(
        lambda sent: {
            "LABELS": np.ones(sent.shape, np.uint8),
            "PROBABILITIES": np.full((len(sent), 2, *sent.shape[1:]), 200, np.uint8),
        }
    )
    maps = segment_lesions(series, lungs, inference, inference.check(lesions.SPEC))
    assert inference.slices_sent == 15
    np.testing.assert_array_equal(maps.labels > 0, lungs > 0)
    np.testing.assert_array_equal(maps.probabilities[0] > 0, lungs > 0)
