"""The SEG says the right thing about the right voxels, read by dcmqi and SimpleITK, not by us."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sysconfig
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom import dcmread

from pipelines.errors import SeriesRefused
from pipelines.results import codes
from pipelines.results.segmentation import build_segmentation, region_tracking, segment_numbers
from pipelines.volume import LESION_TYPES, Findings, Volume
from tests.unit.pipelines.results.synthetic import ORIENTATIONS, chest, context, without_plane

READER = shutil.which("segimage2itkimage", path=f"{sysconfig.get_path('scripts')}:/usr/bin")
needs_dcmqi = pytest.mark.skipif(
    READER is None, reason="segimage2itkimage (pip install dcmqi) isn't installed"
)


def corner_marked(orientation: str, *, enhanced: bool = False) -> tuple[Volume, Findings]:
    """A chest whose lesion also fills an asymmetric corner: any flip or shift moves it."""
    volume, findings = chest(orientation, enhanced=enhanced)
    findings.lesions[0, :5, :3] = 1
    findings.lungs[0, :5, :3] = 1
    findings.region_labels[0, :5, :3] = 1
    return volume, findings


def expected(findings: Findings) -> dict[str, NDArray[np.bool_]]:
    masks = {
        "Right lung": findings.lungs == 1,
        "Left lung": findings.lungs == 2,
        "Ground glass opacity": findings.lesions == 1,
        "Consolidation": findings.lesions == 2,
    }
    masks.update({f"Region {r.number}": findings.region_labels == r.number for r in findings.regions})
    return masks


def sitk_grid(volume: Volume) -> sitk.Image:
    image = sitk.GetImageFromArray(volume.hu)
    spacing = volume.spacing_mm
    image.SetOrigin(volume.affine[:3, 3].tolist())
    image.SetSpacing(spacing[::-1])
    direction = volume.affine[:3, :3][:, ::-1] / np.array(spacing[::-1])
    # ITK wants right-handed or left-handed orthonormal directions; both are allowed
    image.SetDirection(direction.ravel().tolist())
    return image


def read_by_dcmqi(path: Path, folder: Path) -> dict[str, sitk.Image]:
    assert READER is not None
    command = [READER, "--inputDICOM", str(path), "--outputDirectory", str(folder), "-t", "nrrd", "-p", "s"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    described = json.loads((folder / "s-meta.json").read_text())["segmentAttributes"]
    return {
        segment["SegmentLabel"]: sitk.ReadImage(str(folder / f"s-{segment['labelID']}.nrrd"))
        for group in described
        for segment in group
    }


@needs_dcmqi
@pytest.mark.parametrize("orientation", [name for name in ORIENTATIONS if name != "tilted"])
def test_masks_land_on_the_same_voxels_for_an_independent_reader(orientation: str, tmp_path: Path) -> None:
    volume, findings = corner_marked(orientation)
    path = tmp_path / "seg.dcm"
    build_segmentation(volume, findings, context()).save_as(path, enforce_file_format=True)
    read = read_by_dcmqi(path, tmp_path)
    masks = expected(findings)
    assert set(read) == set(masks)
    reference = sitk_grid(volume)
    for label, image in read.items():
        placed = sitk.Resample(image, reference, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
        found = sitk.GetArrayFromImage(placed) > 0
        dice = 2 * (found & masks[label]).sum() / (found.sum() + masks[label].sum())
        assert dice == 1.0, label


@needs_dcmqi
def test_masks_of_a_repaired_series_are_on_the_planes_that_there_are(tmp_path: Path) -> None:
    """No frame where the slice is missing; dcmqi finds all others at their place."""
    volume, findings = without_plane(*chest("oblique"), missing=11)
    path = tmp_path / "seg.dcm"
    build_segmentation(volume, findings, context()).save_as(path, enforce_file_format=True)
    read = read_by_dcmqi(path, tmp_path)
    masks = expected(findings)
    assert set(read) == set(masks)
    for label, image in read.items():
        placed = sitk.Resample(image, sitk_grid(volume), sitk.Transform(), sitk.sitkNearestNeighbor, 0)
        found = sitk.GetArrayFromImage(placed) > 0
        assert not found[11].any(), label
        np.testing.assert_array_equal(volume.on_source_planes(found), volume.on_source_planes(masks[label]))


def test_masks_of_a_tilted_series_lie_on_its_planes(tmp_path: Path) -> None:
    """dcmqi reads upright stacks only, so frame by frame here."""
    volume, findings = corner_marked("tilted")
    path = tmp_path / "seg.dcm"
    build_segmentation(volume, findings, context()).save_as(path, enforce_file_format=True)
    read = dcmread(path)
    labels = {int(item.SegmentNumber): str(item.SegmentLabel) for item in read.SegmentSequence}
    found = {label: np.zeros(volume.hu.shape, bool) for label in labels.values()}
    planes = {tuple(source.ImagePositionPatient): k for k, source in enumerate(volume.sources)}
    for frame, pixels in zip(read.PerFrameFunctionalGroupsSequence, read.pixel_array, strict=True):
        number = int(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        found[labels[number]][planes[tuple(frame.PlanePositionSequence[0].ImagePositionPatient)]] = pixels
    for label, mask in expected(findings).items():
        np.testing.assert_array_equal(found[label], mask, err_msg=label)
    shared = read.SharedFunctionalGroupsSequence[0]
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == pytest.approx(
        volume.sources[0].ImageOrientationPatient
    )
    assert shared.PixelMeasuresSequence[0].SpacingBetweenSlices == pytest.approx(8 * np.cos(np.radians(20)))


@needs_dcmqi
def test_enhanced_ct_refers_to_its_own_frame_numbers(tmp_path: Path) -> None:
    volume, findings = corner_marked("axial", enhanced=True)
    segmentation = build_segmentation(volume, findings, context())
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        number = int(source.ReferencedFrameNumber)
        original = volume.sources[0].PerFrameFunctionalGroupsSequence[number - 1]
        np.testing.assert_allclose(
            frame.PlanePositionSequence[0].ImagePositionPatient,
            original.PlanePositionSequence[0].ImagePositionPatient,
            atol=1e-5,
        )
    path = tmp_path / "seg.dcm"
    segmentation.save_as(path, enforce_file_format=True)
    image = read_by_dcmqi(path, tmp_path)["Region 1"]
    placed = sitk.Resample(image, sitk_grid(volume), sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(placed) > 0, findings.region_labels == 1)


def test_overlapping_segments_read_back_by_highdicom(tmp_path: Path) -> None:
    volume, findings = corner_marked("oblique")
    path = tmp_path / "seg.dcm"
    build_segmentation(volume, findings, context()).save_as(path, enforce_file_format=True)
    segmentation = hd.seg.segread(path)
    assert segmentation.SegmentsOverlap == "YES"
    uids = [source.SOPInstanceUID for source in volume.sources]
    pixels = segmentation.get_pixels_by_source_instance(uids, ignore_spatial_locations=True)
    for number, (label, mask) in enumerate(expected(findings).items(), start=1):
        assert segmentation.SegmentSequence[number - 1].SegmentLabel == label
        np.testing.assert_array_equal(pixels[..., number - 1] > 0, mask)


def test_no_frame_is_empty_and_every_source_is_referenced() -> None:
    volume, findings = chest()
    segmentation = build_segmentation(volume, findings, context())
    assert segmentation.pixel_array.reshape(segmentation.NumberOfFrames, -1).any(axis=1).all()
    references = segmentation.ReferencedSeriesSequence[0]
    assert references.SeriesInstanceUID == volume.series_instance_uid
    listed = {item.ReferencedSOPInstanceUID for item in references.ReferencedInstanceSequence}
    assert listed == {source.SOPInstanceUID for source in volume.sources}


def test_segments_are_coded_tracked_and_name_their_model() -> None:
    volume, findings = chest()
    segmentation = build_segmentation(volume, findings, context())
    for item in segmentation.SegmentSequence:
        algorithm = item.SegmentationAlgorithmIdentificationSequence[0]
        model = "lungs" if "lung" in item.SegmentLabel else "lesions"
        assert (algorithm.AlgorithmName, item.SegmentAlgorithmType) == (model, "AUTOMATIC")
        assert "sha256=" in algorithm.AlgorithmParameters
    numbers = segment_numbers(segmentation)
    for region in findings.regions:
        identifier, uid = region_tracking(volume, context(), region.number)
        item = segmentation.SegmentSequence[numbers[uid] - 1]
        assert item.TrackingID == identifier
        kind = codes.LESION[LESION_TYPES[region.lesion_type]]
        assert item.SegmentedPropertyTypeCodeSequence[0].CodeValue == kind.value
    right = segmentation.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
    assert right.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Right"


def test_segments_without_voxels_are_left_out() -> None:
    volume, findings = chest(lesions=False)
    segmentation = build_segmentation(volume, findings, context())
    assert [item.SegmentLabel for item in segmentation.SegmentSequence] == ["Right lung", "Left lung"]


def test_no_lung_is_refused() -> None:
    volume, findings = chest(lesions=False)
    findings.lungs[:] = 0
    with pytest.raises(SeriesRefused) as refused:
        build_segmentation(volume, findings, context())
    assert refused.value.code == "no_lungs"


@pytest.mark.parametrize("fault", ["shifted", "row_flipped"])
def test_an_affine_that_disagrees_with_the_images_is_refused(fault: str) -> None:
    volume, findings = chest()
    affine = volume.affine.copy()
    if fault == "shifted":
        affine[:3, 3] += affine[:3, 0] * 0.5
    else:
        affine[:3, 1] *= -1
    with pytest.raises(SeriesRefused) as refused:
        build_segmentation(dataclasses.replace(volume, affine=affine), findings, context())
    assert refused.value.code == "geometry_mismatch"


def test_a_missing_frame_of_reference_gets_one_of_its_own() -> None:
    volume, findings = chest(FrameOfReferenceUID=None)
    segmentation = build_segmentation(volume, findings, context())
    assert segmentation.FrameOfReferenceUID.startswith("2.25.")


def test_more_regions_than_a_byte_can_count() -> None:
    volume, findings = chest(shape=(12, 48, 56), spacing=(16.0, 5.6, 4.8))
    labels = np.zeros(volume.hu.shape, np.uint16)
    labels[6, 4, 4] = 300
    regions = tuple(dataclasses.replace(findings.regions[0], number=n) for n in (1, 300))
    findings.lungs[6, 4, 4] = 1
    findings = dataclasses.replace(findings, region_labels=labels, regions=regions)  # type: ignore[arg-type]  # more than a byte counts
    segmentation = build_segmentation(volume, findings, context())
    assert segmentation.SegmentSequence[-1].SegmentLabel == "Region 300"
    assert segmentation.pixel_array[-1, 4, 4] == 1 and segmentation.pixel_array[-1].sum() == 1
