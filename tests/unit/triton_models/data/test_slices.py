"""Training slices are resized as the served graph resizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from triton_models.data.slices import (
    IGNORE,
    TEST_SEEDS,
    TRAIN_SEEDS,
    VALIDATION_SEEDS,
    Slices,
    phantom_slices,
    resize_weights,
    to_network_size,
)


@pytest.mark.parametrize(("source", "target"), [(512, 256), (300, 256), (200, 256), (768, 256), (1, 4)])
def test_resize_is_that_of_the_graph(source: int, target: int) -> None:
    image = np.random.default_rng(0).normal(size=(source, source)).astype(np.float32)
    matrix = resize_weights(source, target)
    ours = matrix @ image @ matrix.T
    theirs = functional.interpolate(
        torch.from_numpy(image)[None, None], size=(target, target), mode="bilinear"
    )
    assert np.allclose(ours, theirs[0, 0].numpy(), atol=1e-4)


def test_labels_keep_their_values_and_cover_the_same_share() -> None:
    labels = np.zeros((1, 512, 512), dtype=np.uint8)
    labels[0, 100:200, 100:300] = 1
    labels[0, 200:260, 100:300] = 2
    labels[0, 300:400, 100:300] = IGNORE
    slices = to_network_size(
        np.full((1, 512, 512), -3024, dtype=np.int16), (labels == 1).astype(np.uint8), labels
    )
    assert set(np.unique(slices.lesions)) == {0, 1, 2, IGNORE}
    assert (slices.lesions == 1).sum() == 100 * 200 / 4
    assert slices.hu.min() == -1024


def test_sets_of_phantoms_never_meet() -> None:
    assert not set(TRAIN_SEEDS) & set(VALIDATION_SEEDS)
    assert not set(TEST_SEEDS) & (set(TRAIN_SEEDS) | set(VALIDATION_SEEDS))


def test_cached_phantom_is_the_generated_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton_models.data.slices.SLICES_PER_PHANTOM", 2)
    made = phantom_slices(8000, tmp_path)
    monkeypatch.setattr("triton_models.data.slices.chest_phantom", None)
    read = phantom_slices(8000, tmp_path)
    assert np.array_equal(made.hu, read.hu)
    assert np.array_equal(made.lesions, read.lesions)
    assert [p.name for p in tmp_path.iterdir()] == ["phantom_8000.npz"]


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        Slices(np.zeros((1, 2, 2), np.int16), np.zeros((1, 2, 2), np.uint8), np.zeros((2, 2, 2), np.uint8))
