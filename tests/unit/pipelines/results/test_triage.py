"""The triage report can be traced without anything but itself, and says what must be known of its models."""

from __future__ import annotations

from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from pipelines.classify import SPEC, choose_key_slices
from pipelines.estimates import Estimate, Estimates, conclusion, summarise
from pipelines.results import codes
from pipelines.results.result_set import write_result_set
from pipelines.results.triage import CASE_DECIMALS, build_triage_report, build_triage_results
from pipelines.volume import Volume
from tests.unit.pipelines.estimates import FUSION, PNEUMONIA_CLASS, RANDOM_FUSION, estimates_of
from tests.unit.pipelines.results.synthetic import chest, context, without_plane
from tests.unit.pipelines.results.test_report import groups, items, number


def make(folder: Path, **arguments: object) -> tuple[Dataset, Volume, Estimates]:
    volume, estimates = estimates_of(**arguments)  # type: ignore[arg-type]
    models = tuple(one.model for one in estimates.by_model)
    made_by = context(pipeline="chest_ct_triage", models=(*context().models[:1], *models))
    entries = write_result_set(build_triage_results(volume, estimates, made_by), folder)
    assert [entry.path.name for entry in entries] == ["triage_report.dcm", "triage_picture.dcm"]
    return pydicom.dcmread(folder / "triage_report.dcm"), volume, estimates


@pytest.mark.parametrize("exact", [True, False], ids=["floating point value", "printed decimals"])
def test_the_means_can_be_computed_again_from_the_report_alone(tmp_path: Path, exact: bool) -> None:
    report, _, estimates = make(tmp_path, fusion=FUSION)
    case, *slices = groups(report, "1501")
    assert len(slices) == len(estimates.key_slices)
    for code in codes.CLASS_PROBABILITY.values():
        again = sum(number(group, code.value, exact=exact) for group in slices) / len(slices)
        stored = next(items(case, code.value)).MeasuredValueSequence[0]
        assert f"{again:.{CASE_DECIMALS}f}" == str(stored.NumericValue)


def test_each_probability_names_its_model_and_how_it_was_made(tmp_path: Path) -> None:
    report, _, estimates = make(tmp_path, fusion=FUSION)
    case, *_ = groups(report, "1501")
    for one in estimates.by_model:
        for name in one.classes:
            measured = next(items(case, codes.CLASS_PROBABILITY[name].value))
            assert next(items(measured, "111001")).TextValue == one.model.name
            said = [item.TextValue for item in items(measured, "111002")]
            assert f"sha256={one.model.sha256}" in said
            assert "case: mean of the key slices' probabilities" in said
            assert said[-1].startswith("inputs: Key slice 1 p=0.")
            assert next(items(measured, "121401")).ConceptCodeSequence[0].CodeValue == codes.MEAN.value


def test_each_key_slice_refers_to_its_image(tmp_path: Path) -> None:
    report, volume, estimates = make(tmp_path)
    _, *slices = groups(report, "1501")
    for group, key in zip(slices, estimates.key_slices, strict=True):
        (image,) = (item for item in items(group, "121112"))
        assert key.source_slice is not None
        assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == (
            volume.sources[key.source_slice].SOPInstanceUID
        )


@pytest.mark.parametrize("orientation", ["axial", "oblique", "coronal"])
def test_each_group_has_an_outline_of_its_lungs(tmp_path: Path, orientation: str) -> None:
    """Viewers like OHIF open no group without coordinates."""
    report, volume, estimates = make(tmp_path, orientation=orientation)
    case, *slices = groups(report, "1501")
    for group, key in zip(slices, estimates.key_slices, strict=True):
        (region,) = items(group, "111030")
        assert region.ContentSequence[0].RelationshipType == "SELECTED FROM"
        drawn_on = region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        rows = np.array(region.GraphicData)[1::2]
        if key.source_slice is None:
            assert np.ptp(rows) == 1
        else:
            assert drawn_on == volume.sources[key.source_slice].SOPInstanceUID
            assert np.ptp(rows) > 10
    assert len(list(items(case, "111030"))) == 1


