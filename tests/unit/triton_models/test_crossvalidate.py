"""Cross-validation: every picture is answered once, by a network that never saw it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from triton_models.cli import app
from triton_models.data.folds import inside
from triton_models.evaluation.predictor import predictor_for
from triton_models.export import export_onnx
from triton_models.registry import MODELS
from triton_models.training.loop import load_trained, train
from triton_models.training.recipes.lesions import LesionsRecipe
from triton_models.training.settings import TrainSettings


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    rng = np.random.default_rng(1)
    for part in ("binary/Imgs", "multiclass"):
        (folder / part).mkdir(parents=True)
    for number in range(10):
        labels = np.zeros((60, 50), dtype=np.uint8)
        labels[10 : 20 + number, 10:30], labels[40:, 30:] = 1, 2
        grey = (40 + 60 * labels + rng.integers(0, 20, labels.shape)).astype(np.uint8)
        Image.fromarray(grey).save(folder / "binary" / "Imgs" / f"{number}.png")
        Image.fromarray(labels).save(folder / "multiclass" / f"{number}.png")
    return folder


def test_every_picture_is_measured_once(pictures: Path, tmp_path: Path) -> None:
    command = ["cross-validate", "lesions", "--data", str(pictures), "--out", str(tmp_path / "run")]
    runner = CliRunner()
    result = runner.invoke(app, [*command, "--folds", "2", "--steps", "2", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["n"] == 10
    assert report["cross_validation_parts"] == 2
    assert set(report["metrics"]) == {"ground_glass", "consolidation", "infection"}
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("run/*/checkpoint.pt")}
    assert len(written) == 2
    again = runner.invoke(app, [*command, "--folds", "2", "--steps", "2", "--json"])
    assert json.loads(again.stdout) == report
    assert {path: path.stat().st_mtime_ns for path in written} == written, "finished parts aren't done again"


def test_networks_from_other_seeds_answer_together(pictures: Path, tmp_path: Path) -> None:
    """What was broken off between two networks goes on there, and the mean of both is what is measured."""
    entry = MODELS["lesions"]
    settings = TrainSettings(out=tmp_path / "run", data=(pictures,), steps=1, bf16=False)
    checkpoint = train(entry, settings)
    assert {path.parent.name for path in settings.out.rglob("checkpoint.pt")} == {
        *("run", "network-0", "network-1"),
    }
    first = (settings.out / "network-0" / "checkpoint.pt").stat().st_mtime_ns
    (settings.out / "network-1" / "checkpoint.pt").unlink()
    assert train(entry, settings, resume=True) == checkpoint
    assert (settings.out / "network-0" / "checkpoint.pt").stat().st_mtime_ns == first
    together = load_trained(entry, checkpoint)
    alone = [load_trained(entry, settings.out / f"network-{n}" / "checkpoint.pt").network for n in (0, 1)]
    hu = torch.rand(1, 1, 192, 192) * 1000 - 1000
    with torch.inference_mode():
        one, other = (network(hu) for network in alone)
        torch.testing.assert_close(together.network(hu), (one + other) / 2)
    assert not torch.equal(one, other)
    assert together.entry.asked_sizes == (160, 192, 224)


def test_a_part_is_left_out_of_training(pictures: Path, tmp_path: Path) -> None:
    settings = TrainSettings(out=tmp_path / "run", data=(pictures,), fold=(1, 5))
    recipe = LesionsRecipe(MODELS["lesions"], settings)
    recipe.prepare()
    (pool,) = recipe._mixture.pools
    assert (len(pool), len(recipe._validation)) == (8, 2)
    seen = {slice_.tobytes() for slice_ in pool.hu}
    assert not seen & {slice_.tobytes() for slice_ in recipe._validation.hu}
    assert inside([str(n) for n in range(10)], (1, 5)).sum() == 2


def test_pictures_are_of_lesions_only(pictures: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["train", "lungs", "--data", str(pictures), "--out", str(tmp_path), "--steps", "1"]
    )
    assert result.exit_code == 1
    assert "none for lungs" in result.output


def test_a_checkpoint_and_its_export_answer_alike(pictures: Path, tmp_path: Path) -> None:
    entry = MODELS["lesions"]
    checkpoint = train(entry, TrainSettings(out=tmp_path / "run", data=(pictures,), steps=1, bf16=False))
    trained = load_trained(entry, checkpoint)
    export_onnx(trained.entry, trained.network, tmp_path / "model.onnx")
    hu = np.random.default_rng(0).integers(-1000, 200, (2, 64, 72)).astype(np.int16)
    ours, theirs = (predictor_for(entry, path)({"HU": hu}) for path in (checkpoint, tmp_path / "model.onnx"))
    assert np.abs(ours["PROBABILITIES"].astype(int) - theirs["PROBABILITIES"]).max() <= 1
