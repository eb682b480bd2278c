"""The geometry gate: planes of a series in, one regular grid and slice order out, or a coded refusal.

Pixels meet patient space only through affines, LPS in millimetres (PS3.3 C.7.6.2.1.1). An affine holds the
shear of a tilted gantry, too, so that such slices need no resampling. A few missing slices and uneven
spacing get a grid that ``pipelines.resampling`` fills; what else one affine can't represent (wide gaps,
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
#: a plane may lie this share of the spacing, or SPACING_TOLERANCE_MM, beside the line through the others
SHIFT_TOLERANCE = 0.1
#: wider gaps aren't interpolated over: thoracic CT is read at up to 10 mm, and what is smaller than a gap
#: may lie in it unseen
MAXIMUM_GAP_MM = 10.0
#: so many slices in a row may be missing
MAXIMUM_MISSING_RUN = 3
#: … and this share of all: above it a transfer or a reconstruction went wrong, and comes again
MAXIMUM_MISSING_SHARE = 0.1
#: uneven spacing is resampled where no gap is wider than so many times the median one
MAXIMUM_GAP_RATIO = 2.0
#: … to so many slices a median gap, so that every plane has a slice of the grid within a quarter of it
GRID_SLICES_A_GAP = 2
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


@dataclass(frozen=True)
class Grid:
    """A regular grid of slices and where the acquired planes lie on it.

    order: ``order[i]`` is the index of the i-th plane along the normal (row cosines x column cosines).
    affine: (4, 4), (slice, row, column, 1) -> LPS mm; its first column is the way from slice to slice,
    which isn't along the normal where the gantry was tilted.
    at: slice coordinate of the i-th plane; whole numbers but where ``uneven``.
    slices: how many the grid has.
    uneven: the planes' spacing is, so that most slices of the grid lie between planes.
    """

    order: tuple[int, ...]
    affine: ArrayF
    at: tuple[float, ...]
    slices: int
    uneven: bool = False

    @property
    def complete(self) -> bool:
        """Whether each slice is an acquired plane, so that nothing is interpolated."""
        return not self.uneven and self.slices == len(self.order)


def gate(planes: Sequence[Plane]) -> Grid:
    """Order the planes and find the grid of the volume that they form. The order given changes nothing.

    Raises SeriesRefused with code geometry_too_few_slices, geometry_mixed_frame_of_reference,
    geometry_mixed_orientation, geometry_mixed_matrix, geometry_invalid_orientation,
    geometry_duplicate_position, geometry_missing_slices, geometry_irregular_spacing,
    geometry_shifted_planes or geometry_tilted.
    """
    if len(planes) < MINIMUM_SLICES:
        raise _refused("too_few_slices", f"{len(planes)} slice(s); a volume needs {MINIMUM_SLICES} or more")
    by_name = sorted(range(len(planes)), key=lambda i: planes[i].name)
    _check_uniform([planes[i] for i in by_name])
    normal = np.cross(*_cosines(planes[by_name[0]]))
    order = sorted(by_name, key=lambda i: float(np.dot(planes[i].position, normal)))
    first = planes[order[0]]
    row_cosines, column_cosines = _cosines(first)
    positions = np.array([planes[i].position for i in order])
    names = [planes[i].name for i in order]
    at, slices, uneven = _spacing(positions @ normal, names)
    affine = np.eye(4)
    affine[:3, 0] = (positions[-1] - positions[0]) / (slices - 1)
    affine[:3, 1] = column_cosines * first.pixel_spacing[0]
    affine[:3, 2] = row_cosines * first.pixel_spacing[1]
    affine[:3, 3] = positions[0]
    _check_line(positions, normal, float(np.linalg.norm(affine[:3, 0])), names)
    _check_tilt(affine, slices)
    return Grid(tuple(order), affine, tuple(float(x) for x in at), slices, uneven)


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


def _spacing(along: ArrayF, names: Sequence[str]) -> tuple[ArrayF, int, bool]:
    """The grid along the normal: (slice coordinate of each plane, number of slices, whether uneven).

    along: ascending, mm.
    """
    gaps = np.diff(along)
    same = np.flatnonzero(gaps < DUPLICATE_MM)
    if same.size:
        i = int(same[0])
        raise _refused("duplicate_position", f"{names[i]} and {names[i + 1]} lie at the same position")
    usual = float(np.median(gaps))
    allowed = max(SPACING_TOLERANCE * usual, SPACING_TOLERANCE_MM)
    widest = int(np.argmax(gaps))
    between = f"{gaps[widest]:.2f} mm between {names[widest]} and {names[widest + 1]}"
    steps = np.maximum(np.round(gaps / usual), 1.0)
    for at in (np.arange(len(along), dtype=np.float64), np.concatenate([[0.0], np.cumsum(steps)])):
        if np.abs(along - along[0] - at * (along[-1] - along[0]) / at[-1]).max() <= allowed:
            slices = int(at[-1]) + 1
            _check_missing(slices - len(along), slices, float(gaps[widest]), int(steps.max()) - 1, between)
            return at, slices, False
    if gaps[widest] > min(MAXIMUM_GAP_MM, MAXIMUM_GAP_RATIO * usual):
        raise _refused(
            "irregular_spacing",
            f"slice spacing from {gaps.min():.2f} to {gaps.max():.2f} mm (median {usual:.2f} mm), {between}; "
            f"resampled are gaps up to {MAXIMUM_GAP_MM:g} mm and {MAXIMUM_GAP_RATIO:g} times the median",
            hint="send the series again, complete, or reconstruct it evenly",
        )
    slices = round(float(along[-1] - along[0]) / usual * GRID_SLICES_A_GAP) + 1
    return (along - along[0]) / (along[-1] - along[0]) * (slices - 1), slices, True


def _check_missing(missing: int, slices: int, gap_mm: float, run: int, between: str) -> None:
    if not missing:
        return
    if (
        gap_mm > MAXIMUM_GAP_MM + SPACING_TOLERANCE_MM
        or run > MAXIMUM_MISSING_RUN
        or missing > MAXIMUM_MISSING_SHARE * slices
    ):
        raise _refused(
            "missing_slices",
            f"{missing} slice(s) of {slices} missing: {between}; interpolated are up to "
            f"{MAXIMUM_MISSING_RUN} in a row, gaps up to {MAXIMUM_GAP_MM:g} mm and "
            f"{MAXIMUM_MISSING_SHARE:.0%} of all",
            hint="send the series again, complete",
        )


def _check_line(positions: ArrayF, normal: ArrayF, spacing_mm: float, names: Sequence[str]) -> None:
    """The planes' first voxels must lie on one line: one affine has no other place for them."""
    way = positions[-1] - positions[0]
    share = ((positions - positions[0]) @ normal) / float(way @ normal)
    beside = np.linalg.norm(positions - positions[0] - share[:, None] * way, axis=1)
    worst = int(np.argmax(beside))
    if beside[worst] > max(SHIFT_TOLERANCE * spacing_mm, SPACING_TOLERANCE_MM):
        raise _refused(
            "shifted_planes",
            f"{names[worst]} lies {beside[worst]:.2f} mm beside the line through first and last slice",
            hint="slices of two table positions or fields of view may have been filed as one series",
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

    def spacing_mm(self, volume_mm: tuple[float, float, float]) -> tuple[float, float, float]:
        """Spacing along (slice, row, column) of the source -> along those of the axial view."""
        slices, rows, columns = (volume_mm[axis] for axis in self.permutation)
        return slices, rows, columns

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
