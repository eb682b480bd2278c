"""Cleaning a lung mask and telling right from left, whatever the array's orientation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from pipelines import lungs
from pipelines.errors import SeriesRefused
from pipelines.lungs import Labels, close_lungs, segment_lungs, split_lungs
from pipelines.volume import Lung, Volume
from tests.unit.pipelines.examples import ByRule, axial_affine, volume

SPACING = (2.0, 1.5, 1.5)


def ellipsoid(
    shape: tuple[int, ...], centre: tuple[float, ...], radii: tuple[float, ...]
) -> NDArray[np.bool_]:
    grid = np.indices(shape).astype(float)
    distance = sum(((grid[i] - centre[i]) / radii[i]) ** 2 for i in range(3))
    return np.asarray(distance <= 1.0)


def chest(gap: float = 12.0) -> NDArray[np.bool_]:
    """Two ellipsoids in (40, 100, 120); ``gap`` columns between them, negative when they touch."""
    shape = (40, 100, 120)
    right = ellipsoid(shape, (20, 50, 60 - gap / 2 - 22), (17, 35, 22))
    left = ellipsoid(shape, (20, 50, 60 + gap / 2 + 20), (16, 33, 20))
    return right | left


def test_two_lungs() -> None:
    mask = chest()
    labels = split_lungs(mask, SPACING)
    np.testing.assert_array_equal(labels > 0, mask)
    columns = np.arange(mask.shape[2])
    assert set(np.unique(labels[:, :, columns < 58])) == {0, Lung.RIGHT}
    assert set(np.unique(labels[:, :, columns > 62])) == {0, Lung.LEFT}


def test_lungs_that_touch_are_split_near_the_junction() -> None:
    mask = chest(gap=-6)
    labels = split_lungs(mask, SPACING)
    np.testing.assert_array_equal(labels > 0, mask)
    right, left = (np.nonzero(labels == lung)[2] for lung in Lung)
    assert np.mean(right > 66) < 0.01
    assert np.mean(left < 54) < 0.01


def test_one_lung_alone_goes_to_its_side() -> None:
    mask = ellipsoid((40, 100, 120), (20, 50, 85), (16, 33, 20))
    assert set(np.unique(split_lungs(mask, SPACING))) == {0, Lung.LEFT}


def test_small_components_are_dropped() -> None:
    mask = chest()
    noise = np.zeros_like(mask)
    noise[2:5, 5:9, 5:9] = True
    labels = split_lungs(mask | noise, SPACING)
    assert not labels[noise].any()


def test_nothing_found() -> None:
    assert not split_lungs(np.zeros((10, 20, 20), bool), SPACING).any()


@pytest.mark.parametrize(
    ("axes", "flips"),
    [
        ((0, 1, 2), ()),
        ((0, 1, 2), (0,)),
        ((0, 1, 2), (2,)),
        ((1, 0, 2), (1,)),
        ((2, 0, 1), ()),
        ((1, 2, 0), (0, 2)),
    ],
)
def test_right_stays_right_in_patient_space(axes: tuple[int, ...], flips: tuple[int, ...]) -> None:
    """The same chest stored in another array order: right is still at the smaller LPS x."""
    affine = axial_affine(SPACING)
    hu = np.where(chest(), -850, 40).astype(np.int16)
    stored = np.flip(hu.transpose(axes), flips)
    permuted = np.eye(4)
    permuted[:3, :3] = affine[:3, list(axes)]
    for axis in flips:
        permuted[:3, 3] += permuted[:3, axis] * (stored.shape[axis] - 1)
        permuted[:3, axis] *= -1
    series = volume(np.ascontiguousarray(stored), permuted)
    inference = ByRule(lambda sent: {"LUNGS": (sent < -500).astype(np.uint8)})
    labels = segment_lungs(series, inference, inference.check(lungs.SPEC))
    mean_x = {
        lung: series.to_patient(np.argwhere(labels == lung).astype(float))[:, 0].mean() for lung in Lung
    }
    assert mean_x[Lung.RIGHT] < 85 < mean_x[Lung.LEFT]


def closed_lungs(series: Volume, labels: Labels) -> Labels:
    """All axial planes."""
    closed = close_lungs(series, labels)
    return np.stack([closed.plane(number) for number in range(len(closed.lungs))])


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
def test_closed_lungs_hold_consolidation_at_the_pleura(axes: tuple[int, ...]) -> None:
    whole = split_lungs(chest(), SPACING)
    dense = ellipsoid(whole.shape, (20, 50, 20), (6, 6, 6)) | ellipsoid(whole.shape, (20, 50, 34), (5, 5, 5))
    notched = np.where(dense, 0, whole).astype(np.uint8)
    affine = axial_affine(SPACING)
    permuted = np.eye(4)
    permuted[:3, :3] = affine[:3, list(axes)]
    permuted[:3, 3] = affine[:3, 3]
    stored = np.ascontiguousarray(notched.transpose(axes))
    closed = closed_lungs(volume(np.zeros(stored.shape, np.int16), permuted), stored)
    np.testing.assert_array_equal(closed[notched > 0], notched[notched > 0])
    lost = dense & (whole > 0)
    assert np.mean(closed[lost] == Lung.RIGHT) > 0.95
    outside_mm = ndimage.distance_transform_edt(whole == 0, sampling=SPACING)
    assert outside_mm[closed > 0].max() < 4.5, "neither the gap between the lungs nor the chest wall"


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
@pytest.mark.parametrize("interpolated", [False, True])
def test_lungs_are_given_their_lesions(axes: tuple[int, ...], interpolated: bool) -> None:
    """… on acquired slices; what was interpolated between them becomes like the nearest."""
    whole = split_lungs(chest(), SPACING).transpose(axes)
    affine = np.eye(4)
    affine[:3, :3] = axial_affine(SPACING)[:3, list(axes)]
    series = volume(np.zeros(whole.shape, np.int16), affine)
    if interpolated:
        series = replace(series, source_slices=tuple(range(0, len(whole), 3)))
    generator = np.random.default_rng(2)
    dense = ndimage.gaussian_filter(generator.normal(size=whole.shape), 3) > 0.05
    notched = series.as_acquired(np.where(dense, 0, whole).astype(np.uint8))
    lesions = series.as_acquired(dense.astype(np.uint8))
    closed = series.as_acquired(closed_lungs(series, notched).transpose(np.argsort(np.argsort(axes))))
    expected = np.where(lesions > 0, closed, notched)
    lungs.include_lesions(series, notched, close_lungs(series, notched), lesions)
    np.testing.assert_array_equal(notched, expected)
    assert np.count_nonzero(expected[dense]) > 0.5 * np.count_nonzero(whole[dense])


@pytest.mark.parametrize("pixel_mm", [(1.0, 1.0), (3.0, 3.0), (2.2, 0.7)])
def test_closing_is_what_distances_from_the_mask_say(pixel_mm: tuple[float, float]) -> None:
    """Grown by what lies up to CLOSING_MM away, shrunk likewise, holes filled; up to the very border."""
    generator = np.random.default_rng(1)
    mask = ndimage.gaussian_filter(generator.normal(size=(40, 90, 80)), (0, 6, 6)) > 0.05
    rows, columns = (max(1, round(lungs.WORKING_MM / mm)) for mm in pixel_mm)
    series = volume(np.zeros(mask.shape, np.int16), axial_affine((2.0, *pixel_mm)))
    closed = closed_lungs(series, np.where(mask, Lung.LEFT, 0).astype(np.uint8)) > 0
    sampling, margin = (pixel_mm[0] * rows, pixel_mm[1] * columns), 30
    for number, coarse in enumerate(mask[:, ::rows, ::columns]):
        far = ndimage.distance_transform_edt(~np.pad(coarse, margin), sampling=sampling)
        deep = ndimage.distance_transform_edt(far <= lungs.CLOSING_MM, sampling=sampling)
        filled = ndimage.binary_fill_holes(deep > lungs.CLOSING_MM)[margin:-margin, margin:-margin]
        fine = filled.repeat(rows, axis=0).repeat(columns, axis=1)[: mask.shape[1], : mask.shape[2]]
        np.testing.assert_array_equal(closed[number], fine | mask[number])


def test_no_lungs_is_a_named_reason() -> None:
    series = volume(np.full((10, 40, 40), 40, np.int16), axial_affine())
    inference = ByRule(lambda sent: {"LUNGS": np.zeros(sent.shape, np.uint8)})
    with pytest.raises(SeriesRefused) as caught:
        segment_lungs(series, inference, inference.check(lungs.SPEC))
    assert caught.value.code == "no_lungs_found"
