"""Which positions of a stack of slices are missing.

In: positions along the normal, mm, with Instance Numbers.  Out: the holes of a stack that is regular
otherwise. Only holes inside of the stack can be seen: nothing tells from positions alone where a stack should
end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median_low

#: fewer positions show no regular spacing
MINIMUM_POSITIONS = 5
#: planes nearer than this are at the same position, mm
SAME_MM = 0.01
#: how far a gap may be off a multiple of the spacing, as a share of it or in mm, whichever is more;
#: scanners round Image Position (Patient) to between 0.001 and 0.1 mm
TOLERANCE, TOLERANCE_MM = 0.05, 0.1
#: with fewer ordinary gaps than this share the spacing isn't regular
REGULAR_SHARE = 0.5
#: consecutive Instance Numbers across holes larger than this (in spacings), or across more than this share of
#: the gaps, say that the spacing was planned so
PLANNED_STEPS, PLANNED_SHARE = 3, 0.1


@dataclass(frozen=True)
class Slice:
    """One plane: position along the stack's normal in mm, Instance Number if it has one."""

    position_mm: float
    instance_number: int | None = None


@dataclass(frozen=True)
class Regular:
    """A regular stack: its spacing and the positions at which a slice is missing, ascending."""

    spacing_mm: float
    missing_mm: tuple[float, ...]


def regular_stack(slices: Sequence[Slice]) -> Regular | None:
    """The regular stack that the slices form, in any order; None when they form none.

    Several slices at one position (phases, echoes) count as one.
    """
    planes = _different(slices)
    if len(planes) < MINIMUM_POSITIONS:
        return None
    gaps = [after.position_mm - before.position_mm for before, after in pairwise(planes)]
    spacing = median_low(gaps)
    allowed = max(TOLERANCE * spacing, min(TOLERANCE_MM, 0.25 * spacing))
    steps = [max(1, round(gap / spacing)) for gap in gaps]
    if any(abs(gap - step * spacing) > 2 * allowed for gap, step in zip(gaps, steps, strict=True)):
        return None
    if steps.count(1) < REGULAR_SHARE * len(gaps) or _is_planned(planes, steps):
        return None
    missing = [
        round(before.position_mm + (after.position_mm - before.position_mm) * number / step, 3)
        for (before, after), step in zip(pairwise(planes), steps, strict=True)
        for number in range(1, step)
    ]
    return Regular(round(spacing, 3), tuple(missing))


def _different(slices: Sequence[Slice]) -> list[Slice]:
    """One slice a position, ascending."""
    planes: list[Slice] = []
    for one in sorted(slices, key=lambda plane: plane.position_mm):
        if not planes or one.position_mm - planes[-1].position_mm > SAME_MM:
            planes.append(one)
    return planes


def _is_planned(planes: Sequence[Slice], steps: Sequence[int]) -> bool:
    """Whether the sender numbered the slices without a gap across the holes."""
    consecutive = [
        step
        for (before, after), step in zip(pairwise(planes), steps, strict=True)
        if step > 1
        and before.instance_number is not None
        and after.instance_number is not None
        and abs(after.instance_number - before.instance_number) == 1
    ]
    return len(consecutive) > PLANNED_SHARE * len(steps) or any(s > PLANNED_STEPS for s in consecutive)
