"""The report can be read and traced without anything but itself."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import highdicom as hd
import pydicom
import pytest
from pydicom import Dataset

from pipelines.infection import vote
from pipelines.results import codes
from pipelines.results.narrative import conclusion
from pipelines.results.report import CASE_DECIMALS, build_report
from pipelines.results.segmentation import build_segmentation
from pipelines.volume import Findings, PatchVote, Volume
from tests.unit.pipelines.results.synthetic import chest, context


def make(
    folder: Path, *, predecessors: tuple[str, ...] = (), **arguments: object
) -> tuple[Dataset, Volume, Findings]:
    volume, findings = chest(**arguments)  # type: ignore[arg-type]
    made_by = context(predecessors=predecessors)
    segmentation = build_segmentation(volume, findings, made_by)
    path = folder / "report.dcm"
    build_report(volume, findings, segmentation, made_by).save_as(path, enforce_file_format=True)
    return pydicom.dcmread(path), volume, findings


def items(parent: Dataset, code: str) -> Iterator[Dataset]:
    for item in parent.get("ContentSequence", []):
        if item.ConceptNameCodeSequence[0].CodeValue == code:
            yield item


def groups(report: Dataset, template: str) -> list[Dataset]:
    measurements = next(items(report, "126010"))
    return [
        group
        for group in items(measurements, "125007")
        if group.ContentTemplateSequence[0].TemplateIdentifier == template
    ]


def number(group: Dataset, code: str, *, exact: bool) -> float:
    value = next(items(group, code)).MeasuredValueSequence[0]
    return float(value.FloatingPointValue if exact else value.NumericValue)


@pytest.mark.parametrize("exact", [True, False], ids=["floating point value", "printed decimals"])
def test_the_noisy_or_can_be_computed_again_from_the_report_alone(tmp_path: Path, exact: bool) -> None:
    report, _, findings = make(tmp_path)
    by_finding: dict[str, list[float]] = defaultdict(list)
    for group in groups(report, "1411"):
        finding = next(items(group, "121071")).ConceptCodeSequence[0].CodeValue
        by_finding[finding].append(number(group, codes.PROBABILITY.value, exact=exact))
    (case,) = groups(report, "1501")
    for name, name_code in codes.CASE_TYPE_PROBABILITY.items():
        again = 1.0 - math.prod(1.0 - p for p in by_finding[codes.FINDING[name].value])
        stored = next(items(case, name_code.value)).MeasuredValueSequence[0]
        assert f"{again:.{CASE_DECIMALS}f}" == str(stored.NumericValue)
        assert again == pytest.approx(findings.noisy_or[name], abs=1e-9)


def test_the_derivation_says_formula_and_inputs(tmp_path: Path) -> None:
    report, _, findings = make(tmp_path)
    (case,) = groups(report, "1501")
    measured = next(items(case, codes.CASE_TYPE_PROBABILITY["covid19"].value))
    parameters = [item.TextValue for item in items(measured, "111002")]
    assert parameters[0].startswith("P = 1 - product of (1 - p)")
    assert findings.probability_method in parameters[1]
    assert parameters[2] == "inputs: Region 1 p=0.9100000000, Region 3 p=0.5000000000"
    derivation = next(items(measured, "121401")).ConceptCodeSequence[0]
    assert (derivation.CodeValue, derivation.CodingSchemeDesignator) == ("noisy-or", "99PACSNODE")


def test_the_vote_can_be_taken_again_from_the_report_alone(tmp_path: Path) -> None:
    """Each region's type and p follow from its nine patch probabilities by the rule of Xu et al. 2020."""
    report, _, findings = make(tmp_path)
    regions = groups(report, "1411")
    assert len(regions) == len(findings.regions)
    for group in regions:
        patches = [
            PatchVote(
                *((n, 0.0, 0.0), 0.0),
                {
                    kind: number(group, named[n].value, exact=True)
                    for kind, named in codes.PATCH_PROBABILITY.items()
                },
            )
            for n in range(3)
        ]
        infection_type, p = vote(patches)
        assert (
            next(items(group, "121071")).ConceptCodeSequence[0].CodeValue
            == codes.FINDING[infection_type].value
        )
        assert number(group, codes.PROBABILITY.value, exact=True) == p
        measured = next(items(group, codes.PROBABILITY.value))
        parameters = [item.TextValue for item in items(measured, "111002")]
        assert parameters[-1].startswith("votes: patch 1 ")
        assert parameters[-1].count(codes.FINDING[infection_type].meaning) == 3


