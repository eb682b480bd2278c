"""Metrics of classification against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from triton_models.evaluation.class_metrics import (
    class_estimates,
    class_table,
    group_weights,
    paired_difference,
    weighted_auc,
)

CLASSES = ("a", "b", "c")
#: six cases; predicted a a b b c a
PROBABILITIES = np.array(
    [
        [0.8, 0.1, 0.1],
        [0.5, 0.3, 0.2],
        [0.3, 0.6, 0.1],
        [0.2, 0.5, 0.3],
        [0.1, 0.2, 0.7],
        [0.4, 0.3, 0.3],
    ]
)
TRUTH = np.array([0, 0, 0, 1, 2, 2])


def test_a_confusion_matrix_by_hand() -> None:
    table = class_table(PROBABILITIES, TRUTH, CLASSES)
    a = {name: float(value[0]) for name, value in table["a"].items()}  # TP 2, FP 1, FN 1, TN 2
    assert a == pytest.approx(
        {
            "accuracy": 4 / 6,
            "sensitivity": 2 / 3,
            "specificity": 2 / 3,
            "precision": 2 / 3,
            "recall": 2 / 3,
            "f1": 2 / 3,
            "auc": (3 + 3 + 2) / 9,  # 0.8 and 0.5 beat 0.2, 0.1, 0.4; 0.3 beats 0.2, 0.1
        }
    )
    b = {name: float(value[0]) for name, value in table["b"].items()}  # TP 1, FP 1, FN 0, TN 4
    assert (b["precision"], b["recall"], b["f1"], b["specificity"]) == pytest.approx((0.5, 1.0, 2 / 3, 0.8))
    assert b["auc"] == pytest.approx(4 / 5)
    c = {name: float(value[0]) for name, value in table["c"].items()}  # TP 1, FP 0, FN 1, TN 4
    assert (c["precision"], c["recall"], c["f1"]) == pytest.approx((1.0, 0.5, 2 / 3))
    assert c["auc"] == pytest.approx((4 + 3.5) / 8)  # 0.7 beats all four; 0.3 beats three, ties with one
    whole = {name: float(value[0]) for name, value in table["all"].items()}
    assert whole == pytest.approx(
        {"accuracy": 4 / 6, "macro_f1": 2 / 3, "macro_auc": (8 / 9 + 4 / 5 + 7.5 / 8) / 3}
    )


def test_auc_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 12, 200) / 12.0
    truth = rng.random(200) < 0.2 + 0.5 * scores
    pairs = scores[truth][:, None] - scores[~truth][None, :]
    expected = (pairs > 0).mean() + 0.5 * (pairs == 0).mean()
    assert weighted_auc(scores, truth, np.ones((1, 200)))[0] == pytest.approx(expected)


def test_weights_are_as_if_cases_were_repeated() -> None:
    weights = np.array([[2.0, 0.0, 1.0, 3.0, 1.0, 1.0]])
    repeated = np.repeat(np.arange(6), weights[0].astype(int))
    weighted = class_table(PROBABILITIES, TRUTH, CLASSES, weights)
    direct = class_table(PROBABILITIES[repeated], TRUTH[repeated], CLASSES)
    for name, rows in direct.items():
        for metric, value in rows.items():
            assert weighted[name][metric] == pytest.approx(value), (name, metric)


def test_a_class_without_cases_is_undefined() -> None:
    table = class_table(PROBABILITIES[:4], TRUTH[:4], CLASSES)
    assert np.isnan(table["c"]["auc"][0])
    assert np.isnan(table["c"]["sensitivity"][0])


def test_cases_of_a_group_are_drawn_together() -> None:
    weights = group_weights(["x", "y", "x", "y", "z"], samples=50)
    assert weights.shape == (50, 5)
    assert np.array_equal(weights[:, 0], weights[:, 2])
    assert np.array_equal(weights[:, 1], weights[:, 3])
    assert (weights[:, [0, 1, 4]].sum(axis=1) == 3).all()


def test_grouped_intervals_are_wider_than_those_of_single_cases() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(20), 30)
    right = rng.random(20)[groups] > 0.4  # whole groups succeed or fail
    truth = rng.integers(0, 2, 600)
    probabilities = np.eye(2)[np.where(right, truth, 1 - truth)]
    single = class_estimates(probabilities, truth, ("a", "b"), np.arange(600).tolist())["all"]["accuracy"]
    grouped = class_estimates(probabilities, truth, ("a", "b"), groups.tolist())["all"]["accuracy"]
    assert single.value == grouped.value == pytest.approx(right.mean())
    assert grouped.high - grouped.low > 2 * (single.high - single.low)


def test_a_paired_difference_excludes_zero_where_intervals_overlap() -> None:
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 2, 400)
    worse = np.where(rng.random(400) < 0.75, truth, 1 - truth)
    better = np.where(rng.random(400) < 0.15, truth, worse)
    answers = (np.eye(2)[better], np.eye(2)[worse])
    difference = paired_difference(answers, truth, ("a", "b"), np.arange(400).tolist())["all"]["accuracy"]
    assert difference.value == pytest.approx((better == truth).mean() - (worse == truth).mean())
    assert 0 < difference.low < difference.value < difference.high


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="no cases"):
        class_table(PROBABILITIES[:0], TRUTH[:0], CLASSES)
    with pytest.raises(ValueError, match="6 cases of 2 classes"):
        class_table(PROBABILITIES, TRUTH, ("a", "b"))
