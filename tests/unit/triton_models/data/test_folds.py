"""Parts for cross-validation keep groups together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_models.data.folds import inside, part_numbers


@given(st.lists(st.sampled_from("abcdefghijkl"), min_size=5, max_size=60), st.integers(2, 5), st.booleans())
def test_no_group_is_in_two_parts_and_every_case_is_in_one(
    groups: list[str], parts: int, labelled: bool
) -> None:
    labels = ["low" if group < "e" else "high" for group in groups] if labelled else []
    if len(set(groups)) < parts:
        with pytest.raises(ValueError, match="can't be split"):
            part_numbers(groups, parts, labels)
        return
    number = part_numbers(groups, parts, labels)
    assert set(number) == set(range(parts))
    for group in set(groups):
        assert len({n for n, g in zip(number, groups, strict=True) if g == group}) == 1


def test_single_cases_are_spread_evenly_whatever_their_order() -> None:
    names = [str(n) for n in range(50)]
    number = part_numbers(names, 5)
    assert np.bincount(number).tolist() == [10] * 5
    backwards = part_numbers(names[::-1], 5)
    assert (backwards[::-1] == number).all()


def test_labels_are_spread_evenly_too() -> None:
    groups = [f"{n // 2}" for n in range(60)]
    labels = ["rare" if n < 20 else "common" for n in range(60)]
    number = part_numbers(groups, 5, labels)
    assert np.bincount(number[:20]).tolist() == [4] * 5
    assert np.bincount(number[20:]).tolist() == [8] * 5


def test_a_part_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="part 5 of 5 doesn't exist"):
        inside([str(n) for n in range(10)], (5, 5))