def test_each_region_refers_to_its_segment_by_number_and_tracking_uid(tmp_path: Path) -> None:
    volume, findings = chest()
    segmentation = build_segmentation(volume, findings, context())
    path = tmp_path / "report.dcm"
    build_report(volume, findings, segmentation, context()).save_as(path, enforce_file_format=True)
    found = hd.sr.srread(path).content.get_volumetric_roi_measurement_groups()
    regions = {f"Region {region.number}": region for region in findings.regions}
    named = {group.tracking_identifier: group for group in found if group.tracking_identifier in regions}
    assert set(named) == set(regions)
    for identifier, group in named.items():
        segment = segmentation.SegmentSequence[group.referenced_segment[0].referenced_segment_numbers[0] - 1]
        assert (segment.TrackingID, segment.TrackingUID) == (identifier, group.tracking_uid)
        assert group.referenced_segment[0].referenced_sop_instance_uid == segmentation.SOPInstanceUID
        side = group.finding_sites[0].laterality
        assert side == codes.LATERALITY[regions[identifier].laterality]
        volume_ml = group.get_measurements(name=codes.VOLUME)[0].value
        assert volume_ml == pytest.approx(regions[identifier].volume_ml, abs=1e-3)


@pytest.mark.parametrize("enhanced", [False, True])
def test_each_region_has_a_closed_outline_on_its_key_image(tmp_path: Path, enhanced: bool) -> None:
    report, volume, findings = make(tmp_path, enhanced=enhanced)
    volumetric = {next(items(g, "112040")).UID: g for g in groups(report, "1411")}
    planar = [g for g in groups(report, "1410") if next(items(g, "112040")).UID in volumetric]
    assert len(planar) == len(findings.regions)
    for region, group in zip(findings.regions, planar, strict=True):
        uid = next(items(group, "112040")).UID
        assert next(items(volumetric[uid], "112039")).TextValue == next(items(group, "112039")).TextValue
        region_item = next(items(group, "111030"))
        assert (region_item.ValueType, region_item.GraphicType) == ("SCOORD", "POLYLINE")
        points = list(region_item.GraphicData)
        assert points[:2] == points[-2:]
        image = region_item.ContentSequence[0].ReferencedSOPSequence[0]
        source, frame = volume.source_frames[region.key_slice]
        assert image.ReferencedSOPInstanceUID == volume.sources[source].SOPInstanceUID
        assert image.get("ReferencedFrameNumber") == (frame if enhanced else None)


@pytest.mark.parametrize("lesions", [True, False])
def test_no_group_is_without_coordinates(tmp_path: Path, lesions: bool) -> None:
    """OHIF 3.13 stops at the first tracking UID without any, and shows an empty viewport: the case has an
    outline, too. Not of five points, or OHIF takes it for a rectangle of its own and shows no other."""
    report, _, _ = make(tmp_path, lesions=lesions)
    outlines: dict[str, Dataset] = {}
    for template in ("1410", "1411", "1501"):
        for group in groups(report, template):
            for region in items(group, "111030"):
                outlines[next(items(group, "112040")).UID] = region
    for group in (*groups(report, "1411"), *groups(report, "1501")):
        assert next(items(group, "112040")).UID in outlines
    (case,) = groups(report, "1501")
    assert len(outlines[next(items(case, "112040")).UID].GraphicData) > 10


def test_an_outline_counts_for_nothing(tmp_path: Path) -> None:
    """Who counts findings or sums measurements counts each region once (ADR 11)."""
    report, _, _ = make(tmp_path)
    for group in groups(report, "1410"):
        names = [item.ConceptNameCodeSequence[0].CodeMeaning for item in group.ContentSequence]
        assert names == ["Tracking Identifier", "Tracking Unique Identifier", "Image Region"]


