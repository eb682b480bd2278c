"""One run over files on disk: the result set, ``summary.json``, and what is left when a run is refused."""

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
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from scipy import ndimage

from pipelines import results
from pipelines.chest_ct_pneumonia import PIPELINE
from pipelines.errors import PipelineError, SeriesRefused
from pipelines.noisy_or import case_type, noisy_or
from pipelines.pipeline import Stages
from pipelines.process import process
from pipelines.registry import find_pipeline
from pipelines.request import SUMMARY, Request
from pipelines.triton import Arrays
from pipelines.volume import Findings, Lesion, Lung, Volume
from tests.unit.pipelines.examples import ByRule
from tests.unit.pipelines.results.synthetic import chest

MODELS = ("lungs", "lesions", "candidates", "infection_type", "inpaint")
STAGES = [
    *("check", "load", "lungs", "lesions", "candidates", "infection_type", "regions", "inpaint"),
    "results",
]


def thresholds(hu: NDArray[np.int16]) -> dict[str, NDArray[Any]]:
    """The synthetic chest's tissues have HU of their own: lung -850, ground glass -550, consolidation 10,
    body 40, each +/- 15."""
    ground_glass = (hu > -700) & (hu < -400)
    consolidation = (hu >= -5) & (hu < 25)
    lung = (hu > -900) & (hu < -700)
    labels = ground_glass * Lesion.GROUND_GLASS + consolidation * Lesion.CONSOLIDATION
    return {
        "LUNGS": (lung | ground_glass | consolidation).astype(np.uint8),
        "LABELS": labels.astype(np.uint8),
    }


def boxes(inputs: Arrays) -> dict[str, NDArray[Any]]:
    """A box around each component of ground glass and of consolidation, as ``candidates`` answers."""
    hu = inputs["HU"][0]
    components, _ = ndimage.label(thresholds(hu)["LABELS"], np.ones((3, 3, 3)))
    sizes = np.bincount(components.ravel())[1:]
    found = [
        [part.start for part in box] + [part.stop for part in box]
        for box, size in zip(ndimage.find_objects(components), sizes, strict=True)
        if size > 50
    ]
    answer = np.zeros((1, 64, 6), np.float32)
    answer[0, : len(found)] = found
    return {"BOXES": answer, "SCORES": (np.arange(64) < len(found))[None].astype(np.float32) * 0.5}


def types(inputs: Arrays) -> dict[str, NDArray[Any]]:
    """COVID-19 at 0.8 where the patch's centre is ground glass, influenza A at 0.6 where consolidation."""
    centres = inputs["HU"][:, 32, 32]
    known = np.array([[0.8, 0.15, 0.05], [0.3, 0.6, 0.1], [0.05, 0.05, 0.9]], np.float32)
    return {"PROBABILITIES": known[np.where(centres > -100, 1, np.where(centres > -700, 0, 2))]}


def healed(inputs: Arrays) -> dict[str, NDArray[Any]]:
    return {"INPAINTED": np.where(inputs["MASK"] > 0, np.int16(-850), inputs["HU"])}


def models() -> ByRule:
    return ByRule(thresholds, candidates=boxes, infection_type=types, inpaint=healed)


def write(volume: Volume, folder: Path) -> tuple[Path, ...]:
    """The synthetic series as Part 10 files, one a slice."""
    folder.mkdir()
    paths = []
    for number, (source, plane) in enumerate(zip(volume.sources, volume.hu, strict=True)):
        source.SamplesPerPixel, source.PhotometricInterpretation = 1, "MONOCHROME2"
        source.BitsAllocated, source.BitsStored, source.HighBit = 16, 16, 15
        source.PixelRepresentation, source.RescaleSlope, source.RescaleIntercept = 1, 1, 0
        source.PixelData = plane.astype("<i2").tobytes()
        source.file_meta = FileMetaDataset()
        source.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        source.file_meta.MediaStorageSOPClassUID = source.SOPClassUID
        source.file_meta.MediaStorageSOPInstanceUID = source.SOPInstanceUID
        paths.append(folder / f"{number}.dcm")
        source.save_as(paths[-1], enforce_file_format=True)
    return tuple(paths)


@pytest.fixture(autouse=True)
def quick_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "render_rotation", lambda *_, **__: np.zeros((2, 16, 16, 3), np.uint8))


@pytest.fixture
def expected() -> tuple[Volume, Findings]:
    return chest()


