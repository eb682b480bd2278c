"""Finished result files pass validators that this project did not write."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage

from pipelines import results
from pipelines.encoding import DEFAULT, Encoding
from pipelines.errors import RenderingUnavailable
from pipelines.render import check_rendering, render_rotation
from pipelines.results import build_result_set, write_result_set
from pipelines.results.no_result import build_no_result
from pipelines.results.pixelmed import jars
from pipelines.results.report import build_report
from pipelines.results.result_set import ResultSet
from pipelines.results.segmentation import build_segmentation
from pipelines.results.superseding import Superseded, build_rejection
from pipelines.results.triage import build_triage_results
from pipelines.results.validation import Validation, _find, validate_all
from pipelines.volume import Volume
from tests.conformance.inputs import available, read
from tests.shared_data import shared
from tests.unit.pipelines.estimates import FUSION, estimates_of
from tests.unit.pipelines.results.synthetic import context

pytestmark = pytest.mark.integration

#: Warnings that stay: the private scheme is unknown to dciodvfy by nature; then one about DICOMDIR media, and
#: one about a Patient's Name that is copied as it is.
EXPECTED_WARNINGS = ("<99PACSNODE>", "needed to build DICOMDIR", "Retired Person Name form")
#: … and of names beyond ASCII, whose characters and character sets PixelMed doesn't know.
EXPECTED_OF_NAMES = (*EXPECTED_WARNINGS, "Illegal character(s)", "Unrecognized defined term :ISO")
#: Old tools that don't know Label Map Segmentation Storage (2023) refuse a reference to a segment of one.
KNOWS_NO_LABEL_MAPS = ("dciodvfy", "dsrdump")
INPUTS = available()
TRIAGE: dict[str, dict[str, object]] = {
    "triage_fusion": {"fusion": FUSION},
    "triage_enhanced_oblique": {"enhanced": True, "orientation": "oblique"},
}

OTHERS = ("no_result", "rejection", "labelmap", "fractional")

Said = dict[str, dict[str, list[Validation]]]


def result_sets() -> Iterator[tuple[str, ResultSet]]:
    for name in INPUTS:
        predecessors = ("1.2.3.4",) if name == "enhanced" else ()
        yield name, build_result_set(*read(name), context(predecessors=predecessors))
    for name, arguments in TRIAGE.items():
        volume, estimates = estimates_of(PatientName="Test^Anna", notes=("a note",), **arguments)  # type: ignore[arg-type]
        models = (*context().models[:1], *(one.model for one in estimates.by_model))
        made_by = context(pipeline="chest_ct_triage", models=models)
        yield name, build_triage_results(volume, estimates, made_by)
    yield from others()


def others() -> Iterator[tuple[str, ResultSet]]:
    volume, findings = read("phantom")
    nowhere = Volume(volume.hu[:0], volume.affine, volume.sources, ())
    reason = "the slices at 12.5 mm are missing: 5 in a row, 3 are allowed at most"
    why = build_no_result(nowhere, context(models=()), code="geometry_gap", reason=reason, kind="both")
    yield "no_result", why
    superseded = (
        Superseded("segmentation", str(SegmentationStorage), "1.2.3.1", "1.2.3", "SEG"),
        Superseded("report", str(Comprehensive3DSRStorage), "1.2.3.2", "1.2.4", "SR"),
    )
    note = build_rejection(volume, context(), superseded, DEFAULT)
    yield "rejection", ResultSet((("note", note),))
    for kind in ("labelmap", "fractional"):
        encoding = Encoding.named(f"{kind}-omit")
        segmentation = build_segmentation(volume, findings, context(), encoding)
        report = build_report(volume, findings, segmentation, context(), encoding)
        yield kind, ResultSet((("segmentation", segmentation), ("report", report)))


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Said:
    """Input -> role -> what each validator says. All at once: PixelMed's start longer than they work."""
    folder = tmp_path_factory.mktemp("sets")
    with pytest.MonkeyPatch.context() as patch:
        # a small loop has the attributes of a large one
        patch.setattr(results, "render_rotation", partial(render_rotation, frames=3, size=128))
        files = {
            (name, entry.path.stem): entry.path
            for name, result_set in result_sets()
            for entry in write_result_set(result_set, folder / name)
        }
    checked = validate_all(list(files.values()))
    by_input: Said = {}
    for (name, role), path in files.items():
        by_input.setdefault(name, {})[role] = checked[path]
    return by_input


@pytest.mark.parametrize("name", [*INPUTS, *TRIAGE, *OTHERS])
def test_no_validator_finds_an_error(said: Said, name: str) -> None:
    excused = KNOWS_NO_LABEL_MAPS if name == "labelmap" else ()
    failed = {
        role: [v for v in tools if not v.ok and v.tool not in excused] for role, tools in said[name].items()
    }
    assert not any(failed.values()), failed


@pytest.mark.parametrize("name", [*INPUTS, *TRIAGE, *OTHERS])
def test_there_are_no_warnings_but_the_known_ones(said: Said, name: str) -> None:
    expected = EXPECTED_OF_NAMES if name.startswith("named_") else EXPECTED_WARNINGS
    unknown = [
        (role, tool.tool, message)
        for role, tools in said[name].items()
        for tool in tools
        for message in tool.messages
        if tool.ok and not any(known in message for known in expected)
    ]
    assert not unknown


def test_no_message_names_the_patient(said: Said) -> None:
    """A validator may quote the value that it dislikes; what is shown of that goes on screens."""
    messages = [message for v in said["named_german"]["segmentation"] for message in v.messages]
    assert any("Illegal character(s) 'üüö'" in message for message in messages) or not jars()
    assert not any("Jörg" in message or "Lüdenscheidt" in message for message in messages)


@pytest.mark.parametrize(
    ("role", "tools"),
    [
        ("segmentation", {"dciodvfy", "segimage2itkimage", "PixelMed DicomInstanceValidator"}),
        ("report", {"dciodvfy", "dsrdump", "tid1500reader", "PixelMed DicomSRValidator"}),
        ("picture", {"dciodvfy", "PixelMed DicomInstanceValidator"}),
    ],
)
def test_what_is_installed_was_run(said: Said, role: str, tools: set[str]) -> None:
    here = {t for t in tools if (_find("java") and jars() if t.startswith("PixelMed") else _find(t))}
    for name in INPUTS:
        assert here | {"pydicom and highdicom"} == {v.tool for v in said[name][role]}


def test_the_3d_view_is_there_where_it_can_be(said: Said) -> None:
    try:
        check_rendering()
    except RenderingUnavailable:
        assert "montage" in said["phantom"]
    else:
        assert "rotation" in said["phantom"]


def test_dicom_of_others_passes_too() -> None:
    """The front end itself, on objects that QIICR and highdicom made."""
    files: list[Path] = sorted(shared("reference_objects/highdicom").glob("*.dcm"))[:2]
    for tools in validate_all(files).values():
        assert tools[0].tool == "pydicom and highdicom"
