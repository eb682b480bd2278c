"""A candidate's run and how far it agrees with the live one, of real result sets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread

from pipelines import results
from pipelines.agreement import compare
from pipelines.errors import PipelineError
from pipelines.process import process
from pipelines.request import SUMMARY, Request, Shadow
from pipelines.triton import Arrays
from tests.unit.pipelines.examples import ByRule
from tests.unit.pipelines.results.synthetic import chest
from tests.unit.pipelines.test_process import boxes, healed, thresholds, types, write


def half_blind(inputs: Arrays) -> dict[str, NDArray[Any]]:
    """Labels without the upper half of each slice."""
    labels = thresholds(inputs["HU"])["LABELS"].copy()
    labels[:, : labels.shape[1] // 2] = 0
    return {"LABELS": labels}


MODELS = ByRule(thresholds, candidates=boxes, infection_type=types, inpaint=healed, lesions_next=half_blind)


@pytest.fixture(scope="module", autouse=True)
def quick_rotation() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "render_rotation", lambda *_, **__: np.zeros((2, 16, 16, 3), np.uint8))
        yield


@pytest.fixture(
    scope="module",
    params=[(24, 48, 56), (24, 45, 53)],
    ids=["whole bytes", "a frame begins within a byte"],
)
def live(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    quick_rotation: None,
) -> Request:
    """A live run that is done."""
    volume, _ = chest(shape=request.param, spacing=(8.0, 5.6, 4.8))
    folder = tmp_path_factory.mktemp("agreement")
    out = folder / "live"
    out.mkdir()
    when = datetime(2026, 11, 20, tzinfo=UTC)
    live = Request("chest_ct_pneumonia", write(volume, folder / "series"), out, "9.9.9", when)
    process(live, MODELS)
    return live


def shadow(live: Request, **models: tuple[str, str]) -> tuple[dict[str, Any], Path]:
    """The summary and folder of a candidate's run."""
    out = live.out.with_name("candidate")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return process(replace(live, out=out, shadow=Shadow(live.out, models)), MODELS), out


def voxels(folder: Path) -> dict[str, set[tuple[str, int]]]:
    """Label without number -> (SOP Instance UID, position in its pixels), by pydicom's own decoding."""
    segmentation = dcmread(folder / "segmentation.dcm")
    labels = {item.SegmentNumber: item.SegmentLabel for item in segmentation.SegmentSequence}
    found: dict[str, set[tuple[str, int]]] = {}
    for frame, pixels in zip(
        segmentation.PerFrameFunctionalGroupsSequence, segmentation.pixel_array, strict=True
    ):
        label = labels[frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber]
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        there = {(str(source.ReferencedSOPInstanceUID), int(at)) for at in np.flatnonzero(pixels)}
        found.setdefault(label.rstrip("0123456789 "), set()).update(there)
    return found


def test_the_same_model_by_another_name_agrees_wholly(live: Request) -> None:
    summary, folder = shadow(live, lungs=("lungs_next", "2"))
    agreement = summary["agreement"]
    assert set(agreement["dice"]) >= {"Left lung", "Right lung", "Ground glass opacity", "Region"}
    assert set(agreement["dice"].values()) == {1.0}
    assert agreement["case_type"]["equal"] is True
    assert agreement["noisy_or"] and {one["difference"] for one in agreement["noisy_or"].values()} == {0.0}
    assert summary["models"]["lungs_next"] == {"version": "2", "sha256": "00"}
    assert "lungs" not in summary["models"]
    assert json.loads((folder / SUMMARY).read_text())["agreement"] == agreement
    ours = {result["sop_instance_uid"] for result in summary["results"]}
    theirs = json.loads((live.out / SUMMARY).read_text())["results"]
    assert not ours & {result["sop_instance_uid"] for result in theirs}
    algorithm = next(
        item.SegmentationAlgorithmIdentificationSequence[0]
        for item in dcmread(folder / "segmentation.dcm").SegmentSequence
        if item.SegmentLabel == "Left lung"
    )
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("lungs_next", "2")


def test_another_model_agrees_as_far_as_the_masks_do(live: Request) -> None:
    summary, folder = shadow(live, lesions=("lesions_next", "1"))
    agreement = summary["agreement"]
    ours, theirs = voxels(folder), voxels(live.out)
    assert set(agreement["dice"]) == {*ours, *theirs}
    for name, dice in agreement["dice"].items():
        a, b = ours.get(name, set()), theirs.get(name, set())
        assert dice == pytest.approx(2 * len(a & b) / (len(a) + len(b)), abs=1e-6), name
    assert min(agreement["dice"].values()) < 0.95
    live_summary = json.loads((live.out / SUMMARY).read_text())
    for name, one in agreement["noisy_or"].items():
        assert one["live"] == live_summary["noisy_or"].get(name, 0.0)
        assert one["candidate"] == summary["noisy_or"].get(name, 0.0)
        assert one["difference"] == one["candidate"] - one["live"]
    assert agreement["case_type"]["live"] == live_summary["case_type"]


def test_a_model_that_the_pipeline_has_not(live: Request) -> None:
    with pytest.raises(PipelineError, match="has no model 'kidneys' that another could") as raised:
        shadow(live, kidneys=("kidneys_next", "1"))
    assert raised.value.code == "unknown_model"


def test_sets_without_segmentations(tmp_path: Path) -> None:
    """As of triage: by what every summary has."""
    (tmp_path / SUMMARY).write_text(json.dumps({"results": [], "noisy_or": {}, "case_type": "normal"}))
    candidate = {"results": [], "noisy_or": {"viral": 0.25}, "case_type": "viral"}
    assert compare(tmp_path, tmp_path, candidate) == {
        "dice": {},
        "case_type": {"live": "normal", "candidate": "viral", "equal": False},
        "noisy_or": {"viral": {"live": 0.0, "candidate": 0.25, "difference": 0.25}},
    }
