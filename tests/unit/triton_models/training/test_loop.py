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
from triton_models.training.loop import load_trained, train
from triton_models.training.recipes.mixture import training_mixture
from triton_models.training.recipes.segmentation import segmentation_loss
from triton_models.training.settings import TrainSettings

VARIANTS = [(entry.name, variant) for entry in MODELS.values() for variant in entry.variants]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainSettings:
    monkeypatch.setattr("triton_models.data.slices.SLICES_PER_PHANTOM", 3)
    monkeypatch.setattr("triton_models.training.recipes.mixture.TRAIN_SEEDS", range(1001, 1002))
    monkeypatch.setattr("triton_models.training.recipes.segmentation.VALIDATION_SEEDS", range(8001, 8002))
    monkeypatch.setattr("triton_models.training.recipes.segmentation.BATCH_SIZE", 2)
    monkeypatch.setattr("triton_models.data.infection_patches.SLICES_PER_PHANTOM", 3)
    monkeypatch.setattr("triton_models.training.recipes.infection_type.TRAIN_SEEDS", range(20001, 20002))
    monkeypatch.setattr("triton_models.training.recipes.infection_type.VALIDATION_SEEDS", range(28001, 28002))
    monkeypatch.setattr("triton_models.training.recipes.infection_type.BATCH_SIZE", 4)
    monkeypatch.setattr("triton_models.data.normal_slices.SLICES_PER_PHANTOM", 3)
    monkeypatch.setattr("triton_models.data.normal_slices.TRAIN_SEEDS", range(40001, 40002))
    monkeypatch.setattr("triton_models.data.normal_slices.VALIDATION_SEEDS", range(48001, 48002))
    monkeypatch.setattr("triton_models.training.recipes.inpaint.VALIDATION_WINDOWS", 4)
    monkeypatch.setattr("triton_models.training.recipes.inpaint.BATCH_SIZE", 2)
    monkeypatch.setattr("triton_models.data.volumes.PHANTOM_PIXELS", 64)
    monkeypatch.setattr("triton_models.data.volumes.GRID", (16, 32, 32))
    monkeypatch.setattr("triton_models.training.recipes.candidates.GRID", (16, 32, 32))
    monkeypatch.setattr("triton_models.training.recipes.candidates.CELLS", (8, 8, 8))
    monkeypatch.setattr("triton_models.training.recipes.candidates.VOLUME_SEEDS", range(2001, 2002))
    monkeypatch.setattr("triton_models.training.recipes.candidates.VALIDATION_SEEDS", range(8001, 8002))
    monkeypatch.setattr("triton_models.training.recipes.lesion_boxes.VALIDATION_SEEDS", range(8001, 8002))
    monkeypatch.setattr("triton_models.training.recipes.lesion_boxes.BATCH_SIZE", 2)
    monkeypatch.setattr("triton_models.data.teaching.SEEDS", range(62000, 62002))
    monkeypatch.setattr("triton_models.training.recipes.lung_pooled.TRAIN_SEEDS", range(60000, 60003))
    monkeypatch.setattr("triton_models.training.recipes.lung_pooled.VALIDATION_SEEDS", range(68000, 68003))
    monkeypatch.setattr("triton_models.training.recipes.lung_pooled.BATCH_SIZE", 2)
    return TrainSettings(out=tmp_path / "run", cache=tmp_path / "cache", steps=3, bf16=False)


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_three_steps_and_resume(name: str, variant: str, settings: TrainSettings) -> None:
    entry = MODELS[name]
    if entry.recipe.startswith("lung_pooled."):  # it answers all slices of its phantoms: small ones will do
        entry = replace(entry, network_size=64, asked_sizes=())
    settings = replace(settings, variant=variant)
    checkpoint = train(entry, settings)
    assert (settings.out / "curve.png").stat().st_size > 1000
    (row,) = json.loads((settings.out / "history.json").read_text())
    assert row["step"] == 3
    before = load_trained(entry, checkpoint)
    assert (before.variant, before.classes) == (variant, entry.classes)

    train(entry, replace(settings, steps=4), resume=True)
    rows = json.loads((settings.out / "history.json").read_text())
    assert [r["step"] for r in rows] == [3, 4]
    weights, after = before.network.state_dict(), load_trained(entry, checkpoint).network.state_dict()
    assert any(not torch.equal(weights[key], after[key]) for key in weights)


def test_the_same_seed_trains_the_same_network(settings: TrainSettings, tmp_path: Path) -> None:
    entry = MODELS["lungs"]
    first = load_trained(entry, train(entry, settings)).network.state_dict()
    second = load_trained(entry, train(entry, replace(settings, out=tmp_path / "again"))).network.state_dict()
    assert all(torch.allclose(first[key], second[key], atol=1e-5) for key in first)


def test_resume_without_a_checkpoint_is_an_error(settings: TrainSettings) -> None:
    with pytest.raises(FileNotFoundError):
        train(MODELS["lungs"], settings, resume=True)


def test_a_checkpoint_of_another_model_is_an_error(settings: TrainSettings) -> None:
    checkpoint = train(MODELS["lungs"], settings)
    with pytest.raises(ValueError, match="checkpoint of lungs, not of lesions"):
        load_trained(MODELS["lesions"], checkpoint)


def test_ignored_pixels_do_not_count() -> None:
    logits = torch.randn(2, 1, 16, 16)
    targets = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    targets[:, :, :8] = IGNORE
    changed = logits.clone()
    changed[:, :, :8] += 100.0
    assert torch.isclose(segmentation_loss(logits, targets), segmentation_loss(changed, targets))


def test_a_perfect_prediction_costs_almost_nothing() -> None:
    targets = (torch.rand(2, 2, 32, 32) > 0.7).to(torch.uint8)
    logits = (targets.float() - 0.5) * 60
    assert segmentation_loss(logits, targets) < 1e-3
    assert segmentation_loss(-logits, targets) > 5.0


def test_batches_carry_what_is_ignored(settings: TrainSettings) -> None:
    mixture = training_mixture(MODELS["lesions"], settings)
    mixture.pools[0].lesions[:, :5] = IGNORE
    hu, targets = mixture.draw(8, np.random.default_rng(0))
    assert hu.shape == (8, 256, 256)
    assert targets.shape == (8, 6, 256, 256)
    ignored = targets[:, 3, :5].amax(dim=(1, 2)) == 1
    assert ignored.any()
    assert (targets[ignored][:, :3, :5] == 0).all()
