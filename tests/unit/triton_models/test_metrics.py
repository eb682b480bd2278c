"""Metrics against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from triton_models.evaluation.level_metrics import LevelCounts, level_estimates
from triton_models.evaluation.pixel_metrics import METRICS, Counts, estimates


def _mask(text: str) -> NDArray[np.bool_]:
    return np.array([c == "x" for c in text])


def test_counts_and_metrics_by_hand() -> None:
    counts = Counts.of(
        [
            (_mask("xxx......."), _mask(".xxx......")),  # tp 2 fp 1 fn 1 tn 6
            (_mask("x........."), _mask("..........")),  # tp 0 fp 1 fn 0 tn 9
            (_mask(".........."), _mask("..........")),  # nothing, rightly: not in the mean Dice
        ]
    )
    assert counts.table.tolist() == [[2, 1, 1, 6], [0, 1, 0, 9], [0, 0, 0, 10]]
    values = {name: estimate.value for name, estimate in estimates(counts).items()}
    assert values == {
        "dice": pytest.approx((4 / 6 + 0) / 2),
        "dice_pooled": pytest.approx(4 / 7),
        "iou": pytest.approx(2 / 5),
        "sensitivity": pytest.approx(2 / 3),
        "specificity": pytest.approx(25 / 27),
        "precision": pytest.approx(2 / 4),
        "accuracy": pytest.approx(27 / 30),
    }


def test_interval_holds_the_value_and_shrinks_with_more_images() -> None:
    rng = np.random.default_rng(0)

    def images(n: int) -> Counts:
        truth = rng.random((n, 200)) < 0.3
        return Counts.of(zip(truth ^ (rng.random((n, 200)) < 0.1), truth, strict=True))

    few, many = estimates(images(10)), estimates(images(1000))
    for name in METRICS:
        assert few[name].low <= few[name].value <= few[name].high
        assert many[name].high - many[name].low < few[name].high - few[name].low
    assert estimates(images(10)).keys() == set(METRICS)


def test_same_images_give_the_same_interval() -> None:
    counts = Counts(np.array([[5, 1, 2, 90], [3, 3, 0, 80], [9, 0, 1, 70]]))
    assert estimates(counts) == estimates(counts)


def test_undefined_metrics_are_nan_and_no_images_is_an_error() -> None:
    nothing = estimates(Counts(np.array([[0, 0, 0, 10]])))
    assert math.isnan(nothing["dice"].value)
    assert math.isnan(nothing["sensitivity"].value)
    assert nothing["specificity"].value == 1.0
    with pytest.raises(ValueError, match="no images"):
        estimates(Counts(np.empty((0, 4), dtype=np.int64)))


def _levels(*images: tuple[list[int], str]) -> LevelCounts:
    return LevelCounts.of((np.array(levels, dtype=np.uint8), _mask(truth)) for levels, truth in images)


def test_dice_at_a_specificity_by_hand() -> None:
    """Of 100 pixels outside, three may be called: those at 200, 150 and 90, but no longer the one at 80."""
    outside = [200, 150, 90, 80] + [0] * 96
    counts = _levels(([255, 160, 85, 10, *outside], "x" * 4 + "." * 100))
    values = {name: one.value for name, one in level_estimates(counts).items()}
    assert values["sensitivity_at_specificity_0.97"] == pytest.approx(3 / 4)
    assert values["dice_pooled_at_specificity_0.97"] == pytest.approx(2 * 3 / (3 + 3 + 4))
    assert values["dice_at_specificity_0.97"] == values["dice_pooled_at_specificity_0.97"]
    ranks = [np.mean([1.0 if p > n else 0.5 if p == n else 0.0 for n in outside]) for p in (255, 160, 85, 10)]
    assert values["auc"] == pytest.approx(np.mean(ranks))


def test_dice_at_a_specificity_is_the_mean_of_images_that_show_something() -> None:
    nothing, right = [0] * 100, [255] * 10 + [0] * 90
    counts = _levels((right, "x" * 10 + "." * 90), (nothing, "x" * 50 + "." * 50), (nothing, "." * 100))
    values = {name: one.value for name, one in level_estimates(counts).items()}
    assert values["dice_at_specificity_0.97"] == pytest.approx(0.5), "of the last nothing is to be said"
    assert values["dice_pooled_at_specificity_0.97"] == pytest.approx(20 / 70)


def test_a_class_that_is_nowhere_has_no_curve() -> None:
    values = level_estimates(_levels(([0, 10, 255], "...")))
    assert math.isnan(values["auc"].value)
    assert math.isnan(values["sensitivity_at_specificity_0.97"].value)
