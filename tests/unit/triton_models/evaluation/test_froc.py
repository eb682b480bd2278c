"""What is a hit, and the curve made of hits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from triton_models.evaluation.froc import RATES, Found, froc

BOX = np.array([0, 0, 0, 10, 10, 10], np.float32)


def _boxes(*shifts: float) -> NDArray[np.float32]:
    """The box moved along the first axis."""
    moved: NDArray[np.float32] = np.stack([BOX + np.array([s, 0, 0, s, 0, 0], np.float32) for s in shifts])
    return moved


def _found(
    shifts: Sequence[float],
    scores: Sequence[float],
    truths: Sequence[float],
    counts: Sequence[bool] | None = None,
) -> Found:
    counted = np.ones(len(truths), bool) if counts is None else np.asarray(counts)
    truth = _boxes(*truths) if truths else np.zeros((0, 6), np.float32)
    return Found.of(_boxes(*shifts), np.asarray(scores, np.float32), truth, counted)


def test_a_true_box_is_hit_once() -> None:
    one = _found([0, 1, 50], [0.5, 0.9, 0.7], [0])
    assert one.scores.tolist() == pytest.approx([0.9, 0.7, 0.5])
    assert one.hits.tolist() == [True, False, False]
    assert one.truths == 1


def test_a_hit_needs_a_tenth_of_overlap() -> None:
    assert _found([8.0], [0.9], [0]).hits.tolist() == [True]  # 2 / 18
    assert _found([8.3], [0.9], [0]).hits.tolist() == [False]  # 1.7 / 18.3


def test_the_better_overlapped_of_two_is_hit() -> None:
    both = _found([4, 0], [0.9, 0.8], [-3, 3])
    assert both.hits.tolist() == [True, True]


def test_what_need_not_be_found_counts_for_neither() -> None:
    one = _found([0, 50], [0.9, 0.8], [0], counts=[False])
    assert (one.scores.tolist(), one.hits.tolist(), one.truths) == (pytest.approx([0.8]), [False], 0)


def test_without_truth_everything_is_false() -> None:
    assert _found([0, 1], [0.4, 0.2], []).hits.tolist() == [False, False]


def test_the_curve_is_read_at_its_rates() -> None:
    images = [
        _found([0, 40, 80], [0.9, 0.8, 0.3], [0, 80]),  # hit, false, hit
        _found([20], [0.5], []),  # false
    ]
    figures = froc(images, 0.4, "scan")
    assert {name: figures[name].value for name in figures if "_at_" in name} == {
        **{f"sensitivity_at_{rate:g}": 0.5 for rate in RATES[:3]},
        **{f"sensitivity_at_{rate:g}": 1.0 for rate in RATES[3:]},
    }
    assert figures["froc_mean"].value == pytest.approx((3 * 0.5 + 4) / 7)
    assert figures["sensitivity"].value == 0.5
    assert figures["false_positives_per_scan"].value == 1.0
    assert figures["sensitivity_at_8"].low <= 1.0 == figures["sensitivity_at_8"].high


def test_no_true_box_at_all_leaves_sensitivity_open() -> None:
    figures = froc([_found([20], [0.5], [])], 0.4, "scan")
    assert np.isnan(figures["sensitivity"].value)
    assert figures["false_positives_per_scan"].value == 1.0