@pytest.fixture
def request_(tmp_path: Path, expected: tuple[Volume, Findings]) -> Request:
    out = tmp_path / "out"
    out.mkdir()
    return Request(
        pipeline="chest_ct_pneumonia",
        paths=write(expected[0], tmp_path / "series"),
        out=out,
        software_version="9.9.9",
        content_datetime=datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC),
    )


def test_the_summary_has_the_documented_structure(request_: Request) -> None:
    summary = process(request_, models())
    assert summary == json.loads((request_.out / SUMMARY).read_text(encoding="utf-8"))
    assert summary["pipeline"] == "chest_ct_pneumonia"
    assert summary["software_version"] == "9.9.9"
    assert summary["models"] == {name: {"version": "1", "sha256": "00"} for name in MODELS}
    assert list(summary["timings_seconds"]) == STAGES
    assert all(seconds >= 0 for seconds in summary["timings_seconds"].values())
    assert [result["modality"] for result in summary["results"]] == ["SEG", "SR", "OT", "OT", "OT"]
    for result in summary["results"]:
        written = dcmread(request_.out / result["path"])
        assert written.SOPInstanceUID == result["sop_instance_uid"]
        assert written.SOPClassUID == result["sop_class_uid"]
    assert {path.name for path in request_.out.iterdir()} == {
        SUMMARY,
        *(result["path"] for result in summary["results"]),
    }


def test_the_findings_are_what_is_in_the_volume(request_: Request, expected: tuple[Volume, Findings]) -> None:
    volume, findings = expected
    summary = process(request_, models())
    assert summary["series_instance_uid"] == volume.series_instance_uid
    assert sorted(f["type"] for f in summary["findings"]) == ["covid19", "covid19", "iavp"]
    for found in summary["findings"]:
        region = min(findings.regions, key=lambda r: abs(r.volume_ml - found["volume_ml"]))
        assert found["volume_ml"] == pytest.approx(region.volume_ml)
        assert (found["type"], found["lesion_type"]) == (region.infection_type, region.lesion_type)
        assert found["laterality"] == region.laterality.name.lower()
        assert found["centroid_lps_mm"] == pytest.approx(region.centroid_lps_mm, abs=1e-3)
        assert found["bounding_box"] == [list(limits) for limits in region.bounding_box]
        assert found["mean_hu"] == pytest.approx(region.mean_hu)
        assert found["hu_percentiles"]["50"] == pytest.approx(region.hu_percentiles[50])
        assert found["probability"] == pytest.approx({"covid19": 0.8, "iavp": 0.6}[found["type"]])
        assert [vote["type"] for vote in found["votes"]] == [found["type"]] * 3
        assert found["probability"] == max(vote["confidence"] for vote in found["votes"])
    assert not any("tilt" in note for note in summary["notes"])
    for lung in Lung:
        name = lung.name.lower()
        assert summary["lung_volume_ml"][name] == pytest.approx(findings.measures[lung].volume_ml)
        assert summary["lesion_volume_ml"][name] == pytest.approx(findings.measures[lung].lesions_ml)
    assert summary["involved_percent"] == pytest.approx(findings.involved_percent)


def test_the_probabilities_can_be_recomputed_from_the_findings(request_: Request) -> None:
    summary = process(request_, models())
    for infection_type, probability in summary["noisy_or"].items():
        inputs = [f["probability"] for f in summary["findings"] if f["type"] == infection_type]
        assert inputs
        assert probability == pytest.approx(noisy_or(inputs))
    assert summary["noisy_or"]["covid19"] == pytest.approx(1 - 0.2 * 0.2)
    assert summary["case_type"] == case_type(summary["noisy_or"]) == "covid19"


def test_a_run_again_gives_the_same_bytes(request_: Request, tmp_path: Path) -> None:
    again = replace(request_, out=tmp_path / "again", paths=request_.paths[::-1])
    again.out.mkdir()
    first, second = (process(request, models()) for request in (request_, again))
    for result in first["results"]:
        assert (again.out / result["path"]).read_bytes() == (request_.out / result["path"]).read_bytes()
    for summary in (first, second):
        summary.pop("timings_seconds")
    assert first == second


def test_progress_names_each_stage_and_how_far_it_is(request_: Request) -> None:
    reported: list[tuple[str, int, int]] = []
    process(request_, models(), lambda *event: reported.append(event))
    assert [stage for stage, _, total in reported if total == 0] == STAGES
    assert [event for event in reported if event[0] == "load"][-1] == ("load", 24, 24)


