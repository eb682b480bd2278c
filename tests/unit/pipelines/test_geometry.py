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
    grid = gate(series)
    affine = grid.affine
    for k, index in enumerate(grid.order):
        np.testing.assert_allclose(affine @ [k, 0, 0, 1], [*series[index].position, 1], atol=1e-6)
    np.testing.assert_allclose(affine[:3, 1], np.array(orientation[3:]) * 0.7)
    np.testing.assert_allclose(affine[:3, 2], np.array(orientation[:3]) * 0.6)


@given(st.permutations(range(10)))
def test_order_of_arrival_changes_nothing(arrival: list[int]) -> None:
    # cosines that differ a little from slice to slice, as scanners write them
    series = [
        replace(plane, orientation=(1.0, 1e-6 * k, 0.0, -1e-6 * k, 1.0, 0.0))
        for k, plane in enumerate(planes())
    ]
    grid = gate(series)
    shuffled = gate([series[i] for i in arrival])
    assert [arrival[i] for i in shuffled.order] == list(range(10))
    np.testing.assert_array_equal(shuffled.affine, grid.affine)
    assert replace(shuffled, order=grid.order, affine=grid.affine) == grid


def test_oblique_series_pass() -> None:
    angle = np.radians(30)
    oblique = (np.cos(angle), np.sin(angle), 0.0, 0.0, 0.0, -1.0)
    affine = gate(planes(orientation=tuple(float(v) for v in oblique))).affine
    assert abs(np.linalg.det(affine[:3, :3])) == pytest.approx(2.5 * 0.7 * 0.6)


def test_too_few_slices() -> None:
    assert refusal(planes(2)) == "geometry_too_few_slices"


def test_a_missing_slice_is_a_slice_of_the_grid() -> None:
    series = planes(20)
    whole = gate(series)
    del series[7], series[3]
    grid = gate(series)
    assert not grid.complete
    assert (grid.slices, grid.uneven) == (20, False)
    assert grid.at == tuple(float(k) for k in range(20) if k not in (3, 7))
    np.testing.assert_allclose(grid.affine, whole.affine)


@pytest.mark.parametrize(
    ("count", "step_mm", "gone", "passes"),
    [
        (40, 1.0, (5, 6, 7), True),
        (40, 1.0, (5, 6, 7, 8), False),  # too many in a row
        (40, 5.0, (5,), True),
        (40, 5.0, (5, 6), False),  # 15 mm unseen
        (20, 10.0, (5,), False),
        (40, 2.0, (3, 9, 20, 31), True),
        (40, 2.0, (3, 9, 20, 31, 35), False),  # more than a tenth
        (5, 5.0, (3,), False),
    ],
)
def test_limits_of_missing_slices(count: int, step_mm: float, gone: tuple[int, ...], passes: bool) -> None:
    series = [plane for k, plane in enumerate(planes(count, step_mm=step_mm)) if k not in gone]
    if passes:
        assert gate(series).slices == count
    else:
        with pytest.raises(SeriesRefused, match=rf"{len(gone)} slice\(s\) of {count} missing") as caught:
            gate(series)
        assert caught.value.code == "geometry_missing_slices"


def test_duplicate_position() -> None:
    series = planes()
    assert refusal([*series, replace(series[4], name="again")]) == "geometry_duplicate_position"


def moved(plane: Plane, by_mm: tuple[float, float, float]) -> Plane:
    return replace(plane, position=tuple(float(x) for x in np.add(plane.position, by_mm)))  # type: ignore[arg-type]


def test_uneven_planes_lie_within_a_quarter_gap_of_a_slice() -> None:
    series = planes()
    series[4] = moved(series[4], (0.0, 0.0, 0.9))
    grid = gate(series)
    assert (grid.slices, grid.uneven) == (19, True)
    for at, index in zip(grid.at, grid.order, strict=True):
        np.testing.assert_allclose(grid.affine @ [at, 0, 0, 1], [*series[index].position, 1], atol=1e-6)
        np.testing.assert_allclose(
            grid.affine @ [round(at), 0, 0, 1], [*series[index].position, 1], atol=2.5 / 4
        )


def test_a_gap_beyond_twice_the_usual_is_irregular() -> None:
    series = [moved(p, (0.0, 0.0, 3.7 if k > 4 else 0.0)) for k, p in enumerate(planes())]
    assert refusal(series) == "geometry_irregular_spacing"


def test_a_gap_of_more_than_10_mm_is_irregular() -> None:
    series = [moved(p, (0.0, 0.0, 4.0 if k > 4 else 0.0)) for k, p in enumerate(planes(step_mm=7.0))]
    assert refusal(series) == "geometry_irregular_spacing"


def test_planes_of_another_table_position_are_refused() -> None:
    series = planes()
    series[4:] = [moved(p, (3.0, 0.0, 0.0)) for p in series[4:]]
    assert refusal(series) == "geometry_shifted_planes"


def test_rounded_positions_pass() -> None:
    series = [
        replace(p, position=(p.position[0], p.position[1], round(p.position[2], 1)))
        for p in planes(step_mm=0.625)
    ]
    gate(series)


@pytest.mark.parametrize("degrees", [-18.5, 5.0, 29.0])
def test_a_tilted_gantry_is_in_the_affine(degrees: float) -> None:
    series = planes(tilt_degrees=degrees)
    grid = gate(series)
    affine = grid.affine
    for k, index in enumerate(grid.order):
        np.testing.assert_allclose(affine @ [k, 0, 0, 1], [*series[index].position, 1], atol=1e-6)
    assert tilt_degrees(affine, len(series)) == pytest.approx(abs(degrees))
    assert abs(np.linalg.det(affine[:3, :3])) == pytest.approx(2.5 * 0.7 * 0.6), "planes are 2.5 mm apart"


def test_rounded_positions_are_no_tilt() -> None:
    series = [
        replace(p, position=(p.position[0] + 0.01 * (k % 2), *p.position[1:])) for k, p in enumerate(planes())
    ]
    affine = gate(series).affine
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
    affine = gate(planes(orientation=orientation)).affine
    view = AxialView.of(affine)
    shape = (4, 5, 6)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).astype(float)
    patient = index @ affine[:3, :3].T + affine[:3, 3]
    for patient_axis, array_axis in ((2, 0), (1, 1), (0, 2)):
        coordinate = view.apply(patient[..., patient_axis])
        assert (np.diff(coordinate, axis=array_axis) > 0).all()


@given(orientations)
def test_axial_view_restores_exactly(orientation: tuple[float, ...]) -> None:
    affine = gate(planes(orientation=orientation)).affine
    view = AxialView.of(affine)
    array = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    np.testing.assert_array_equal(view.restore(view.apply(array)), array)
