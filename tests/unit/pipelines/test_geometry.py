"""The geometry gate: what one affine can represent, and the named reasons for the rest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import SeriesRefused
from pipelines.geometry import AxialView, Plane, gate, tilt_degrees

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def planes(
    count: int = 10,
    *,
    orientation: tuple[float, ...] = AXIAL,
    step_mm: float = 2.5,
    tilt_degrees: float = 0.0,
) -> list[Plane]:
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(row, column)
    step = normal * step_mm + column * step_mm * np.tan(np.radians(tilt_degrees))
    return [
        Plane(
            position=tuple(np.array([-170.0, -160.0, -300.0]) + k * step),
            orientation=orientation,  # type: ignore[arg-type]
            pixel_spacing=(0.7, 0.6),
            shape=(512, 400),
            frame_of_reference_uid="1.2.3",
            name=f"1.2.{k}",
        )
        for k in range(count)
    ]


def refusal(series: list[Plane]) -> str:
    with pytest.raises(SeriesRefused) as caught:
        gate(series)
    return caught.value.code


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL])
def test_affine_maps_every_plane_to_its_position(orientation: tuple[float, ...]) -> None:
    series = planes(orientation=orientation)
    order, affine = gate(series)
    for k, index in enumerate(order):
        np.testing.assert_allclose(affine @ [k, 0, 0, 1], [*series[index].position, 1], atol=1e-6)
    np.testing.assert_allclose(affine[:3, 1], np.array(orientation[3:]) * 0.7)
    np.testing.assert_allclose(affine[:3, 2], np.array(orientation[:3]) * 0.6)


@given(st.permutations(range(10)))
def test_order_of_arrival_changes_nothing(arrival: list[int]) -> None:
    series = planes()
    _, affine = gate(series)
    order, shuffled = gate([series[i] for i in arrival])
    assert [arrival[i] for i in order] == list(range(10))
    np.testing.assert_array_equal(affine, shuffled)


def test_oblique_series_pass() -> None:
    angle = np.radians(30)
    oblique = (np.cos(angle), np.sin(angle), 0.0, 0.0, 0.0, -1.0)
    _, affine = gate(planes(orientation=tuple(float(v) for v in oblique)))
    assert abs(np.linalg.det(affine[:3, :3])) == pytest.approx(2.5 * 0.7 * 0.6)


def test_too_few_slices() -> None:
    assert refusal(planes(2)) == "geometry_too_few_slices"


def test_missing_slices_are_counted() -> None:
    series = planes()
    del series[3:5]
    with pytest.raises(SeriesRefused, match=r"2 slice\(s\) missing") as caught:
        gate(series)
    assert caught.value.code == "geometry_missing_slices"


def test_duplicate_position() -> None:
    series = planes()
    assert refusal([*series, replace(series[4], name="again")]) == "geometry_duplicate_position"


def test_irregular_spacing() -> None:
    series = planes()
    moved = (series[4].position[0], series[4].position[1], series[4].position[2] + 0.9)
    series[4] = replace(series[4], position=moved)
    assert refusal(series) == "geometry_irregular_spacing"


def test_rounded_positions_pass() -> None:
    series = [
        replace(p, position=(p.position[0], p.position[1], round(p.position[2], 1)))
        for p in planes(step_mm=0.625)
    ]
    gate(series)


@pytest.mark.parametrize("degrees", [-18.5, 5.0, 29.0])
def test_a_tilted_gantry_is_in_the_affine(degrees: float) -> None:
    series = planes(tilt_degrees=degrees)
    order, affine = gate(series)
    for k, index in enumerate(order):
        np.testing.assert_allclose(affine @ [k, 0, 0, 1], [*series[index].position, 1], atol=1e-6)
    assert tilt_degrees(affine, len(series)) == pytest.approx(abs(degrees))
    assert abs(np.linalg.det(affine[:3, :3])) == pytest.approx(2.5 * 0.7 * 0.6), "planes are 2.5 mm apart"


def test_rounded_positions_are_no_tilt() -> None:
    series = [
        replace(p, position=(p.position[0] + 0.01 * (k % 2), *p.position[1:])) for k, p in enumerate(planes())
    ]
    _, affine = gate(series)
    assert tilt_degrees(affine, len(series)) == 0.0


def test_more_than_a_gantry_tilts_is_refused() -> None:
    assert refusal(planes(tilt_degrees=40.0)) == "geometry_tilted"


def test_mixed_orientation() -> None:
    assert refusal([*planes(), planes(1, orientation=CORONAL)[0]]) == "geometry_mixed_orientation"


def test_mixed_matrix() -> None:
    series = planes()
    assert refusal([*series[1:], replace(series[0], shape=(256, 400))]) == "geometry_mixed_matrix"


def test_mixed_frame_of_reference() -> None:
    series = planes()
    other = replace(series[0], frame_of_reference_uid="1.2.4")
    assert refusal([*series[1:], other]) == "geometry_mixed_frame_of_reference"


def test_invalid_orientation() -> None:
    assert refusal(planes(orientation=(1.0, 0.0, 0.0, 0.9, 0.3, 0.0))) == "geometry_invalid_orientation"


orientations = st.sampled_from(
    [
        AXIAL,
        CORONAL,
        SAGITTAL,
        (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0),  # prone
        (1.0, 0.0, 0.0, 0.0, -1.0, 0.0),  # feet first when stacked along the normal
        (0.0, -1.0, 0.0, 1.0, 0.0, 0.0),
    ]
)


@given(orientations)
def test_axial_view_points_left_back_and_up(orientation: tuple[float, ...]) -> None:
    _, affine = gate(planes(orientation=orientation))
    view = AxialView.of(affine)
    shape = (4, 5, 6)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).astype(float)
    patient = index @ affine[:3, :3].T + affine[:3, 3]
    for patient_axis, array_axis in ((2, 0), (1, 1), (0, 2)):
        coordinate = view.apply(patient[..., patient_axis])
        assert (np.diff(coordinate, axis=array_axis) > 0).all()


@given(orientations)
def test_axial_view_restores_exactly(orientation: tuple[float, ...]) -> None:
    _, affine = gate(planes(orientation=orientation))
    view = AxialView.of(affine)
    array = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    np.testing.assert_array_equal(view.restore(view.apply(array)), array)