def test_a_refused_series_leaves_no_summary(request_: Request) -> None:
    with pytest.raises(SeriesRefused) as raised:
        process(replace(request_, paths=()), models())
    assert raised.value.code == "no_instances"
    nothing = ByRule(lambda hu: {"LUNGS": np.zeros(hu.shape, np.uint8)})
    with pytest.raises(SeriesRefused) as raised:
        process(request_, nothing)
    assert raised.value.code == "no_lungs_found"
    assert list(request_.out.iterdir()) == []


def test_an_unknown_pipeline_names_those_there_are() -> None:
    with pytest.raises(PipelineError, match=r"'chest' isn't known; known are .*chest_ct_pneumonia") as raised:
        find_pipeline("chest")
    assert raised.value.code == "unknown_pipeline"
    assert find_pipeline("chest_ct_pneumonia") is PIPELINE


def test_a_stage_that_fails_is_timed_too() -> None:
    stages = Stages()
    with pytest.raises(ValueError, match="x"), stages("lungs"):
        raise ValueError("x")
    assert list(stages.seconds) == ["lungs"]


def test_a_tilted_gantry_moves_nothing(request_: Request, tmp_path: Path) -> None:
    """Each region is where it is in the patient, and as large, as if the gantry had been upright."""
    _, upright = chest()
    tilted, _ = chest("tilted")
    summary = process(replace(request_, paths=write(tilted, tmp_path / "tilted")), models())
    assert "The slices are tilted by 20.0 degrees (gantry tilt)." in summary["notes"]
    assert len(summary["findings"]) == len(upright.regions)
    for region in upright.regions:
        found = min(
            summary["findings"],
            key=lambda f: np.linalg.norm(np.subtract(f["centroid_lps_mm"], region.centroid_lps_mm)),
        )
        assert found["centroid_lps_mm"] == pytest.approx(region.centroid_lps_mm, abs=2.5)
        assert found["volume_ml"] == pytest.approx(region.volume_ml, rel=0.1)
        assert (found["type"], found["laterality"]) == (region.infection_type, region.laterality.name.lower())


@pytest.mark.parametrize("uneven", [False, True])
def test_results_of_a_repaired_series_are_on_its_images(
    request_: Request, tmp_path: Path, uneven: bool
) -> None:
    """One slice is missing or lies elsewhere: each frame of the SEG refers to an image, lies on its plane,
    and shows what the image shows."""
    volume, findings = chest(shape=(48, 96, 112), spacing=(4.0, 2.8, 2.4))
    paths = list(write(volume, tmp_path / "repaired"))
    if uneven:
        moved = dcmread(paths[23])
        moved.ImagePositionPatient[2] += 1.6
        moved.save_as(paths[23])
    else:
        del paths[23]
    summary = process(replace(request_, paths=tuple(paths)), models())
    assert any("interpolated" in note for note in summary["notes"])
    images = {str(image.SOPInstanceUID): image for image in map(dcmread, paths)}
    segmentation = dcmread(request_.out / "segmentation.dcm")
    labels = {int(item.SegmentNumber): str(item.SegmentLabel) for item in segmentation.SegmentSequence}
    assert {f"Region {f['number']}" for f in summary["findings"]} <= set(labels.values())
    shown = 0
    for frame, pixels in zip(
        segmentation.PerFrameFunctionalGroupsSequence, segmentation.pixel_array, strict=True
    ):
        reference = frame.DerivationImageSequence[0].SourceImageSequence[0]
        image = images[str(reference.ReferencedSOPInstanceUID)]
        assert frame.PlanePositionSequence[0].ImagePositionPatient == pytest.approx(
            image.ImagePositionPatient, abs=1e-6
        )
        number = int(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        lesion = labels[number] == "Consolidation"
        if lesion and not uneven:
            there = thresholds(image.pixel_array[None])["LABELS"][0] == Lesion.CONSOLIDATION
            np.testing.assert_array_equal(pixels.astype(bool), there & pixels.astype(bool))
            assert np.count_nonzero(pixels) > 0.95 * np.count_nonzero(there)
            shown += 1
    assert shown > 2 or uneven
    for lung in Lung:
        assert summary["lesion_volume_ml"][lung.name.lower()] == pytest.approx(
            findings.measures[lung].lesions_ml, rel=0.1
        )
