"""Metrics of classification, weighted, so that a bootstrap is a matter of weights.

In: probabilities and true classes of cases.  Out: tables and ``Estimate``s.

Predicted is the class of the largest probability (the first of equals). Of each class against the rest:
accuracy (TP+TN)/all, sensitivity and recall TP/(TP+FN), specificity TN/(TN+FP), precision TP/(TP+FP), F1
2TP/(2TP+FP+FN), AUC by ranks, ties counting half. Of all: accuracy, the share of cases that are right, and
the unweighted means of the classes' F1 and AUC; classes without a case leave them undefined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triton_models.evaluation.result import BOOTSTRAP_SAMPLES, Estimate

ALL = "all"
METRICS = ("accuracy", "sensitivity", "specificity", "precision", "recall", "f1", "auc")
OVERALL = ("accuracy", "macro_f1", "macro_auc")

Floats = NDArray[np.float64]
#: class or ALL -> metric -> a value for each row of weights
Table = Mapping[str, Mapping[str, Floats]]


def weighted_auc(scores: Floats, truth: NDArray[np.bool_], weights: Floats) -> Floats:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    scores, truth: (n,).  weights: (samples, n).  Returns (samples,), NaN without positives or negatives.
    """
    values, place = np.unique(scores, return_inverse=True)
    starts = np.searchsorted(np.sort(place), np.arange(len(values)))
    order = np.argsort(place, kind="stable")
    positive = np.add.reduceat((weights * truth)[:, order], starts, axis=1)
    negative = np.add.reduceat((weights * ~truth)[:, order], starts, axis=1)
    below = np.cumsum(negative, axis=1) - 0.5 * negative
    with np.errstate(divide="ignore", invalid="ignore"):
        area = (positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))
    return np.asarray(area)


def class_table(
    probabilities: NDArray[Any],
    truth: NDArray[np.int64],
    classes: Sequence[str],
    weights: Floats | None = None,
) -> Table:
    """Every metric for each row of case weights.

    probabilities: (n, classes).  truth: (n,), index of the class.  weights: (samples, n), None for one row of
    ones. Raises ValueError for shapes that don't fit or no cases.
    """
    n = len(truth)
    if not n:
        raise ValueError("no cases to evaluate")
    if probabilities.shape != (n, len(classes)):
        raise ValueError(f"{n} cases of {len(classes)} classes, but probabilities are {probabilities.shape}")
    if weights is None:
        weights = np.ones((1, n))
    predicted = probabilities.argmax(axis=1)
    table: dict[str, dict[str, Floats]] = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        for number, name in enumerate(classes):
            said, true = predicted == number, truth == number
            kinds = np.stack([said & true, said & ~true, ~said & true, ~said & ~true], axis=1)
            tp, fp, fn, tn = (weights @ kinds.astype(np.float64)).T
            table[name] = {
                "accuracy": (tp + tn) / (tp + fp + fn + tn),
                "sensitivity": tp / (tp + fn),
                "specificity": tn / (tn + fp),
                "precision": tp / (tp + fp),
                "recall": tp / (tp + fn),
                "f1": 2 * tp / (2 * tp + fp + fn),
                "auc": weighted_auc(probabilities[:, number].astype(np.float64), true, weights),
            }
        table[ALL] = {
            "accuracy": (weights @ (predicted == truth)) / weights.sum(axis=1),
            "macro_f1": np.mean([table[name]["f1"] for name in classes], axis=0),
            "macro_auc": np.mean([table[name]["auc"] for name in classes], axis=0),
        }
    return table


def group_weights(groups: Sequence[object], *, seed: int = 0, samples: int = BOOTSTRAP_SAMPLES) -> Floats:
    """Bootstrap weights of the cases, (samples, n): whole groups are drawn with replacement."""
    _, inverse = np.unique(np.asarray(groups), return_inverse=True)
    count = int(inverse.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), samples)
    return np.asarray(drawn[:, inverse], dtype=np.float64)


def class_estimates(
    probabilities: NDArray[Any],
    truth: NDArray[np.int64],
    classes: Sequence[str],
    groups: Sequence[object],
) -> dict[str, dict[str, Estimate]]:
    """Every metric with its interval over resampled groups."""
    values = class_table(probabilities, truth, classes)
    spread = class_table(probabilities, truth, classes, group_weights(groups))
    return {
        name: {key: Estimate.of(rows[key][0], spread[name][key]) for key in rows}
        for name, rows in values.items()
    }


def paired_difference(
    probabilities: tuple[NDArray[Any], NDArray[Any]],
    truth: NDArray[np.int64],
    classes: Sequence[str],
    groups: Sequence[object],
) -> dict[str, dict[str, Estimate]]:
    """Each metric of the first answers less that of the second, on the same cases and the same resamples."""
    first, second = (class_table(one, truth, classes) for one in probabilities)
    weights = group_weights(groups)
    spread, other = (class_table(one, truth, classes, weights) for one in probabilities)
    return {
        name: {
            key: Estimate.of(rows[key][0] - second[name][key][0], spread[name][key] - other[name][key])
            for key in rows
        }
        for name, rows in first.items()
    }
