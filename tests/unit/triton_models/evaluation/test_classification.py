"""Classifiers are measured on listed pictures and on a model's own phantoms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triton_models.evaluation.classification import ClassifiedCases, collect, compare
from triton_models.evaluation.evaluate import evaluate
from triton_models.evaluation.predictor import Arrays
from triton_models.evaluation.source import Source
from triton_models.registry import MODELS, TensorSpec

ENTRY = replace(
    MODELS["infection_type"],
    name="brightness",
    inputs=(TensorSpec("HU", "TYPE_INT16", (-1, -1)),),
    classes=("bright", "dark"),
)


class ByBrightness:
    """Bright if the picture's mean HU is above -400."""

    weights_sha256 = "00"
    classes: tuple[str, ...] = ("bright", "dark")

    def __call__(self, inputs: Arrays) -> Arrays:
        mean = inputs["HU"].mean(axis=(1, 2))
        bright = 1.0 / (1.0 + np.exp(-(mean + 400.0) / 100.0))
        return {"PROBABILITIES": np.stack([bright, 1.0 - bright], axis=1).astype(np.float32)}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rows = ["file,class,split,original_file"]
    for number, (grey, name, split) in enumerate(
        [(220, "bright", "val"), (30, "dark", "val"), (40, "bright", "val"), (10, "dark", "train")]
    ):
        size = (20 + number, 30)
        Image.fromarray(np.full(size, grey, dtype=np.uint8)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{name},{split},paper{number}-p1-2.png")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_listed_pictures_of_any_size(pictures: Path) -> None:
    result = evaluate(ENTRY, ByBrightness(), Source(data=pictures))
    assert result.n == 3  # none of the training split
    assert result.metrics["all"]["accuracy"].value == pytest.approx(2 / 3)
    assert result.metrics["bright"]["recall"].value == pytest.approx(0.5)
    assert result.metrics["dark"]["precision"].value == pytest.approx(0.5)
    assert evaluate(ENTRY, ByBrightness(), Source(data=pictures, split="train")).n == 1
    with pytest.raises(ValueError, match="no picture of split 'test'"):
        evaluate(ENTRY, ByBrightness(), Source(data=pictures, split="test"))


def test_classes_must_be_the_models(pictures: Path) -> None:
    other = ByBrightness()
    other.classes = ("bright", "dim")
    with pytest.raises(ValueError, match=r"classes \['dark'\] aren't the model's"):
        collect(ENTRY, other, Source(data=pictures))


def test_what_cannot_be_measured_is_said(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no test phantoms"):
        collect(ENTRY, ByBrightness(), Source())
    with pytest.raises(ValueError, match="more than pictures"):
        collect(MODELS["infection_type"], ByBrightness(), Source(data=pictures))
    with pytest.raises(FileNotFoundError):
        collect(ENTRY, ByBrightness(), Source(data=tmp_path / "nowhere"))


def test_phantoms_of_infection_type() -> None:
    class ByDistance:
        weights_sha256 = "00"
        classes = MODELS["infection_type"].classes

        def __call__(self, inputs: Arrays) -> Arrays:
            assert inputs["HU"].shape[1:] == (64, 64)
            near = np.exp(-inputs["DISTANCE"] / 0.05)
            return {"PROBABILITIES": np.concatenate([near, 1 - near, 0 * near], axis=1)}

    cases = collect(MODELS["infection_type"], ByDistance(), Source(phantoms=2))
    assert len(set(cases.groups)) == 2
    assert set(cases.metrics()) == {"covid19", "iavp", "irrelevant", "all"}


def test_joined_and_compared() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 30)
    groups = tuple(str(i // 3) for i in range(30))
    good = ClassifiedCases(("a", "b"), np.eye(2, dtype=np.float32)[truth], truth, groups)
    bad = replace(good, probabilities=good.probabilities[:, ::-1])
    assert len(good.joined([bad])) == 60
    assert good.less(bad)["all"]["accuracy"].value == 1.0
    assert good.less(good)["all"]["accuracy"].low == 0.0
    with pytest.raises(ValueError, match="the same cases"):
        good.less(replace(good, groups=groups[::-1]))
    with pytest.raises(ValueError, match="classes differ"):
        good.joined([replace(good, classes=("b", "a"))])


def test_compare_on_pictures(pictures: Path) -> None:
    class Always(ByBrightness):
        weights_sha256 = "11"

        def __call__(self, inputs: Arrays) -> Arrays:
            return {"PROBABILITIES": np.tile(np.array([0.9, 0.1], np.float32), (len(inputs["HU"]), 1))}

    result = compare(ENTRY, (ByBrightness(), Always()), Source(data=pictures))
    assert json.loads(result.to_json())["less"] == "11"
    assert result.metrics["all"]["accuracy"].value == pytest.approx(0.0)  # both are right in 2 of 3
    assert result.metrics["dark"]["recall"].value == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no classifier"):
        compare(MODELS["lungs"], (Always(), Always()), Source(data=pictures))
