"""Overlaps, and what is left of a detector's answer."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.boxes import OPERATIONS, Operation, chosen, overlaps


def test_overlaps_of_boxes_in_a_volume() -> None:
    first = np.array([[0, 0, 0, 4, 4, 4], [10, 10, 10, 12, 12, 12]], np.float32)
    second = np.array([[2, 0, 0, 6, 4, 4], [0, 0, 0, 4, 4, 4], [1, 1, 1, 1, 1, 1]], np.float32)
    table = overlaps(first, second)
    np.testing.assert_allclose(table, [[32 / 96, 1.0, 0.0], [0.0, 0.0, 0.0]], atol=1e-6)


def test_overlaps_with_nothing() -> None:
    assert overlaps(np.zeros((3, 4), np.float32), np.zeros((0, 4), np.float32)).shape == (3, 0)


def test_the_higher_ranked_of_two_boxes_for_one_thing_stays() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [30, 30, 40, 40], [0, 0, 10, 9]], np.float32)
    scores = np.array([0.5, 0.9, 0.3, 0.05], np.float32)
    assert chosen(boxes, scores, Operation(0.1, 0.3)).tolist() == [1, 2]
    assert chosen(boxes, scores, Operation(0.1, 0.9)).tolist() == [1, 0, 2]
    assert chosen(boxes, scores, Operation(0.95, 0.3)).tolist() == []


def test_a_dropped_box_drops_no_other() -> None:
    """The middle of three in a row overlaps both its neighbours, which don't overlap each other."""
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10]], np.float32)
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    assert chosen(boxes, scores, Operation(0.1, 0.3)).tolist() == [0, 2]


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=list(OPERATIONS))
def test_operations_are_shares(operation: Operation) -> None:
    assert 0.0 < operation.score < 1.0
    assert 0.0 < operation.overlap < 1.0
