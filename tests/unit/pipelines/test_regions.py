"""Regions: what candidates hold of the lesion labels, measurements, and what is left out with its reason."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines import lesions
from pipelines.candidates import Candidate, Chest
from pipelines.lesions import segment_lesions
from pipelines.regions import MAXIMUM_REGIONS, FoundRegions, draw, find_regions
from pipelines.volume import Lesion, Lung, Volume
from tests.unit.pipelines.examples import ByRule, axial_affine, volume, votes, within

SHAPE = (20, 60, 80)
Where = tuple[slice, slice, slice]


class Scene:
    """Right lung in columns 5..35, left in 45..75, 2x1x1 mm voxels, no lesion yet."""

    def __init__(self) -> None:
        self.hu = np.full(SHAPE, -850, np.int16)
        self.lungs = np.zeros(SHAPE, np.uint8)
        self.lungs[:, 10:50, 5:35] = Lung.RIGHT
        self.lungs[:, 10:50, 45:75] = Lung.LEFT
        self.lesions = np.zeros(SHAPE, np.uint8)
        self.candidates: list[Candidate] = []

    def add(self, where: Where, lesion: Lesion, box: Where | None = None) -> None:
        """A lesion, and a candidate in whose box it lies."""
        self.lesions[where] = lesion
        place = box or where
        self.candidates.append(
            Candidate(tuple(float(v) for v in [s.start for s in place] + [s.stop for s in place]), 0.5)  # type: ignore[arg-type]
        )

    def found(self, infection_type: str = "covid19") -> tuple[FoundRegions, tuple[str, ...]]:
        series = volume(self.hu, axial_affine())
        return found_in(series, self.lungs, self.lesions, self.candidates, infection_type)


def found_in(
    series: Volume,
    lungs: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    candidates: list[Candidate],
    infection_type: str = "covid19",
) -> tuple[FoundRegions, tuple[str, ...]]:
    chest = Chest.of(series, lungs, labels)
    drawn, notes = draw(candidates, chest)
    found = find_regions(chest, drawn, [votes(infection_type, 0.8) for _ in drawn])
    return found, (*notes, *found.notes)


def test_a_region_is_measured_in_patient_space() -> None:
    scene = Scene()
    where = (slice(4, 8), slice(20, 30), slice(50, 60))
    scene.add(where, Lesion.GROUND_GLASS, (slice(3, 9), slice(18, 33), slice(48, 62)))
    scene.hu[where] = -600
    scene.hu[4, 20:30, 50:60] = -500
    found, _ = scene.found()
    (region,) = found.regions
    assert (region.infection_type, region.lesion_type, region.laterality) == (
        *("covid19", "ground_glass"),
        Lung.LEFT,
    )
    assert region.volume_ml == pytest.approx(400 * 2 / 1000)
    assert region.lesion_volume_ml == {"ground_glass": pytest.approx(0.8), "consolidation": 0.0}
    assert region.mean_hu == -575
    assert region.hu_percentiles == {5: -600, 50: -600, 95: -500}
    assert region.probability == pytest.approx(0.8)
    assert region.bounding_box == ((4, 8), (20, 30), (50, 60))
    assert region.centroid_lps_mm == pytest.approx((54.5, 24.5, 11.0))
    assert 4 <= region.key_slice < 8
    np.testing.assert_array_equal(found.labels > 0, scene.lesions > 0)


def test_both_looks_in_one_box_are_one_region_that_looks_like_the_larger() -> None:
    scene = Scene()
    scene.add((slice(4, 8), slice(20, 30), slice(50, 60)), Lesion.GROUND_GLASS)
    scene.lesions[5:7, 23:27, 53:57] = Lesion.CONSOLIDATION
    (region,) = scene.found()[0].regions
    assert region.lesion_type == "ground_glass"
    assert region.lesion_volume_ml == {
        "ground_glass": pytest.approx(0.736),
        "consolidation": pytest.approx(0.064),
    }


def test_regions_are_numbered_by_volume() -> None:
    scene = Scene()
    scene.add((slice(1, 4), slice(12, 22), slice(10, 20)), Lesion.CONSOLIDATION)
    scene.add((slice(8, 14), slice(20, 30), slice(50, 60)), Lesion.GROUND_GLASS)
    regions = scene.found()[0].regions
    assert [r.number for r in regions] == [1, 2]
    assert regions[0].volume_ml > regions[1].volume_ml
    assert [r.laterality for r in regions] == [Lung.LEFT, Lung.RIGHT]


def test_candidates_without_lesion_are_left_out_and_said_so() -> None:
    scene = Scene()
    scene.add((slice(4, 5), slice(20, 23), slice(50, 53)), Lesion.GROUND_GLASS)
    scene.candidates.append(Candidate((8, 12, 8, 12, 20, 20), 0.4))
    found, notes = scene.found()
    assert found.regions == ()
    assert notes == ("2 candidate(s) with less than 0.3 ml of lesion, left out",)
    assert not found.labels.any()


def test_candidates_voted_irrelevant_are_dropped_and_said_so() -> None:
    scene = Scene()
    scene.add((slice(4, 8), slice(20, 30), slice(50, 60)), Lesion.GROUND_GLASS)
    found, notes = scene.found("irrelevant")
    assert (found.regions, found.entered) == ((), ())
    assert notes == ("1 candidate(s) voted irrelevant to infection, left out of the Noisy-OR",)


def test_lesion_outside_of_its_box_is_the_nearest_box_s() -> None:
    """Boxes cut lesions short; a lesion that hangs together stays whole, and none is counted twice."""
    scene = Scene()
    scene.add(
        (slice(4, 8), slice(20, 30), slice(46, 74)),
        Lesion.GROUND_GLASS,
        (slice(4, 8), slice(20, 28), slice(48, 58)),
    )
    scene.candidates.append(Candidate((4, 20, 56, 8, 30, 70), 0.3))
    scene.lesions[10:12, 40:48, 8:20] = Lesion.GROUND_GLASS  # in no box, and hangs together with none
    found, _ = scene.found()
    labels = found.labels
    left, right = int(labels[5, 25, 50]), int(labels[5, 25, 65])
    assert sorted((left, right)) == [1, 2]
    assert (labels[4:8, 20:28, 46:58] == left).all()  # the first candidate's where both boxes lie
    assert (labels[4:8, 20:30, 58:74] == right).all()
    assert (labels[4:8, 20:30, 46:74] > 0).all()
    assert not labels[10:12].any()


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("head_first", [True, False])
def test_the_dome_of_the_diaphragm_is_left_out(axes: tuple[int, ...], head_first: bool) -> None:
    """Flat lesion on tissue is left out; the same under tissue, higher, or inside of lung isn't."""
    scene = Scene()
    scene.lungs[:8, 20:30, 10:20] = 0  # the dome
    scene.add((slice(8, 10), slice(20, 30), slice(10, 20)), Lesion.GROUND_GLASS)
    scene.lungs[12:, 20:30, 50:60] = 0
    scene.add((slice(10, 12), slice(20, 30), slice(50, 60)), Lesion.GROUND_GLASS)
    scene.lungs[:8, 34:44, 10:20] = 0
    scene.add((slice(8, 12), slice(34, 44), slice(10, 20)), Lesion.GROUND_GLASS)
    scene.add((slice(0, 2), slice(34, 44), slice(62, 72)), Lesion.GROUND_GLASS)
    affine = axial_affine()
    turn = (slice(None, None, 1 if head_first else -1), slice(None), slice(None))
    if not head_first:
        affine[:3, 3] += affine[:3, 0] * (SHAPE[0] - 1)
        affine[:3, 0] *= -1
    affine[:, :3] = affine[:, list(axes)]
    stored = [np.ascontiguousarray(a[turn].transpose(axes)) for a in (scene.lungs, scene.lesions)]
    series = volume(np.full(stored[0].shape, -850, np.int16), affine)
    found, notes = found_in(series, stored[0], stored[1], scene.candidates)
    assert len(found.regions) == 3
    assert next(note for note in notes if "dome" in note).startswith("1 candidate(s)")
    for region in found.regions:  # boxes are of the volume as it is stored
        box = tuple(slice(*limits) for limits in region.bounding_box)
        assert (found.labels[box] == region.number).all()