@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="dsrdump (dcmtk) isn't installed")
def test_the_first_ten_lines_tell_the_case(tmp_path: Path) -> None:
    _, _, findings = make(tmp_path)
    path = str(tmp_path / "report.dcm")
    said = subprocess.run(["/usr/bin/dsrdump", "+Pl", path], check=True, capture_output=True).stdout.decode(
        "latin-1"
    )
    lines = said[said.index("<CONTAINER") :].splitlines()[:10]
    narrated = [line.split('="')[-1].rstrip('">') for line in lines[4:]]
    assert narrated[0] == "COVID-19, P = 0.955, 2 regions"
    assert narrated[1] == "P = 0.873 for Influenza A pneumonia, 1 region"
    assert narrated[2].startswith(f"Lungs {findings.involved_percent:.1f} % involved")
    assert [line.split(":")[0] for line in narrated[3:]] == ["Region 1", "Region 2", "Region 3"]


def test_every_model_is_named_with_version_and_hash(tmp_path: Path) -> None:
    report, _, _ = make(tmp_path)
    texts = [element.value for element in report.iterall() if element.keyword == "TextValue"]
    for model in context().models:
        assert f"sha256={model.sha256}" in texts
    (case,) = groups(report, "1501")
    lung = next(items(case, codes.VOLUME.value))
    assert [next(items(lung, code)).TextValue for code in ("111001", "111003")] == ["lungs", "1"]


def test_evidence_lists_the_segmentation_and_every_source(tmp_path: Path) -> None:
    report, volume, _ = make(tmp_path)
    study = report.CurrentRequestedProcedureEvidenceSequence[0]
    listed = {
        i.ReferencedSOPInstanceUID for s in study.ReferencedSeriesSequence for i in s.ReferencedSOPSequence
    }
    assert {str(source.SOPInstanceUID) for source in volume.sources} < listed
    assert len(listed) == len(volume.sources) + 1
    assert len(study.ReferencedSeriesSequence) == 2


def test_no_region_is_a_result_too(tmp_path: Path) -> None:
    report, _, findings = make(tmp_path, lesions=False)
    (case,) = groups(report, "1501")
    assert not groups(report, "1411")
    assert next(items(case, "121071")).ConceptCodeSequence[0].CodeMeaning == "No infection found"
    for code in codes.CASE_TYPE_PROBABILITY.values():
        assert number(case, code.value, exact=True) == 0.0
    assert conclusion(findings).startswith("No infection found")


def test_flags_and_observer(tmp_path: Path) -> None:
    report, _, _ = make(tmp_path)
    assert (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag) == (
        *("COMPLETE", "UNVERIFIED"),
        "PRELIMINARY",
    )
    assert next(items(report, "121005")).ConceptCodeSequence[0].CodeMeaning == "Device"
    assert next(items(report, "121013")).TextValue == "chest_ct_pneumonia"


def test_procedure_and_order_are_the_inputs(tmp_path: Path) -> None:
    procedure = Dataset()
    procedure.CodeValue, procedure.CodingSchemeDesignator = "CTTHX", "99HOSP"
    procedure.CodeMeaning = "CT Thorax nativ"
    request = Dataset()
    request.RequestedProcedureID = "RP7"
    request.RequestedProcedureCodeSequence = [procedure]
    report, _, _ = make(tmp_path, ProcedureCodeSequence=[procedure], RequestAttributesSequence=[request])
    reported = [item.ConceptCodeSequence[0].CodeValue for item in items(report, "121058")]
    assert reported == ["CTTHX"]
    order = report.ReferencedRequestSequence[0]
    assert (order.RequestedProcedureID, order.AccessionNumber) == ("RP7", "ACC1")


def test_procedure_without_a_code_in_the_input(tmp_path: Path) -> None:
    report, _, _ = make(tmp_path, AccessionNumber=None)
    assert next(items(report, "121058")).ConceptCodeSequence[0].CodeValue == "25045-6"
    assert "ReferencedRequestSequence" not in report


def test_a_superseding_report_names_its_predecessor(tmp_path: Path) -> None:
    report, _, _ = make(tmp_path, predecessors=("1.2.3.4",))
    series = report.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.3.4"
    assert series.SeriesInstanceUID == report.SeriesInstanceUID
    assert report.InstanceNumber == 2


@pytest.mark.parametrize("arguments", [{"enhanced": True}, {"orientation": "coronal"}, {"StudyID": None}])
def test_highdicom_reads_it_back(tmp_path: Path, arguments: dict[str, Any]) -> None:
    make(tmp_path, **arguments)
    report = hd.sr.srread(tmp_path / "report.dcm")
    assert len(report.content.get_volumetric_roi_measurement_groups()) >= 3
    assert len(report.content.get_image_measurement_groups()) == 1
