"""Slice classifiers whose features are pooled over the lungs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from triton_models.architectures.backbones import (
    Body,
    ResNet34,
    SmallDenseNet,
    SmallXception,
)
from triton_models.architectures.lung_pooled import (
    LUNGS,
    MASKS,
    LungPooled,
    PneumoniaNet,
    RootLinear,
    SmallFusion,
    StandardisedLinear,
)
from triton_models.crossvalidate import cross_validate
from triton_models.data.grey import GREY_HU
from triton_models.data.labelled_2d import UNTYPED
from triton_models.data.pneumonia_slices import PATTERNS, class_of, slices_of
from triton_models.data.slices import IGNORE
from triton_models.data.teaching import SIZE, Teaching, taught_pictures
from triton_models.export import export_onnx
from triton_models.registry import MODELS
from triton_models.served.base import build_served
from triton_models.served.classification import lung_window
from triton_models.training.linear_head import fit_linear_head
from triton_models.training.loop import load_trained
from triton_models.training.recipes.lung_pooled import teaching_loss
from triton_models.training.recipes.small_fusion import SmallFusionRecipe
from triton_models.training.settings import TrainSettings

BODIES = (ResNet34, SmallDenseNet, SmallXception)
NARROW = (16, 32, 64, 128)


@pytest.mark.parametrize("kind", BODIES)
def test_stages_have_the_strides_and_channels_they_say(kind: Callable[[], Body]) -> None:
    body = kind().eval()
    with torch.inference_mode():
        maps = body(torch.rand(2, 1, 64, 64))
    assert [tuple(one.shape) for one in maps] == [
        (2, count, 64 // stride, 64 // stride)
        for count, stride in zip(body.channels, (4, 8, 16, 32), strict=True)
    ]


def test_resnet_34_has_its_16_blocks_of_two_convolutions() -> None:
    body = ResNet34()
    assert [len(stage) for stage in body.stages if isinstance(stage, torch.nn.Sequential)] == [3, 4, 6, 3]
    inner = [module for module in body.stages.modules() if isinstance(module, torch.nn.Conv2d)]
    assert sum(module.kernel_size == (3, 3) for module in inner) == 32


def _features_where(found: torch.Tensor, maps: list[torch.Tensor]) -> torch.Tensor:
    """The features of a body's maps, where its decoder answers ``found`` (n, masks, rows, columns)."""
    pooled = LungPooled(ResNet34(NARROW)).eval()
    decoded = patch.object(pooled, "masks", return_value=found)
    seen = patch.object(pooled.body, "forward", return_value=maps)
    with decoded, seen:
        return pooled.features(torch.zeros(1, 1, 128, 128))[0]


def _maps() -> list[torch.Tensor]:
    return [torch.rand(1, c, 32 >> level, 32 >> level) for level, c in enumerate(NARROW)]


def _found(**columns: slice) -> torch.Tensor:
    """Logits that are certain: each mask in these columns and nowhere else."""
    logits = torch.full((1, len(MASKS), 32, 32), -30.0)
    for name, where in columns.items():
        logits[:, MASKS.index(name), :, where] = 30.0
    return logits


