"""A very short training run: it learns something to save, and can be resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from triton_models.data.slices import IGNORE
from triton_models.registry import MODELS
from triton_models.training.loop import load_network, segmentation_loss, train
from triton_models.training.sampling import training_mixture
from triton_models.training.settings import TrainSettings, settings_for


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainSettings:
    monkeypatch.setattr("triton_models.data.slices.SLICES_PER_PHANTOM", 3)
    return TrainSettings(
        out=tmp_path / "run",
        cache=tmp_path / "cache",
        steps=3,
        batch_size=2,
        validate_every=3,
        train_seeds=(1001,),
        validation_seeds=(8001,),
        bf16=False,
    )


@pytest.mark.parametrize("name", list(MODELS))
def test_three_steps_and_resume(name: str, settings: TrainSettings) -> None:
    entry = MODELS[name]
    checkpoint = train(entry, settings)
    assert (settings.out / "curve.png").stat().st_size > 1000
    (row,) = json.loads((settings.out / "history.json").read_text())
    assert row["step"] == 3
    assert {f"dice_{channel}" for channel in entry.channels} <= set(row)
    before = load_network(entry, checkpoint).state_dict()

    train(entry, replace(settings, steps=4, validate_every=4), resume=True)
    rows = json.loads((settings.out / "history.json").read_text())
    assert [r["step"] for r in rows] == [3, 4]
    after = load_network(entry, checkpoint).state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_the_same_seed_trains_the_same_network(settings: TrainSettings, tmp_path: Path) -> None:
    entry = MODELS["lungs"]
    first = load_network(entry, train(entry, settings)).state_dict()
    second = load_network(entry, train(entry, replace(settings, out=tmp_path / "again"))).state_dict()
    assert all(torch.allclose(first[key], second[key], atol=1e-5) for key in first)


def test_resume_without_a_checkpoint_is_an_error(settings: TrainSettings) -> None:
    with pytest.raises(FileNotFoundError):
        train(MODELS["lungs"], settings, resume=True)


def test_ignored_pixels_do_not_count() -> None:
    logits = torch.randn(2, 1, 16, 16)
    targets = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    targets[:, :, :8] = IGNORE
    changed = logits.clone()
    changed[:, :, :8] += 100.0
    for focal in (False, True):
        assert torch.isclose(
            segmentation_loss(logits, targets, focal=focal), segmentation_loss(changed, targets, focal=focal)
        )


def test_a_perfect_prediction_costs_almost_nothing() -> None:
    targets = (torch.rand(2, 2, 32, 32) > 0.7).to(torch.uint8)
    logits = (targets.float() - 0.5) * 60
    assert segmentation_loss(logits, targets, focal=False) < 1e-3
    assert segmentation_loss(-logits, targets, focal=False) > 5.0


def test_batches_carry_ignore_in_every_channel(settings: TrainSettings) -> None:
    mixture = training_mixture(MODELS["lesions"], settings)
    mixture.pools[0].lesions[:, :5] = IGNORE
    hu, targets = mixture.draw(8, np.random.default_rng(0))
    assert hu.shape == (8, 256, 256)
    assert targets.shape == (8, 2, 256, 256)
    assert (
        (targets[:, :, :5] == IGNORE)
        .any(dim=(2, 3))[:, 0]
        .eq((targets[:, :, :5] == IGNORE).any(dim=(2, 3))[:, 1])
        .all()
    )


def test_lesions_get_the_focal_loss(tmp_path: Path) -> None:
    arguments = {"out": tmp_path, "data": (), "cache": None, "steps": 1, "minutes": None}
    assert settings_for(MODELS["lesions"], **arguments).focal
    assert not settings_for(MODELS["lungs"], **arguments).focal
