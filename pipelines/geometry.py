"""The geometry gate: planes of a series in, one affine and slice order out, or a coded refusal.

Pixels meet patient space only through affines, LPS in millimetres (PS3.3 C.7.6.2.1.1). An affine holds the
shear of a tilted gantry, too, so that such slices need no resampling. What one affine can't represent (gaps,
duplicate positions, mixed orientation) is refused with a reason, never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import SeriesRefused

#: direction cosines that differ by less than this are the same orientation
ORIENTATION_TOLERANCE = 1e-3
#: two planes nearer than this are at the same position, mm
DUPLICATE_MM = 0.01
#: a plane may lie this share of the spacing off the even grid, or SPACING_TOLERANCE_MM if that is more;
#: scanners round Image Position (Patient) to between 0.001 and 0.1 mm
SPACING_TOLERANCE = 0.05
SPACING_TOLERANCE_MM = 0.1
#: in-plane drift between first and last plane that still counts as rounding, in pixels
DRIFT_TOLERANCE_PIXELS = 0.5
#: gantries tilt so far; what is sheared more is no gantry's doing
MAXIMUM_TILT_DEGREES = 30.0
#: a volume with fewer planes has no usable third dimension
MINIMUM_SLICES = 3

ArrayF = NDArray[np.float64]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Plane:
    """Where one frame lies: Image Position (Patient) mm, Image Orientation (Patient) (row then column
    cosines, 6 values), Pixel Spacing (between rows, between columns) mm, and (rows, columns)."""

    position: tuple[float, float, float]
    orientation: tuple[float, float, float, float, float, float]
    pixel_spacing: tuple[float, float]
    shape: tuple[int, int]
    frame_of_reference_uid: str
    name: str  # SOP Instance UID, with #frame for multi-frame: what a refusal names


def gate(planes: Sequence[Plane]) -> tuple[list[int], ArrayF]:
    """Order the planes and find the affine of the volume that they form.

    Returns (order, affine): ``order[k]`` is the index in ``planes`` of slice k, slices ascend along the
    normal (row cosines x column cosines); ``affine`` (4, 4) maps (slice, row, column, 1) to LPS mm. Its first
    column is the way from plane to plane, which isn't along the normal where the gantry was tilted.

    Raises SeriesRefused with code geometry_too_few_slices, geometry_mixed_frame_of_reference,
    geometry_mixed_orientation, geometry_mixed_matrix, geometry_invalid_orientation,
    geometry_duplicate_position, geometry_missing_slices, geometry_irregular_spacing or geometry_tilted.
    """
    if len(planes) < MINIMUM_SLICES:
        raise _refused("too_few_slices", f"{len(planes)} slice(s); a volume needs {MINIMUM_SLICES} or more")
    _check_uniform(planes)
    first = planes[0]
    row_cosines, column_cosines = _cosines(first)
    normal = np.cross(row_cosines, column_cosines)
    positions = np.array([plane.position for plane in planes])
    along = positions @ normal
    order = [int(i) for i in np.argsort(along, kind="stable")]
    _check_spacing(along[order], [planes[i].name for i in order])
    step = (positions[order[-1]] - positions[order[0]]) / (len(planes) - 1)
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = column_cosines * first.pixel_spacing[0]
    affine[:3, 2] = row_cosines * first.pixel_spacing[1]
    affine[:3, 3] = positions[order[0]]
    _check_tilt(affine, len(planes))
    return order, affine


def _check_uniform(planes: Sequence[Plane]) -> None:
    first = planes[0]
    for plane in planes[1:]:
        if plane.frame_of_reference_uid != first.frame_of_reference_uid:
            raise _refused(
                "mixed_frame_of_reference",
                f"{plane.name} has Frame of Reference UID {plane.frame_of_reference_uid or '(empty)'}, "
                f"{first.name} has {first.frame_of_reference_uid or '(empty)'}",
            )
        difference = np.abs(np.subtract(plane.orientation, first.orientation)).max()
        if difference > ORIENTATION_TOLERANCE:
            raise _refused(
                "mixed_orientation",
                f"{plane.name} has Image Orientation (Patient) {list(plane.orientation)}, "
                f"{first.name} has {list(first.orientation)}",
                hint="a localizer or a reformat may have been filed in the series",
            )
        if plane.shape != first.shape or not np.allclose(plane.pixel_spacing, first.pixel_spacing, rtol=1e-3):
            raise _refused(
                "mixed_matrix",
                f"{plane.name} is {plane.shape} at {plane.pixel_spacing} mm, "
                f"{first.name} is {first.shape} at {first.pixel_spacing} mm",
            )


def _cosines(plane: Plane) -> tuple[ArrayF, ArrayF]:
    row, column = np.array(plane.orientation[:3]), np.array(plane.orientation[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    valid = np.all(np.isfinite(plane.orientation)) and np.allclose(lengths, 1.0, atol=1e-2)
    if not valid or abs(float(row @ column)) > 1e-2:
        raise _refused(
            "invalid_orientation",
            f"{plane.name}: Image Orientation (Patient) {list(plane.orientation)} isn't two perpendicular "
            "unit vectors",
        )
    return row / lengths[0], column / lengths[1]


def _check_spacing(along: ArrayF, names: Sequence[str]) -> None:
    gaps = np.diff(along)
    same = np.flatnonzero(gaps < DUPLICATE_MM)
    if same.size:
        i = int(same[0])
        raise _refused("duplicate_position", f"{names[i]} and {names[i + 1]} lie at the same position")
    usual = float(np.median(gaps))
    allowed = max(SPACING_TOLERANCE * usual, SPACING_TOLERANCE_MM)
    even = np.linspace(along[0], along[-1], len(along))
    if np.abs(along - even).max() <= allowed:
        return
    steps = np.round(gaps / usual)
    i = int(np.argmax(np.abs(gaps - usual)))
    if steps.min() >= 1 and np.abs(gaps - steps * usual).max() <= 2 * allowed and steps.max() > 1:
        missing = int(np.sum(steps - 1))
        raise _refused(
            "missing_slices",
            f"{missing} slice(s) missing: {gaps[i]:.2f} mm between {names[i]} and {names[i + 1]}, "
            f"{usual:.2f} mm elsewhere",
            hint="send the series again, complete",
        )
    raise _refused(
        "irregular_spacing",
        f"slice spacing from {gaps.min():.2f} to {gaps.max():.2f} mm (median {usual:.2f} mm), "
        f"furthest off between {names[i]} and {names[i + 1]}",
    )


def plane_normal(affine: ArrayF) -> ArrayF:
    """Unit vector across the planes, row cosines x column cosines, of (slice, row, column, 1) -> LPS."""
    normal = np.cross(affine[:3, 2], affine[:3, 1])
    return np.asarray(normal / np.linalg.norm(normal))


def tilt_degrees(affine: ArrayF, slices: int) -> float:
    """By how much the way from plane to plane is off the planes' normal: the tilt of the gantry, degrees.

    0 where the drift over all slices is no more than rounding of positions can make (DRIFT_TOLERANCE_PIXELS).
    """
    step, pixel_mm = affine[:3, 0], np.linalg.norm(affine[:3, 1:3], axis=0).min()
    normal = plane_normal(affine)
    sideways = float(np.linalg.norm(step - (step @ normal) * normal))
    if sideways * (slices - 1) <= DRIFT_TOLERANCE_PIXELS * pixel_mm:
        return 0.0
    return float(np.degrees(np.arctan2(sideways, abs(step @ normal))))


def _check_tilt(affine: ArrayF, slices: int) -> None:
    degrees = tilt_degrees(affine, slices)
    if degrees > MAXIMUM_TILT_DEGREES:
        raise _refused(
            "tilted",
            f"slices are sheared by {degrees:.1f} degrees, gantries by {MAXIMUM_TILT_DEGREES:.0f} at most",
            hint="check Image Position (Patient), or reconstruct without tilt",
        )


def _refused(code: str, message: str, *, hint: str = "") -> SeriesRefused:
    return SeriesRefused(message, code=f"geometry_{code}", hint=hint)


@dataclass(frozen=True)
class AxialView:
    """How a volume's array axes map to the axial view that the models were trained on.

    In the axial view slices ascend towards the head (+z), rows towards the back (+y), columns towards the
    patient's left (+x). It is the nearest permutation and reversal of the array's axes, read off the
    affine: lossless, and undone exactly by ``restore``.
    """

    permutation: tuple[int, int, int]
    reversed_axes: tuple[int, ...]

    @classmethod
    def of(cls, affine: ArrayF) -> AxialView:
        """Read the view off an affine (slice, row, column, 1) -> LPS."""
        cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        remaining = [0, 1, 2]
        chosen: dict[int, int] = {}
        for patient_axis in (2, 1, 0):  # z first: the slice direction matters most to a 2D model
            best = max(remaining, key=lambda axis: abs(cosines[patient_axis, axis]))
            chosen[patient_axis] = best
            remaining.remove(best)
        permutation = (chosen[2], chosen[1], chosen[0])
        reversed_axes = tuple(
            target for target, axis in enumerate(permutation) if cosines[2 - target, axis] < 0
        )
        return cls(permutation, reversed_axes)

    def view(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """(slice, row, column) of the source -> (slice, row, column) of the axial view, the same memory."""
        return np.flip(array.transpose(self.permutation), self.reversed_axes)

    def apply(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """The same, contiguous: a copy where the axes differ."""
        return np.ascontiguousarray(self.view(array))

    def restore(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """The inverse of ``apply``."""
        inverse = np.argsort(self.permutation)
        return np.ascontiguousarray(np.flip(array, self.reversed_axes).transpose(inverse))
