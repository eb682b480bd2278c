"""Real CT through the real models: what an independent reader finds in the SEG is what the pipeline found."""

from __future__ import annotations

from pathlib import Path

import pytest
import SimpleITK as sitk

from node.triton_server import EmbeddedTriton
from pipelines.chest_ct_pneumonia import PIPELINE
from pipelines.load import dicom_files, load_series
from pipelines.pipeline import Stages
from pipelines.results.segmentation import build_segmentation
from pipelines.triton import InferenceClient
from tests.shared_data import shared
from tests.unit.pipelines.results.synthetic import context
from tests.unit.pipelines.results.test_segmentation import expected, needs_dcmqi, read_by_dcmqi, sitk_grid

pytestmark = [pytest.mark.integration, needs_dcmqi]


@pytest.mark.parametrize("folder", ["lidc0001_ge_deflated", "lungdx_a0002_siemens_b40f"])
def test_the_segmentation_is_read_back_with_a_dice_of_one(
    folder: str, triton: EmbeddedTriton, tmp_path: Path
) -> None:
    volume = load_series(dicom_files(shared(f"chest_ct/{folder}")))
    with InferenceClient(triton.url, timeout_seconds=120.0) as inference:
        models = {spec.name: inference.check(spec) for spec in PIPELINE.models}
        findings = PIPELINE.analyse(volume, inference, models, Stages())
    path = tmp_path / "segmentation.dcm"
    build_segmentation(volume, findings, context()).save_as(path, enforce_file_format=True)
    masks = {label: mask for label, mask in expected(findings).items() if mask.any()}
    read = read_by_dcmqi(path, tmp_path)
    assert set(read) == set(masks) >= {"Right lung", "Left lung"}
    reference = sitk_grid(volume)
    for label, image in read.items():
        placed = sitk.Resample(image, reference, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
        found = sitk.GetArrayFromImage(placed) > 0
        assert 2 * (found & masks[label]).sum() / (found.sum() + masks[label].sum()) == 1.0, label
