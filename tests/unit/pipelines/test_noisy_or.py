"""Noisy-OR as Xu et al. 2020 state it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.noisy_or import case_type, noisy_or, noisy_or_by_type
from pipelines.volume import NO_FINDING
from tests.unit.pipelines.examples import region

probability = st.floats(0.0, 1.0)


def test_the_papers_example() -> None:
    assert noisy_or([0.5, 0.5]) == 0.75


def test_no_regions_give_zero() -> None:
    assert noisy_or([]) == 0.0


@given(st.lists(probability, min_size=1))
def test_never_below_its_largest_input_nor_above_one(values: list[float]) -> None:
    assert max(values) - 1e-12 <= noisy_or(values) <= 1.0


@given(st.lists(probability), st.randoms())
def test_order_does_not_matter(values: list[float], random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert math.isclose(noisy_or(values), noisy_or(shuffled), abs_tol=1e-12)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_refuses_what_is_no_probability(wrong: float) -> None:
    with pytest.raises(ValueError, match="probability"):
        noisy_or([0.5, wrong])


def test_types_are_combined_apart() -> None:
    regions = [
        region(1, "covid19", 0.5),
        region(2, "covid19", 0.5),
        region(3, "iavp", 0.9),
    ]
    by_type = noisy_or_by_type(regions)
    assert by_type == {"covid19": 0.75, "iavp": pytest.approx(0.9)}
    assert case_type(by_type) == "iavp"


def test_a_case_without_regions() -> None:
    by_type = noisy_or_by_type([])
    assert by_type == {"covid19": 0.0, "iavp": 0.0}
    assert case_type(by_type) == NO_FINDING
