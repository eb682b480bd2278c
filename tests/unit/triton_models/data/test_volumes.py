"""The working grid of 3D networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from triton_models.data.boxes import components
from triton_models.data.phantom import Phantom
from triton_models.data.slices import TEST_SEEDS, VALIDATION_SEEDS
from triton_models.data.volumes import GRID, VOLUME_SEEDS, phantom_volume, phantom_volumes, to_grid
from triton_models.served.detection import on_grid


@pytest.mark.parametrize("shape", [(12, 160, 160), (133, 200, 190), (5, 512, 300)])
def test_training_sees_what_serving_sees(shape: tuple[int, int, int]) -> None:
    hu = np.random.default_rng(1).integers(-2000, 1000, shape).astype(np.int16)
    ours = to_grid(hu, components(np.zeros(shape, np.uint8), (1.0, 1.0, 1.0))).hu
    with torch.inference_mode():
        served = on_grid(torch.from_numpy(hu)[None], GRID[1])[0, 0].numpy()
    assert np.abs(ours - served).max() <= 0.52  # ours is rounded, theirs is of float32 weights


def test_components_keep_their_place(small_phantom: Phantom) -> None:
    found = components(small_phantom.lesions, small_phantom.spacing_mm)
    volume = to_grid(small_phantom.hu, found)
    assert volume.hu.shape == volume.numbers.shape == GRID
    scale = np.asarray(GRID) / np.asarray(small_phantom.hu.shape)
    for index, box in enumerate(found.boxes):
        where = np.argwhere(volume.numbers == index + 1)
        assert len(where)
        assert (where >= np.floor(box[:3] * scale) - 1).all()
        assert (where <= np.ceil(box[3:] * scale)).all()


def test_a_component_is_never_lost_between_voxels() -> None:
    lesions = np.zeros((100, 200, 200), np.uint8)
    lesions[1, 1, 1] = lesions[50, 101, 99] = 1
    volume = to_grid(np.zeros(lesions.shape, np.int16), components(lesions, (1.0, 1.0, 1.0)))
    assert set(np.unique(volume.numbers)) == {0, 1, 2}


def test_the_cache_gives_back_what_it_got(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton_models.data.volumes.PHANTOM_PIXELS", 64)
    made = phantom_volume(3, tmp_path)
    (read,) = phantom_volumes([3], tmp_path)
    assert np.array_equal(made.hu, read.hu)
    assert np.array_equal(made.numbers, read.numbers)
    assert np.array_equal(made.counts, read.counts)


def test_seeds_never_meet() -> None:
    assert not set(VOLUME_SEEDS) & (set(VALIDATION_SEEDS) | set(TEST_SEEDS))
    assert max(VOLUME_SEEDS) < 8000
