"""Boxes around what is set."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.masks import bounding_box, grown, voxel_counts


@pytest.mark.parametrize("kind", [np.bool_, np.uint8, np.uint16])
def test_the_box_holds_all_that_is_set_and_no_more(kind: type[np.generic]) -> None:
    labels = np.zeros((5, 6, 7), kind)
    labels[1, 2, 3] = labels[3, 2, 6] = 1
    assert bounding_box(labels) == (slice(1, 4), slice(2, 3), slice(3, 7))


@pytest.mark.parametrize("shape", [(2, 3, 4), (0, 3, 4)])
def test_nothing_has_an_empty_box(shape: tuple[int, ...]) -> None:
    labels = np.zeros(shape, np.uint8)
    assert labels[bounding_box(labels)].size == 0


def test_a_box_grows_up_to_the_edge() -> None:
    assert grown((slice(0, 2), slice(1, 3), slice(2, 4)), (3, 4, 4)) == (
        slice(0, 3),
        slice(0, 4),
        slice(1, 4),
    )


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32])
def test_voxels_are_counted_by_label(kind: type[np.generic]) -> None:
    labels = np.random.default_rng(3).integers(0, 5, (7, 8, 9)).astype(kind)
    labels[labels == 2] = 0
    expected = [np.count_nonzero(labels == number) for number in range(1, 7)]
    assert voxel_counts(labels, 6).tolist() == expected
