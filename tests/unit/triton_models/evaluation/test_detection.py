"""Detectors, measured against phantoms, labelled pictures and a series with a mask."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from triton_models.cli import app
from triton_models.data.boxes import components
from triton_models.data.dicom_folder import read_folder
from triton_models.data.phantom import Phantom, chest_phantom
from triton_models.evaluation.detection import collect, found_in
from triton_models.evaluation.evaluate import evaluate
from triton_models.evaluation.froc import RATES
from triton_models.evaluation.predictor import Arrays
from triton_models.evaluation.source import Source
from triton_models.registry import MODELS, ModelEntry, weights_sha256

#: which labels an image's pixels have
Lesion = Callable[[NDArray[np.int16]], NDArray[np.uint8] | NDArray[np.int16]]
VOLUMES, SLICES = MODELS["candidates"], MODELS["lesion_boxes"]


class Oracle:
    """Answers with the boxes of what it is told to be lesion, and with one that is wrong."""

    weights_sha256 = "00"
    classes: tuple[str, ...] = ("ground_glass", "consolidation")

    def __init__(self, model: ModelEntry, lesion: Lesion) -> None:
        self.model, self.lesion = model, lesion

    def __call__(self, inputs: Arrays) -> Arrays:
        (image,) = inputs["HU"]
        found = components(self.lesion(image), (1.0,) * image.ndim)
        count, sides = self.model.outputs[0].dims
        boxes, scores = np.zeros((1, count, sides), np.float32), np.zeros((1, count), np.float32)
        kept = min(len(found), count - 1)
        boxes[0, :kept], scores[0, :kept] = found.boxes[:kept], 0.9
        boxes[0, kept] = [0] * (sides // 2) + [1] * (sides // 2)
        scores[0, kept] = 0.8
        types = np.tile(np.array([0.25, 0.75], np.float32), (1, count, 1))
        answer = {"BOXES": boxes, "SCORES": scores}
        return answer | ({"TYPES": types} if len(self.model.outputs) == 3 else {})


def test_a_volume_is_a_case(small_phantom: Phantom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton_models.evaluation.detection.volume_phantom", lambda seed: small_phantom)
    cases = collect(VOLUMES, Oracle(VOLUMES, lambda _: small_phantom.lesions), Source(phantoms=2))
    truths = int(components(small_phantom.lesions, small_phantom.spacing_mm).counts.sum())
    assert (len(cases), cases.unit) == (2, "scan")
    assert [one.truths for one in cases.found["lesion"]] == [truths, truths]
    lesion = cases.metrics()["lesion"]
    assert lesion["sensitivity_at_8"].value > 0.9
    assert lesion["false_positives_per_scan"].value >= 1.0
    assert len(cases.joined([cases])) == 4


def test_classes_are_measured_by_themselves() -> None:
    lesions = np.zeros((100, 100), np.uint8)
    lesions[10:30, 10:30] = 1
    lesions[60:80, 60:80] = 2
    truth = components(lesions, (1.0, 1.0))
    found = found_in(SLICES, Oracle(SLICES, lambda _: lesions), np.zeros((100, 100), np.int16), truth)
    assert {name: one.truths for name, one in found.items()} == {
        "lesion": 2,
        "ground_glass": 1,
        "consolidation": 1,
    }
    assert found["lesion"].hits.sum() == 2
    assert found["consolidation"].scores.max() == pytest.approx(0.9 * 0.75)


def test_pictures_are_cases_of_a_slice_detector(tmp_path: Path) -> None:
    for folder in ("Imgs", "GT"):
        (tmp_path / folder).mkdir()
    for number in (1, 2):
        mask = np.zeros((200, 250), np.uint8)
        mask[50:90, 60:120] = 255
        Image.fromarray(np.full((200, 250), 90, np.uint8)).save(tmp_path / "Imgs" / f"{number}.jpg")
        Image.fromarray(mask).save(tmp_path / "GT" / f"{number}.png")

    def lesion(_image: NDArray[np.int16]) -> NDArray[np.uint8]:
        return np.pad(np.ones((40, 60), np.uint8), ((50, 110), (60, 130)))

    report = evaluate(SLICES, Oracle(SLICES, lesion), Source(tmp_path))
    assert report.n == 2
    assert report.metrics["lesion"]["sensitivity"].value == 1.0
    assert report.metrics["lesion"]["false_positives_per_slice"].value == 1.0
    with pytest.raises(ValueError, match="needs a series with a mask"):
        evaluate(VOLUMES, Oracle(VOLUMES, lesion), Source(tmp_path))


def test_a_mask_gives_the_boxes_of_a_series(shared_ct: Path, tmp_path: Path) -> None:
    folder = shared_ct / "lungdx_a0002_siemens_b40f"
    (series,) = read_folder(folder)
    labels = np.zeros(series.hu.shape, np.uint8)
    labels[10:14, 200:260, 150:200] = 1
    labels[20:22, 300:330, 150:180] = 10  # another organ's
    image = sitk.GetImageFromArray(labels)
    image.SetOrigin([float(v) for v in series.affine[:3, 3]])
    image.SetSpacing([float(v) for v in series.spacing_mm[::-1]])
    image.SetDirection(
        [float(v) for v in (series.affine[:3, :3] / np.asarray(series.spacing_mm))[:, ::-1].ravel()]
    )
    sitk.WriteImage(image, str(tmp_path / "mask.nii.gz"))
    cases = collect(
        VOLUMES,
        Oracle(VOLUMES, lambda _: (labels == 1).astype(np.uint8)),
        Source(folder, tmp_path / "mask.nii.gz"),
    )
    (found,) = cases.found["lesion"]
    assert (found.truths, found.hits.tolist()) == (1, [True, False])
    with pytest.raises(ValueError, match="--mask must name its labels"):
        collect(VOLUMES, Oracle(VOLUMES, lambda _: labels), Source(folder))


@pytest.mark.parametrize(("entry", "sensitivity"), [(VOLUMES, 0.8), (SLICES, 0.6)], ids=("volumes", "slices"))
def test_the_shipped_detectors_find_lesions_of_test_phantoms(
    entry: ModelEntry, sensitivity: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(seed: int, slices: int = 30) -> Phantom:
        return chest_phantom(seed, slices=min(slices, 30), rows=256, columns=256)

    monkeypatch.setattr("triton_models.evaluation.detection.volume_phantom", small)
    monkeypatch.setattr("triton_models.evaluation.detection.chest_phantom", small)
    result = CliRunner().invoke(app, ["evaluate", entry.name, "--phantoms", "4", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert report["weights_sha256"] == weights_sha256(entry)
    lesion = report["metrics"]["lesion"]
    assert {f"sensitivity_at_{rate:g}" for rate in RATES} < set(lesion)
    assert lesion["sensitivity_at_8"]["value"] >= sensitivity
