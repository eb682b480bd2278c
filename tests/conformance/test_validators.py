"""Finished result files pass validators that this project did not write."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from pipelines import results
from pipelines.errors import RenderingUnavailable
from pipelines.render import check_rendering, render_rotation
from pipelines.results import build_result_set, write_result_set
from pipelines.results.triage import build_triage_results
from pipelines.results.validation import Validation, _find, _jars, validate
from tests.unit.pipelines.estimates import FUSION, estimates_of
from tests.unit.pipelines.results.synthetic import chest, context, without_plane

pytestmark = pytest.mark.integration

#: Warnings that stay: the private scheme is unknown to dciodvfy by nature, the other is about DICOMDIR media.
_EXPECTED_WARNINGS = ("<99PACSNODE>", "needed to build DICOMDIR")

_CASES: dict[str, dict[str, object]] = {
    "lesions": {},
    "no_lesions": {"lesions": False},
    "enhanced": {"enhanced": True},
    "tilted": {"orientation": "tilted"},
    "repaired": {},
    "sparse_header_oblique": {"orientation": "oblique"}
    | dict.fromkeys(
        (
            *("PatientBirthDate", "PatientSex", "PatientAge", "StudyID", "StudyTime", "AccessionNumber"),
            *("ReferringPhysicianName", "StudyDescription", "SeriesNumber", "BodyPartExamined"),
            *("SpecificCharacterSet", "PositionReferenceIndicator", "Manufacturer"),
        )
    ),
}


@pytest.fixture(scope="module", params=list(_CASES))
def validated(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Validation]]:
    # An ASCII name: PixelMed's validator knows only the default character repertoire
    volume, findings = chest(PatientName="Test^Anna", **_CASES[request.param])  # type: ignore[arg-type]
    if request.param == "repaired":
        volume, findings = without_plane(volume, findings, missing=11)
    predecessors = ("1.2.3.4",) if request.param == "enhanced" else ()
    with pytest.MonkeyPatch.context() as patch:
        # Java validators take a minute for 19 MB of frames; a small loop has the same attributes
        patch.setattr(results, "render_rotation", partial(render_rotation, frames=3, size=128))
        result_set = build_result_set(volume, findings, context(predecessors=predecessors))
    entries = write_result_set(result_set, tmp_path_factory.mktemp(request.param))
    return {entry.path.stem: validate(entry.path) for entry in entries}


def test_no_validator_finds_an_error(validated: dict[str, list[Validation]]) -> None:
    failed = {name: [v for v in said if not v.ok] for name, said in validated.items()}
    assert not any(failed.values()), failed


def test_there_are_no_warnings_but_the_known_ones(validated: dict[str, list[Validation]]) -> None:
    unknown = [
        (name, said.tool, message)
        for name, said_of in validated.items()
        for said in said_of
        for message in said.messages
        if not any(known in message for known in _EXPECTED_WARNINGS)
    ]
    assert not unknown


def test_what_is_installed_was_run(validated: dict[str, list[Validation]]) -> None:
    expected = {
        "segmentation": {"dciodvfy", "segimage2itkimage", "PixelMed DicomInstanceValidator"},
        "report": {"dciodvfy", "dsrdump", "tid1500reader", "PixelMed DicomSRValidator"},
        "picture": {"dciodvfy", "PixelMed DicomInstanceValidator"},
    }
    for name, tools in expected.items():
        here = {t for t in tools if (_find("java") and _jars() if t.startswith("PixelMed") else _find(t))}
        assert here | {"pydicom and highdicom"} == {v.tool for v in validated[name]}


def test_the_3d_view_is_there_where_it_can_be(validated: dict[str, list[Validation]]) -> None:
    try:
        check_rendering()
    except RenderingUnavailable:
        assert "montage" in validated
    else:
        assert "rotation" in validated


@pytest.mark.parametrize("case", [{"fusion": FUSION}, {"enhanced": True, "orientation": "oblique"}])
def test_triage_passes_without_unknown_warnings(case: dict[str, object], tmp_path: Path) -> None:
    volume, estimates = estimates_of(PatientName="Test^Anna", notes=("a note",), **case)  # type: ignore[arg-type]
    models = (*context().models[:1], *(one.model for one in estimates.by_model))
    made_by = context(pipeline="chest_ct_triage", models=models)
    for entry in write_result_set(build_triage_results(volume, estimates, made_by), tmp_path):
        for said in validate(entry.path):
            assert said.ok, said
            assert all(any(known in line for known in _EXPECTED_WARNINGS) for line in said.messages), said


def test_dicom_of_others_passes_too() -> None:
    """The front end itself, on objects that QIICR and highdicom made."""
    reference = Path(__file__).parents[2] / "../shared/data/reference_objects/highdicom"
    files = [p for p in sorted(reference.glob("*.dcm")) if p.is_file()]
    if not files:
        pytest.skip("the shared reference objects aren't beside this checkout")
    for path in files[:2]:
        assert validate(path)[0].tool == "pydicom and highdicom"
