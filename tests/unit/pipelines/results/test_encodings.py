"""The same findings as BINARY, LABELMAP and FRACTIONAL: what each voxel says, and whose UIDs differ."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from pipelines.encoding import DEFAULT, EmptyFrames, Encoding, SegmentationType
from pipelines.results.report import build_report
from pipelines.results.segmentation import build_segmentation, region_tracking, segment_numbers
from pipelines.volume import Findings, Volume
from tests.unit.pipelines.results.synthetic import chest, context

SEGMENTATIONS: tuple[SegmentationType, ...] = ("binary", "labelmap", "fractional")
EMPTY_FRAMES: tuple[EmptyFrames, ...] = ("omit", "include")
ENCODINGS = [Encoding(kind, empty) for kind, empty in product(SEGMENTATIONS, EMPTY_FRAMES)]


def with_probabilities(findings: Findings) -> Findings:
    """Ground glass at 200 / 255, consolidation at 130 / 255, and a little of both around them."""
    around = np.where(findings.lungs > 0, 3, 0)
    both = [np.where(findings.lesions == kind, p, around) for kind, p in ((1, 200), (2, 130))]
    return replace(findings, lesion_probabilities=np.stack(both).astype(np.uint8))


@pytest.fixture(scope="module")
def found() -> tuple[Volume, Findings]:
    volume, findings = chest("oblique")
    return volume, with_probabilities(findings)


def written(found: tuple[Volume, Findings], encoding: Encoding, folder: Path) -> Dataset:
    path = folder / "seg.dcm"
    build_segmentation(*found, context(), encoding).save_as(path, enforce_file_format=True)
    return hd.seg.segread(path)


def planes(segmentation: Dataset, volume: Volume) -> dict[str, NDArray[np.uint8]]:
    """Segment label -> (slices, rows, columns) of stored values."""
    at = {tuple(np.round(source.ImagePositionPatient, 3)): k for k, source in enumerate(volume.sources)}
    labels = {int(item.SegmentNumber): str(item.SegmentLabel) for item in segmentation.SegmentSequence}
    stored = {label: np.zeros(volume.hu.shape, np.uint8) for label in labels.values()}
    for frame, pixels in zip(
        segmentation.PerFrameFunctionalGroupsSequence, segmentation.pixel_array, strict=True
    ):
        k = at[tuple(np.round(frame.PlanePositionSequence[0].ImagePositionPatient, 3))]
        if "SegmentIdentificationSequence" in frame:
            stored[labels[int(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber)]][k] = pixels
        else:
            for number, label in labels.items():
                stored[label][k] = pixels == number
    return stored


def test_a_label_map_has_the_finest_segment_of_each_voxel(
    found: tuple[Volume, Findings], tmp_path: Path
) -> None:
    volume, findings = found
    segmentation = written(found, Encoding("labelmap"), tmp_path)
    assert segmentation.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    stored = planes(segmentation, volume)
    assert "Consolidation" not in stored  # every voxel of it is in a region
    for number in (1, 2, 3):
        np.testing.assert_array_equal(stored[f"Region {number}"] > 0, findings.region_labels == number)
    for number, side in ((1, "Right lung"), (2, "Left lung")):
        rest = (findings.lungs == number) & (findings.lesions == 0)
        np.testing.assert_array_equal(stored[side] > 0, rest)


def test_a_fractional_segmentation_has_the_models_probabilities(
    found: tuple[Volume, Findings], tmp_path: Path
) -> None:
    volume, findings = found
    segmentation = written(found, Encoding("fractional"), tmp_path)
    assert (segmentation.SegmentationFractionalType, segmentation.MaximumFractionalValue) == (
        *("PROBABILITY",),
        255,
    )
    stored = planes(segmentation, volume)
    assert findings.lesion_probabilities is not None
    for name, one in zip(
        ("Ground glass opacity", "Consolidation"), findings.lesion_probabilities, strict=True
    ):
        np.testing.assert_array_equal(stored[name], one)
    np.testing.assert_array_equal(stored["Right lung"], (findings.lungs == 1) * 255)
    either = findings.lesion_probabilities.sum(axis=0)
    np.testing.assert_array_equal(stored["Region 1"], np.where(findings.region_labels == 1, either, 0))


def test_without_probabilities_a_fractional_segmentation_is_all_or_nothing(tmp_path: Path) -> None:
    volume, findings = chest()
    stored = planes(written((volume, findings), Encoding("fractional"), tmp_path), volume)
    np.testing.assert_array_equal(stored["Region 2"], (findings.region_labels == 2) * 255)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda one: one.name)
def test_empty_frames_are_there_only_if_included(
    found: tuple[Volume, Findings], encoding: Encoding, tmp_path: Path
) -> None:
    segmentation = written(found, encoding, tmp_path)
    frames = segmentation.pixel_array.reshape(segmentation.NumberOfFrames, -1).any(axis=1)
    assert frames.all() == (encoding.empty_frames == "omit")
    if encoding.empty_frames == "include":
        segments = 1 if encoding.segmentation == "labelmap" else len(segmentation.SegmentSequence)
        assert len(frames) == len(found[0].sources) * segments


def test_each_encoding_is_an_instance_that_its_own_report_refers_to(found: tuple[Volume, Findings]) -> None:
    seen: dict[str, set[str]] = {name: set() for name in ("seg", "seg_series", "report", "report_series")}
    for encoding in ENCODINGS:
        segmentation = build_segmentation(*found, context(), encoding)
        report = build_report(*found, segmentation, context(), encoding)
        seen["seg"].add(segmentation.SOPInstanceUID)
        seen["seg_series"].add(segmentation.SeriesInstanceUID)
        seen["report"].add(report.SOPInstanceUID)
        seen["report_series"].add(report.SeriesInstanceUID)
        referenced = {
            element.value for element in report.iterall() if element.keyword == "ReferencedSOPInstanceUID"
        }
        assert segmentation.SOPInstanceUID in referenced
        assert str(region_tracking(found[0], context(), 1)[1]) in segment_numbers(segmentation)
    assert {name: len(uids) for name, uids in seen.items()} == {
        **dict.fromkeys(("seg", "seg_series", "report"), len(ENCODINGS)),
        "report_series": 1,
    }


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda one: one.name)
def test_made_again_it_is_the_same_bytes(
    found: tuple[Volume, Findings], encoding: Encoding, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ("first.dcm", "second.dcm")]
    for path in files:
        build_segmentation(*found, context(), encoding).save_as(path, enforce_file_format=True)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert dcmread(files[0]).SOPInstanceUID == dcmread(files[1]).SOPInstanceUID


def test_an_encoding_is_its_name() -> None:
    assert [Encoding.named(one.name) for one in ENCODINGS] == ENCODINGS
    assert (DEFAULT.suffix, Encoding("labelmap").suffix) == ("", ".labelmap-omit")
    for wrong in ("", "binary", "jpeg-omit", "binary-some"):
        with pytest.raises(ValueError, match="no such encoding"):
            Encoding.named(wrong)
