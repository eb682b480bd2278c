"""A run after a late instance names what it supersedes, and can reject it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread

from pipelines import results
from pipelines.encoding import Encoding
from pipelines.process import process
from pipelines.request import NoResult, Request
from pipelines.results.superseding import read_superseded, reports_of
from pipelines.summary import objects_for
from tests.unit.pipelines.examples import ByRule
from tests.unit.pipelines.results.synthetic import chest
from tests.unit.pipelines.test_process import boxes, healed, thresholds, types, write

LABELMAP, FRACTIONAL = Encoding("labelmap"), Encoding("fractional", "include")


def rule(hu: NDArray[np.int16]) -> dict[str, NDArray[Any]]:
    answer = thresholds(hu)
    certain = np.stack([answer["LABELS"] == kind for kind in (1, 2)], axis=1).astype(np.uint8)
    return {**answer, "PROBABILITIES": certain * 180}


def run(request: Request) -> dict[str, Any]:
    request.out.mkdir(parents=True)
    return process(request, ByRule(rule, candidates=boxes, infection_type=types, inpaint=healed))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Request, Request]:
    """The same series before and after its last slice came."""
    folder = tmp_path_factory.mktemp("runs")
    paths = write(chest()[0], folder / "series")
    first = Request(
        pipeline="chest_ct_pneumonia",
        paths=paths[:-1],
        out=folder / "first",
        software_version="9.9.9",
        content_datetime=datetime(2026, 11, 20, 12, tzinfo=UTC),
        encodings=(LABELMAP.name, FRACTIONAL.name),
    )
    late = replace(first, paths=paths, out=folder / "late", predecessor=first.out, reject=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "render_rotation", lambda *_, **__: np.zeros((2, 16, 16, 3), np.uint8))
        for request in (first, late):
            run(request)
    return first, late


def summary_of(request: Request) -> dict[str, Any]:

    summary: dict[str, Any] = json.loads((request.out / "summary.json").read_text())
    return summary


@pytest.mark.parametrize("encoding", [Encoding(), LABELMAP, FRACTIONAL], ids=lambda one: one.name)
def test_each_report_names_the_one_that_the_destination_got_before(
    runs: tuple[Request, Request], encoding: Encoding
) -> None:
    before, after = (
        dcmread(request.out / objects_for(summary_of(request), encoding)[1]["path"]) for request in runs
    )
    assert "PredecessorDocumentsSequence" not in before
    series = after.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == before.SeriesInstanceUID == after.SeriesInstanceUID
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == before.SOPInstanceUID
    assert (before.InstanceNumber, after.InstanceNumber) == (1, 2)


@pytest.mark.parametrize("encoding", [Encoding(), LABELMAP], ids=lambda one: one.name)
def test_the_rejection_note_lists_what_the_destination_got_before(
    runs: tuple[Request, Request], encoding: Encoding
) -> None:
    first, late = (summary_of(request) for request in runs)
    assert first["rejections"] == {}
    note = dcmread(runs[1].out / late["rejections"][encoding.name]["path"])
    title = note.ConceptNameCodeSequence[0]
    assert (title.CodeValue, title.CodingSchemeDesignator) == ("113001", "DCM")
    before = [one["sop_instance_uid"] for one in objects_for(first, encoding)]
    (study,) = note.CurrentRequestedProcedureEvidenceSequence
    series = study.ReferencedSeriesSequence
    listed = [item.ReferencedSOPInstanceUID for one in series for item in one.ReferencedSOPSequence]
    assert sorted(listed) == sorted(before)
    items = [item for item in note.ContentSequence if "ReferencedSOPSequence" in item]
    references = [item.ReferencedSOPSequence[0] for item in items]
    assert [one.ReferencedSOPInstanceUID for one in references] == before
    assert not set(before) & {one["sop_instance_uid"] for one in objects_for(late, encoding)}


def test_a_fractional_segmentation_has_what_the_model_says(runs: tuple[Request, Request]) -> None:
    segmentation = dcmread(runs[1].out / f"segmentation{FRACTIONAL.suffix}.dcm")
    assert set(np.unique(segmentation.pixel_array)) == {0, 180, 255}


def test_a_run_again_supersedes_with_the_same_bytes(runs: tuple[Request, Request], tmp_path: Path) -> None:
    again = replace(runs[1], out=tmp_path / "again")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "render_rotation", lambda *_, **__: np.zeros((2, 16, 16, 3), np.uint8))
        run(again)
    files = sorted(path.name for path in runs[1].out.glob("*.dcm"))
    assert len(files) == 5 + 2 * 2 + 3  # the set, two objects of two encodings, a note for each encoding
    for name in files:
        assert (again.out / name).read_bytes() == (runs[1].out / name).read_bytes(), name


def test_a_set_that_is_gone_or_says_only_why_has_no_report(
    runs: tuple[Request, Request], tmp_path: Path
) -> None:
    assert read_superseded(tmp_path / "gone", [LABELMAP]) == {Encoding(): (), LABELMAP: ()}
    reason = NoResult("no_lungs", "no lung was found", "report")
    why = replace(runs[0], out=tmp_path / "why", encodings=(), no_result=reason)
    assert run(why)["no_result"] == {"code": "no_lungs", "reason": "no lung was found"}
    (objects,) = read_superseded(why.out, []).values()
    assert [one.role for one in objects] == ["no_result"]
    assert reports_of(objects) == ()
