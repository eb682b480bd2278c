"""Why there is no result: in the study, in the recorded words, the same object whenever it is made."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from pipelines.errors import SeriesRefused
from pipelines.results.no_result import Kind, build_no_result, read_headers
from pipelines.results.result_set import write_result_set
from pipelines.volume import Volume
from tests.unit.pipelines.results.synthetic import chest, context
from tests.unit.pipelines.test_process import write

REASON = "instance 1.2.3: its plane is 2.5 mm from where the volume has slice 7 (30° tilt)"


@pytest.fixture(params=["classic", "enhanced"])
def headers(request: pytest.FixtureRequest) -> Volume:
    volume, _ = chest(
        enhanced=request.param == "enhanced",
        PatientName="Wang^XiaoDong=王^小東",
        SpecificCharacterSet="ISO_IR 192",
    )
    return Volume(volume.hu[:0, :0, :0], volume.affine, volume.sources, ())


def made(headers: Volume, folder: Path, *, reason: str = REASON, kind: Kind = "both") -> dict[str, Dataset]:
    made_by = context(models=())
    result_set = build_no_result(headers, made_by, code="geometry_mismatch", reason=reason, kind=kind)
    return {entry.path.stem: dcmread(entry.path) for entry in write_result_set(result_set, folder)}


def test_the_report_repeats_the_recorded_words(headers: Volume, tmp_path: Path) -> None:
    report = made(headers, tmp_path)["no_result"]
    texts = [element.value for element in report.iterall() if element.keyword == "TextValue"]
    assert texts[:2] == [f"AI not performed: {REASON.replace('°', '?')}", "Reason code: geometry_mismatch"]
    (evidence,) = report.CurrentRequestedProcedureEvidenceSequence
    listed = {
        item.ReferencedSOPInstanceUID
        for series in evidence.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert listed == {source.SOPInstanceUID for source in headers.sources}


def test_both_are_in_the_study_with_the_patient_as_it_came(headers: Volume, tmp_path: Path) -> None:
    source = headers.sources[0]
    copied = (
        *("StudyInstanceUID", "PatientName", "PatientID", "AccessionNumber"),
        "SpecificCharacterSet",
    )
    for one in made(headers, tmp_path).values():
        for keyword in copied:
            assert one[keyword] == source[keyword]
        assert one.SeriesInstanceUID != source.SeriesInstanceUID


@pytest.mark.parametrize(
    ("kind", "roles"),
    [
        ("report", ["no_result"]),
        ("picture", ["no_result_picture"]),
        ("both", ["no_result", "no_result_picture"]),
    ],
)
def test_what_is_made_is_what_was_asked_for(
    headers: Volume, tmp_path: Path, kind: Kind, roles: list[str]
) -> None:
    assert list(made(headers, tmp_path, kind=kind)) == roles


def test_uids_depend_on_the_reason(headers: Volume, tmp_path: Path) -> None:
    first, again, other = (
        made(headers, tmp_path / name, reason=reason)
        for name, reason in (("a", REASON), ("b", REASON), ("c", "another"))
    )
    for role, one in first.items():
        assert (tmp_path / "a" / f"{role}.dcm").read_bytes() == (tmp_path / "b" / f"{role}.dcm").read_bytes()
        assert one.SOPInstanceUID == again[role].SOPInstanceUID != other[role].SOPInstanceUID


def test_headers_are_those_that_can_be_read(tmp_path: Path) -> None:
    volume, _ = chest(lesions=False)
    paths = write(volume, tmp_path / "series")[:4]
    paths[1].write_bytes(b"nonsense")
    headers = read_headers(paths)
    assert len(headers.sources) == 3
    with pytest.raises(SeriesRefused) as refused:
        read_headers([paths[1], tmp_path / "missing.dcm"])
    assert refused.value.code == "unreadable_instance"