def test_no_more_than_the_largest_regions() -> None:
    series = volume(np.full((4, 200, 400), -850, np.int16), axial_affine())
    lungs = np.full(series.hu.shape, Lung.RIGHT, np.uint8)
    labels = np.zeros(series.hu.shape, np.uint8)
    candidates = []
    for i in range(MAXIMUM_REGIONS + 3):
        row, column = (20 * part for part in divmod(i, 10))
        labels[:, row : row + 10, column : column + 10] = Lesion.CONSOLIDATION
        candidates.append(Candidate((0, row, column, 4, row + 10, column + 10), 0.5))
    found, notes = found_in(series, lungs, labels, candidates)
    assert len(found.regions) == MAXIMUM_REGIONS
    assert notes == (f"3 candidate(s) beyond the {MAXIMUM_REGIONS} largest, left out of the Noisy-OR",)


def test_only_slices_with_lung_are_sent_and_nothing_outside_counts() -> None:
    scene = Scene()
    lungs = scene.lungs
    lungs[:5] = 0
    inference = ByRule(lambda sent: {"LABELS": np.ones(sent.shape, np.uint8)})
    series = volume(scene.hu, axial_affine())
    found = segment_lesions(series, within(lungs), inference, inference.check(lesions.SPEC))
    assert inference.slices_sent == 15
    np.testing.assert_array_equal(found > 0, lungs > 0)