def test_key_slices_of_a_repaired_series_are_acquired_images(tmp_path: Path) -> None:
    volume, findings = without_plane(*chest(shape=(9, 48, 56), spacing=(20.0, 5.6, 4.8)), missing=4)
    keys = choose_key_slices(volume, findings.lungs)
    by_slice = np.full((len(keys), 3), 1 / 3)
    one = Estimate(PNEUMONIA_CLASS, SPEC.classes, by_slice)
    estimates = Estimates(findings.lungs, keys, (one,), volume.by_lung_ml(findings.lungs))
    assert 4 not in [key.source_slice for key in keys] and {3, 5} <= {key.source_slice for key in keys}
    report = build_triage_report(volume, estimates, context(pipeline="chest_ct_triage"))
    _, *slices = groups(report, "1501")
    for group, key in zip(slices, keys, strict=True):
        (image,) = (item for item in items(group, "121112"))
        (source,) = (
            source
            for source in volume.sources
            if source.SOPInstanceUID == image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        )
        assert float(source.ImagePositionPatient[2]) == pytest.approx(key.z_mm)


def test_each_key_slice_refers_to_its_frame(tmp_path: Path) -> None:
    report, volume, estimates = make(tmp_path, enhanced=True)
    _, *slices = groups(report, "1501")
    for group, key in zip(slices, estimates.key_slices, strict=True):
        (image,) = (item for item in items(group, "121112"))
        frame = image.ReferencedSOPSequence[0].ReferencedFrameNumber
        assert key.source_slice is not None
        assert frame == volume.source_frames[key.source_slice][1]


def test_the_predicted_class_is_the_reports_finding(tmp_path: Path) -> None:
    report, _, estimates = make(tmp_path, fusion=FUSION, notes=("first note", "second note"))
    case, *_ = groups(report, "1501")
    assert estimates.case_type == "viral"
    assert next(items(case, "121071")).ConceptCodeSequence[0].CodeMeaning == "Viral pneumonia"
    evaluations = next(items(report, codes.QUALITATIVE_EVALUATIONS.value))
    answers = {
        key: next(items(evaluations, code.value)).ConceptCodeSequence[0].CodeMeaning
        for key, code in codes.PREDICTED_CLASS.items()
    }
    assert answers == {"pneumonia_class": "Viral pneumonia", "fusion": "Negative"}
    assert [item.TextValue for item in items(evaluations, "121106")] == ["first note", "second note"]
    assert next(items(evaluations, "121077")).TextValue == conclusion(estimates)


def test_a_random_models_class_is_not_stated(tmp_path: Path) -> None:
    report, _, estimates = make(tmp_path, fusion=RANDOM_FUSION)
    evaluations = next(items(report, codes.QUALITATIVE_EVALUATIONS.value))
    assert not list(items(evaluations, codes.PREDICTED_CLASS["fusion"].value))
    assert "fusion has random weights, its estimates mean nothing" in conclusion(estimates)
    case, *_ = groups(report, "1501")
    measured = next(items(case, codes.CLASS_PROBABILITY["positive"].value))
    assert "weights: imagenet; seeded 1" in [item.TextValue for item in items(measured, "111002")]


def test_equipment_lists_every_model(tmp_path: Path) -> None:
    report, _, _ = make(tmp_path, fusion=FUSION)
    named = [item.ManufacturerModelName for item in report.ContributingEquipmentSequence]
    assert {"lungs", PNEUMONIA_CLASS.name, FUSION.name} <= set(named)


def test_made_again_the_bytes_are_the_same(tmp_path: Path) -> None:
    for name in ("first", "second"):
        make(tmp_path / name, fusion=FUSION, orientation="oblique")
    for file in ("triage_report.dcm", "triage_picture.dcm"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


@pytest.mark.parametrize("arguments", [{"orientation": "coronal"}, {"StudyID": None}, {"enhanced": True}])
def test_highdicom_reads_it_back(tmp_path: Path, arguments: dict[str, object]) -> None:
    _, _, estimates = make(tmp_path, **arguments)
    report = hd.sr.srread(tmp_path / "triage_report.dcm")
    assert len(report.content.get_image_measurement_groups()) == 1 + len(estimates.key_slices)


def test_the_summary_has_the_documents_keys_and_each_slice() -> None:
    _, estimates = estimates_of(fusion=FUSION)
    summary = summarise(estimates)
    assert (summary["findings"], summary["noisy_or"], summary["case_type"]) == ([], {}, "viral")
    assert set(summary["estimates"]) == {"pneumonia_class", "fusion"}
    for model, case in summary["estimates"].items():
        assert sum(case.values()) == pytest.approx(1.0)
        for name, p in case.items():
            by_slice = [key["estimates"][model][name] for key in summary["key_slices"]]
            assert sum(by_slice) / len(by_slice) == pytest.approx(p)
