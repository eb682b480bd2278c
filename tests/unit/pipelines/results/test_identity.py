"""UIDs are a function of inputs and makers; patient and study are copied, never made up."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset

from pipelines.results.capture import build_capture
from pipelines.results.identity import SERIES_TYPES, report_series_uid, result_uid
from pipelines.volume import ModelIdentity, ResultContext, Volume
from tests.unit.pipelines.results.synthetic import chest, context


def capture(volume: Volume, made_by: ResultContext) -> Dataset:
    return build_capture(np.zeros((9, 7, 3), np.uint8), volume, made_by, role="picture")


def test_uid_is_the_same_for_the_same_facts_in_any_order() -> None:
    volume, _ = chest()
    turned = Volume(volume.hu, volume.affine, volume.sources[::-1], volume.source_frames)
    models = context().models
    assert result_uid(volume, context(), "seg/instance") == result_uid(
        turned, context(models=models[::-1]), "seg/instance"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"pipeline": "other"},
        {"pipeline_version": "1.1"},
        {"models": (ModelIdentity("lungs", "1", "ff" * 32),)},
    ],
)
def test_uid_changes_with_its_maker(changes: dict[str, object]) -> None:
    volume, _ = chest()
    assert result_uid(volume, context(), "x") != result_uid(volume, context(**changes), "x")


def test_uid_does_not_change_with_time_or_software() -> None:
    volume, _ = chest()
    later = context(content_datetime=datetime(2027, 1, 1), software_version="9")
    assert result_uid(volume, context(), "x") == result_uid(volume, later, "x")


def test_a_late_instance_changes_uids_but_not_the_report_series() -> None:
    volume, _ = chest()
    fewer = Volume(volume.hu, volume.affine, volume.sources[:-1], volume.source_frames[:-1])
    assert result_uid(volume, context(), "x") != result_uid(fewer, context(), "x")
    assert report_series_uid(volume, context()) == report_series_uid(fewer, context())


@pytest.mark.parametrize("root", [None, "1.2", "1.2.826.0.1.3680043.10.9999.1234"])
def test_uids_are_valid(root: str | None) -> None:
    volume, _ = chest()
    for number in range(50):
        uid = result_uid(volume, context(uid_root=root), f"region/{number}/tracking")
        assert len(uid) <= 64
        assert re.fullmatch(r"[0-2](\.(0|[1-9][0-9]*))+", uid)
        assert uid.startswith(f"{root or '2.25'}.")


def test_2_25_uids_are_uuids_of_version_8() -> None:
    volume, _ = chest()
    number = int(result_uid(volume, context(), "x").split(".")[2])
    assert (number >> 76 & 0xF, number >> 62 & 0x3) == (8, 2)


def test_patient_and_study_are_copied_exactly() -> None:
    volume, _ = chest(PatientSex="U", EthnicGroup="x", StudyDescription="Très long")
    result = capture(volume, context())
    for keyword in (
        *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "EthnicGroup"),
        *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "StudyDescription"),
        *("ReferringPhysicianName", "SpecificCharacterSet"),
    ):
        assert result[keyword] == volume.sources[0][keyword], keyword


def test_what_the_input_lacks_is_empty_and_not_made_up() -> None:
    type_2 = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime")
    others = ("StudyDescription", "PatientAge", "SpecificCharacterSet")
    absent: dict[str, Any] = dict.fromkeys((*type_2, *others, "ReferringPhysicianName", "AccessionNumber"))
    volume, _ = chest(**absent)
    result = capture(volume, context())
    assert all(keyword in result and not result[keyword].value for keyword in type_2)
    assert all(keyword not in result for keyword in others)


def test_dates_are_the_jobs_and_equipment_is_ours() -> None:
    volume, _ = chest()
    result = capture(volume, context())
    assert (result.ContentDate, result.ContentTime) == ("20261120", "123456")
    assert (result.InstanceCreationDate, result.SeriesDate) == ("20261120", "20261120")
    assert result.ManufacturerModelName == "chest_ct_pneumonia"
    contributors = [item.ManufacturerModelName for item in result.ContributingEquipmentSequence]
    assert contributors == ["Scanner 1", "lungs", "lesions", "highdicom"]
    assert "b2" * 32 in result.ContributingEquipmentSequence[2].ContributionDescription


def test_series_types_are_told_apart() -> None:
    numbers = [series.number for series in SERIES_TYPES.values()]
    assert len(set(numbers)) == len(numbers)
