"""How much memory a study takes beside its HU, in bytes a voxel: of lungs that are full of lesions, stored in
any orientation."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.chest_ct_pneumonia import PIPELINE
from pipelines.encoding import Encoding, SegmentationType
from pipelines.geometry import AxialView
from pipelines.infection import CLASSES
from pipelines.pipeline import Stages
from pipelines.results.report import build_report
from pipelines.results.result_set import ResultSet, write_result_set
from pipelines.results.segmentation import build_segmentation
from pipelines.triton import Arrays
from pipelines.volume import Findings, Lesion, Volume
from tests.unit.pipelines.examples import ByRule
from tests.unit.pipelines.results.synthetic import affine_for, chest, context, headers

SHAPE = (120, 256, 256)
#: lungs, lesions and regions have a byte each; for a while the lungs' mask and components of lesions, too
ANALYSIS_BYTES = 4.6
#: beside them, the segmentation has a bit a segment; a label map a byte, once more while it is deflated
RESULTS_BYTES: dict[SegmentationType, float] = {"binary": 0.95, "labelmap": 2.0}


@pytest.fixture(params=["axial", "prone_flipped", "coronal", "sagittal"])
def scene(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Volume, ByRule]:
    """A volume, and an inference that knows its lungs and lesions and makes nothing large."""
    for name, small in (
        ("pipelines.candidates.PROPOSAL_PIXELS", 64),
        ("pipelines.candidates.PROPOSAL_SLICES", 16),
        ("pipelines.results.sequences.COPIED_BYTES", 2**20),
    ):  # beside this volume as small as what they are is beside one of 600 slices of 512 pixels
        monkeypatch.setattr(name, small)
    affine = affine_for(request.param, SHAPE, (0.7, 0.7, 0.7))
    hu = np.full(SHAPE, 40, np.int16)
    volume = Volume(hu, affine, headers(affine, SHAPE), tuple((k, 1) for k in range(SHAPE[0])))
    view = AxialView.of(affine)
    axial = view.view(hu)
    mask, labels = np.zeros(axial.shape, np.uint8), np.zeros(axial.shape, np.uint8)
    size = np.array(axial.shape)
    for side in (0.3, 0.7):
        low, high = (size * (0.1, 0.2, side - 0.15)).astype(int), (size * (0.9, 0.8, side + 0.15)).astype(int)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        axial[box], mask[box] = -850, 1
        dense = tuple(slice(a + 4, b - 4) for a, b in zip(low, high, strict=True))
        axial[dense], labels[dense] = -550, Lesion.GROUND_GLASS

    def lungs(_inputs: Arrays) -> dict[str, NDArray[Any]]:
        return {"LUNGS": mask.copy()}

    def lesions(inputs: Arrays) -> dict[str, NDArray[Any]]:
        first = next(n for n, plane in enumerate(mask) if plane.any())
        return {"LABELS": labels[first : first + len(inputs["HU"])]}

    def candidates(inputs: Arrays) -> dict[str, NDArray[Any]]:
        slices, rows, columns = inputs["HU"].shape[1:]
        halves = [(0, 0, 0, slices, rows, columns / 2), (0, 0, columns / 2, slices, rows, columns)]
        return {"BOXES": np.array([halves], np.float32), "SCORES": np.ones((1, 2), np.float32)}

    def infection_type(inputs: Arrays) -> dict[str, NDArray[Any]]:
        first = np.zeros(len(inputs["HU"]), np.intp)
        return {"PROBABILITIES": np.eye(len(CLASSES), dtype=np.float32)[first]}

    inference = ByRule(
        lambda hu: {"INPAINTED": hu},
        lungs=lungs,
        lesions=lesions,
        candidates=candidates,
        infection_type=infection_type,
    )
    return volume, inference


@contextmanager
def at_most(bytes_a_voxel: float) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / np.prod(SHAPE) < bytes_a_voxel


def test_a_study_takes_a_few_bytes_a_voxel(scene: tuple[Volume, ByRule], tmp_path: Path) -> None:
    volume, inference = scene
    models = {spec.name: inference.check(spec) for spec in PIPELINE.models}
    with at_most(ANALYSIS_BYTES):
        findings = PIPELINE.analyse(volume, inference, models, Stages())
    assert len(findings.regions) == 2
    assert np.count_nonzero(findings.region_labels) > 0.15 * np.prod(SHAPE)
    for kind, most in RESULTS_BYTES.items():
        write_results(*chest(), Encoding(kind), tmp_path)  # imports, which take more
        with at_most(most):
            write_results(volume, findings, Encoding(kind), tmp_path)


def write_results(volume: Volume, findings: Findings, encoding: Encoding, folder: Path) -> None:
    segmentation = build_segmentation(volume, findings, context(), encoding)
    report = build_report(volume, findings, segmentation, context(), encoding)
    write_result_set(ResultSet((("segmentation", segmentation), ("report", report))), folder)
