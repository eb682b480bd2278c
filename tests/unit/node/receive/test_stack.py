"""Missing positions: seen where the spacing is regular otherwise, and only there."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.receive.stack import Regular, Slice, regular_stack


def stack(positions: Sequence[float], numbers: Sequence[int | None] | None = None) -> Regular | None:
    numbers = [None] * len(positions) if numbers is None else numbers
    slices = [Slice(p, n) for p, n in zip(positions, numbers, strict=True)]
    return regular_stack(slices[::2] + slices[1::2][::-1])


def test_a_regular_stack_has_no_holes() -> None:
    assert stack([2.5 * i for i in range(40)]) == Regular(2.5, ())


@given(
    count=st.integers(20, 200),
    spacing=st.floats(0.3, 10),
    start=st.floats(-1000, 1000),
    rounding=st.sampled_from([1e-6, 1e-3, 1e-2]),
    data=st.data(),
)
def test_holes_in_a_regular_stack_are_found(
    count: int, spacing: float, start: float, rounding: float, data: st.DataObject
) -> None:
    inner = st.integers(1, count - 2)
    withheld = data.draw(st.sets(inner, max_size=count // 6))
    positions = [round((start + i * spacing) / rounding) * rounding for i in range(count)]
    numbers = [i + 1 for i in range(count)]
    left = [i for i in range(count) if i not in withheld]
    found = stack([positions[i] for i in left], [numbers[i] for i in left])
    assert found is not None
    assert found.missing_mm == pytest.approx([positions[i] for i in sorted(withheld)], abs=0.1 * spacing)


@pytest.mark.parametrize(
    "positions",
    [
        [0, 5, 10, 20],  # too few to tell
        [1, 2, 4, 7, 12, 19, 21, 30],  # irregular
        [*range(0, 30, 5), *range(30, 130, 10)],  # thin, then thick: by design
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # one position
    ],
)
def test_no_holes_where_the_spacing_is_not_regular(positions: list[float]) -> None:
    assert stack(positions) is None


def test_a_change_of_spacing_that_is_numbered_through_is_planned() -> None:
    positions = [*range(0, 100, 5), *range(100, 200, 10)]
    assert stack(positions, list(range(len(positions)))) is None
    assert stack([*range(0, 50, 5), *range(200, 250, 5)], list(range(20))) is None  # two stacks


def test_one_hole_counts_even_where_instances_were_numbered_anew() -> None:
    positions = [float(i) for i in range(30) if i != 11]
    assert stack(positions, list(range(29))) == Regular(1.0, (11.0,))


def test_phases_at_the_same_positions_count_once() -> None:
    positions = [2.0 * i for i in range(10) if i != 4] * 3
    assert stack(positions) == Regular(2.0, (8.0,))
