"""From lesion labels to the boxes of their components."""

from __future__ import annotations

import numpy as np
import pytest

from triton_models.data.boxes import MOST, SMALLEST_ML, components


def test_boxes_are_half_open_and_sorted_by_size() -> None:
    lesions = np.zeros((10, 60, 60), np.uint8)
    lesions[1:3, 5:9, 6:12] = 1
    lesions[5:9, 30:50, 30:40] = 1
    lesions[5:9, 30:35, 30:40] = 2
    found = components(lesions, (5.0, 1.0, 1.0))
    assert found.boxes.tolist() == [[5, 30, 30, 9, 50, 40], [1, 5, 6, 3, 9, 12]]
    np.testing.assert_allclose(found.sizes, [4.0, 0.24])
    np.testing.assert_allclose(found.dense_share, [0.25, 0.0])
    assert found.counts.tolist() == [True, False]
    assert found.sizes[1] < SMALLEST_ML
    assert (found.numbers == 1).sum() == 800
    assert not found.numbers[lesions == 0].any()


@pytest.mark.parametrize(("gap", "count"), [(3, 1), (8, 2)])
def test_lesions_close_to_each_other_are_one(gap: int, count: int) -> None:
    lesions = np.zeros((3, 40, 60), np.uint8)
    lesions[:, 10:20, 5:15] = 1
    lesions[:, 10:20, 15 + gap : 25 + gap] = 1
    found = components(lesions, (5.0, 1.0, 1.0))
    assert len(found) == count
    assert found.boxes[0].tolist() == [0, 10, 5, 3, 20, 25 + gap if count == 1 else 15]


def test_the_gap_is_measured_in_mm() -> None:
    lesions = np.zeros((40, 60), np.uint8)
    lesions[10:20, 5:15] = lesions[10:20, 18:28] = 1
    assert len(components(lesions, (1.0, 1.0))) == 1
    assert len(components(lesions, (4.0, 4.0))) == 2


def test_no_lesion_no_box() -> None:
    found = components(np.zeros((4, 20, 20), np.uint8), (5.0, 1.0, 1.0))
    assert (len(found), found.boxes.shape) == (0, (0, 6))


def test_numbers_fit_their_type() -> None:
    lesions = np.zeros((200, 200), np.uint8)
    lesions[::10, ::10] = 1
    found = components(lesions, (4.0, 4.0))
    assert len(found) == MOST == found.numbers.max()


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 or 3 axes"):
        components(np.zeros((4, 20, 20), np.uint8), (1.0, 1.0))