def test_what_is_outside_of_the_lungs_does_not_count() -> None:
    found, maps = _found(lungs=slice(0, 16)), _maps()
    changed = [one.clone() for one in maps]
    for one in changed:
        one[..., one.shape[-1] // 2 :] += 1.0
    features = _features_where(found, maps)
    assert torch.allclose(features, _features_where(found, changed), atol=0.02)
    means = features[: maps[1].shape[1]]
    assert torch.allclose(means, maps[1][0, :, :, :8].mean(dim=(1, 2)), atol=0.01)


def test_lesions_are_averaged_by_themselves_and_lungs_without_any_stand_for_them() -> None:
    maps = _maps()
    of_lungs, of_lesions = _features_where(_found(lungs=slice(0, 16), lesion=slice(0, 8)), maps).chunk(2)
    channels = maps[1].shape[1]
    assert torch.allclose(of_lungs[:channels], maps[1][0, :, :, :8].mean(dim=(1, 2)), atol=0.01)
    assert torch.allclose(of_lesions[:channels], maps[1][0, :, :, :4].mean(dim=(1, 2)), atol=0.01)
    of_lungs, of_lesions = _features_where(_found(lungs=slice(0, 16)), maps).chunk(2)
    assert torch.allclose(of_lungs, of_lesions, atol=1e-4)


@pytest.mark.parametrize("network", [PneumoniaNet, SmallFusion])
def test_a_slice_and_its_mirror_image_are_one_to_it(network: type[PneumoniaNet]) -> None:
    torch.manual_seed(1)
    classifier = network(2, 64).eval()
    x = torch.rand(3, 1, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(classifier(x), classifier(x.flip(-1)), atol=1e-4)


def test_features_are_averaged_over_the_sizes_that_are_asked() -> None:
    torch.manual_seed(1)
    classifier = SmallFusion(2, 96).eval()
    hu = torch.randint(-1100, 300, (2, 150, 120), dtype=torch.int16)
    served = build_served(replace(MODELS["fusion"], network_size=96, asked_sizes=(64, 96)), classifier).eval()
    with torch.inference_mode():
        features = [classifier.features(lung_window(hu, size)) for size in (64, 96)]
        expected = torch.softmax(classifier.head((features[0] + features[1]) / 2), dim=1)
        assert torch.allclose(served(hu), expected, atol=1e-6)


def test_window_is_resized_like_antialiased_bilinear() -> None:
    hu = torch.randint(-1400, 900, (2, 331, 180), dtype=torch.int16)
    grey = ((hu.float() - GREY_HU[0]) / (GREY_HU[1] - GREY_HU[0])).clamp(0, 1)[:, None]
    expected = functional.interpolate(grey, size=(224, 224), mode="bilinear", antialias=True)
    assert torch.allclose(lung_window(hu, 224) / 3.0 + 0.5, expected, atol=1e-5)


def test_linear_head_finds_the_one_minimum() -> None:
    rng = torch.Generator().manual_seed(3)
    labels = torch.arange(120) % 3
    features = torch.randn(120, 8, generator=rng) * 4 + 100
    features[:, :3] += 8 * functional.one_hot(labels, 3)
    answers = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        head = StandardisedLinear(8, 3)
        fit_linear_head(head, features, labels, decay=0.01)
        answers.append(head(features))
    first, second = answers
    assert torch.allclose(first, second, atol=1e-3)
    assert (answers[0].argmax(1) == labels).float().mean() > 0.8


def test_linear_head_gives_rare_classes_their_weight() -> None:
    labels = (torch.arange(100) < 5).long()
    head = StandardisedLinear(2, 2)
    fit_linear_head(head, torch.randn(100, 2) * 1e-3, labels, decay=10.0)
    probability = torch.softmax(head(torch.zeros(1, 2)), 1)
    assert probability[0, 1].item() == pytest.approx(0.5, abs=0.05)


def test_linear_head_of_roots_is_one_of_features_that_are_roots_already() -> None:
    rng = torch.Generator().manual_seed(4)
    labels = torch.arange(60) % 2
    roots = torch.randn(60, 5, generator=rng) + labels[:, None]
    plain, of_roots = StandardisedLinear(5, 2), RootLinear(5, 2)
    fit_linear_head(plain, roots, labels, decay=0.1)
    features = roots.sign() * roots.square()
    fit_linear_head(of_roots, features, labels, decay=0.1)
    torch.testing.assert_close(of_roots(features), plain(roots), atol=1e-4, rtol=1e-4)


def test_linear_head_counts_a_weighted_row_as_often() -> None:
    rng = torch.Generator().manual_seed(5)
    labels = torch.arange(40) % 2
    features = torch.randn(40, 3, generator=rng) + labels[:, None]
    repeats = torch.tensor([1, 1, 3, 3] * 10)
    weighted, repeated = StandardisedLinear(3, 2), StandardisedLinear(3, 2)
    fit_linear_head(
        repeated, features.repeat_interleave(repeats, 0), labels.repeat_interleave(repeats), decay=0.0
    )
    fit_linear_head(weighted, features, labels, decay=0.0, weights=repeats)
    torch.testing.assert_close(weighted(features), repeated(features), atol=1e-3, rtol=1e-3)


def test_pictures_of_a_source_with_many_count_less(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Picture:
        group: str
        label: str = "positive"

        def hu(self) -> NDArray[np.int16]:
            raise NotImplementedError

    recipe = SmallFusionRecipe(MODELS["fusion"], TrainSettings(data=(), out=tmp_path))
    pictures = [Picture("paper"), Picture("alone"), *[Picture("paper")] * 3]
    assert recipe.weights(pictures).tolist() == [0.5, 1.0, 0.5, 0.5, 0.5]


def test_a_checkpoint_of_another_version_is_named(tmp_path: Path) -> None:
    entry = MODELS["fusion"]
    average = AveragedModel(SmallFusion(2, 224), use_buffers=True).state_dict()
    del average["module.head.exponent"]
    path = tmp_path / "old.pt"
    torch.save({"model": "fusion", "variant": "main", "classes": ["a", "b"], "average": average}, path)
    with pytest.raises(
        ValueError, match=r"old\.pt: holds no network of this version's fusion.*head\.exponent"
    ):
        load_trained(entry, path)


def test_masks_that_are_unknown_teach_nothing() -> None:
    logits = torch.randn(2, 3, 8, 8)
    masks = torch.randint(0, 2, (2, 3, 8, 8), dtype=torch.uint8)
    masks[:, LUNGS] = IGNORE
    changed = logits.clone()
    changed[:, LUNGS] += 50.0
    assert torch.isclose(teaching_loss(logits, masks), teaching_loss(changed, masks))


def test_slices_of_a_class_show_it() -> None:
    seeds = {class_of(seed): seed for seed in (60000, 60001, 60002)}
    assert set(seeds) == set(PATTERNS)
    for label, seed in seeds.items():
        slices = slices_of(seed)
        assert {one.label for one in slices} <= {label}
        assert {one.group for one in slices} <= {f"phantom {seed}"}


def _write_pictures(folder: Path, *, typed: bool) -> None:
    for part in ("Imgs", "GT"):
        (folder / "binary" / part).mkdir(parents=True)
    (folder / "multiclass").mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        labels = np.zeros((120, 90), dtype=np.uint8)
        labels[30:60, 20:40] = 1 + number % 2
        grey = rng.integers(60, 200, labels.shape).astype(np.uint8)
        Image.fromarray(grey).save(folder / "binary" / "Imgs" / f"{number}.png")
        Image.fromarray((labels > 0).astype(np.uint8) * 255).save(folder / "binary" / "GT" / f"{number}.png")
        if typed:
            Image.fromarray(labels).save(folder / "multiclass" / f"{number}.png")


@pytest.mark.parametrize("typed", [True, False])
def test_pictures_teach_what_they_know(tmp_path: Path, typed: bool) -> None:
    _write_pictures(tmp_path, typed=typed)
    pictures = taught_pictures(tmp_path)
    assert pictures.hu.shape == (3, SIZE, SIZE)
    assert (pictures.masks[:, LUNGS] == IGNORE).all()
    assert set(np.unique(pictures.masks[:, 1])) == {0, 1}
    assert (IGNORE in pictures.masks[:, 2]) is not typed
    assert UNTYPED not in pictures.masks


def test_a_batch_of_teaching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton_models.data.teaching.SEEDS", range(62000, 62003))
    _write_pictures(tmp_path / "pictures", typed=True)
    teaching = Teaching(pictures=[tmp_path / "pictures"], cache=tmp_path / "cache")
    batches = [
        teaching.draw(6, 96, np.random.default_rng(1), torch.Generator().manual_seed(1)) for _ in range(2)
    ]
    windows, masks = batches[0]
    assert windows.shape == (6, 1, 96, 96)
    assert masks.shape == (6, len(MASKS), 24, 24)
    assert set(masks.flatten().tolist()) <= {0, 1, IGNORE}
    assert torch.equal(windows, batches[1][0]), "the same random numbers, the same batch"


def test_cross_validation_teaches_once_and_fits_each_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triton_models.data.teaching.SEEDS", range(62000, 62003))
    monkeypatch.setattr("triton_models.training.recipes.lung_pooled.BATCH_SIZE", 2)
    folder = tmp_path / "list"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["file,class,original_file"]
    for number in range(12):
        bright = number % 2 == 0
        grey = np.clip(rng.normal(150 if bright else 60, 20, (80, 96)), 0, 255).astype(np.uint8)
        Image.fromarray(grey).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{'ill' if bright else 'well'},paper{number // 2}-p1-{number}.png")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    settings = TrainSettings(
        out=tmp_path / "run", data=(folder,), cache=tmp_path / "cache", steps=1, bf16=False
    )
    result = cross_validate(MODELS["pneumonia_class"], settings, parts=3)
    assert result.n == 12
    assert set(result.metrics) == {"ill", "well", "all"}
    assert result.metrics["all"]["accuracy"].value == 1.0
    heads = {
        tuple(torch.load(path, weights_only=True)["average"]["module.head.linear.bias"].tolist())
        for path in tmp_path.glob("run/[0-9]/checkpoint.pt")
    }
    assert len(heads) == 3, "each part has a head of its own"
    bodies = [
        torch.load(path, weights_only=True)["average"]["module.pooled.0.head.weight"]
        for path in tmp_path.glob("run/*/checkpoint.pt")
    ]
    assert len(bodies) == 4
    assert all(torch.equal(bodies[0], body) for body in bodies), "and all have the same body"


def test_large_weights_are_stored_in_half_precision(tmp_path: Path) -> None:
    entry = MODELS["pneumonia_class"]
    assert entry.half_weights
    export_onnx(entry, PneumoniaNet(3, entry.network_size).eval(), tmp_path / "model.onnx")
    weights = onnx.load(tmp_path / "model.onnx").graph.initializer
    halves = [w for w in weights if w.data_type == onnx.TensorProto.FLOAT16]
    assert sum(numpy_helper.to_array(w).size for w in halves) > 2_900_000
    assert (tmp_path / "model.onnx").stat().st_size < 8_000_000
