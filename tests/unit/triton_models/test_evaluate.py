"""The shipped model.onnx files, measured on held-out data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from triton_models.cli import app
from triton_models.data.dicom_folder import Series, read_folder
from triton_models.evaluation.evaluate import evaluate
from triton_models.evaluation.labelled import mask_on_series
from triton_models.evaluation.pixel_metrics import METRICS, Counts, estimates
from triton_models.evaluation.predictor import OnnxPredictor
from triton_models.evaluation.segmentation import served_labels
from triton_models.evaluation.source import Source
from triton_models.registry import MODELS, weights_sha256

LIDC, LIDC_MASK = "lidc0001_ge_deflated", "lidc0001_ge_deflated_totalseg_mask.nii.gz"


def test_lungs_of_the_held_out_patient(shared_ct: Path) -> None:
    (series,) = read_folder(shared_ct / LIDC)
    lobes = np.isin(mask_on_series(series, shared_ct / LIDC_MASK), range(10, 15))
    chosen = slice(6, None, 8)
    predicted = served_labels(MODELS["lungs"], OnnxPredictor(MODELS["lungs"]), series.hu[chosen])
    counts = Counts.of((p == 1, t) for p, t in zip(predicted, lobes[chosen], strict=True))
    assert len(counts) >= 15
    assert estimates(counts)["dice_pooled"].value >= 0.95


def test_mask_lies_on_the_lungs(shared_ct: Path) -> None:
    (series,) = read_folder(shared_ct / LIDC)
    lobes = np.isin(mask_on_series(series, shared_ct / LIDC_MASK), range(10, 15))
    assert -900 < series.hu[lobes].mean() < -750


def test_mask_of_another_place_is_refused(shared_ct: Path) -> None:
    (series,) = read_folder(shared_ct / LIDC)
    affine = series.affine.copy()
    affine[:3, 3] += 1000.0
    with pytest.raises(ValueError, match="covers less than half"):
        mask_on_series(Series(series.hu, affine, series.series_instance_uid), shared_ct / LIDC_MASK)


def test_phantom_evaluation_through_the_command_line() -> None:
    result = CliRunner().invoke(app, ["evaluate", "lungs", "--phantoms", "1", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert report["model"] == "lungs"
    assert report["weights_sha256"] == weights_sha256(MODELS["lungs"])
    assert report["n"] == 24
    assert set(report["metrics"]["lungs"]) == set(METRICS)
    dice = report["metrics"]["lungs"]["dice_pooled"]
    assert 0.9 <= dice["low"] <= dice["value"] <= dice["high"] <= 1.0


def test_lesions_of_test_phantoms_are_found() -> None:
    report = evaluate(MODELS["lesions"], OnnxPredictor(MODELS["lesions"]), Source(phantoms=2))
    assert set(report.metrics) == {"ground_glass", "consolidation", "infection"}
    assert report.metrics["infection"]["specificity"].value > 0.99
    assert report.metrics["infection"]["dice_pooled"].value > 0.5


def test_bad_input_is_explained(tmp_path: Path, shared_ct: Path) -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["evaluate", "lungs", "--data", str(tmp_path)]).exit_code == 1
    both = ["--data", str(shared_ct / LIDC), "--mask", str(tmp_path / "none.nii.gz")]
    assert runner.invoke(app, ["evaluate", "lungs", *both]).exit_code == 1
    with pytest.raises(ValueError, match="axial CT series, evaluate one"):
        evaluate(
            MODELS["lungs"],
            OnnxPredictor(MODELS["lungs"]),
            Source(shared_ct / "ny_sbu_A046441", shared_ct / LIDC_MASK),
        )
