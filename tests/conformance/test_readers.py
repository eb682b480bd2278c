"""What other programs read out of delivered results is what we found, at the same place in the patient.

Each result goes by the node's own C-STORE to Orthanc and is fetched from there. The readers are dcmqi's
segimage2itkimage and tid1500reader, and highdicom.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from node.config import CStoreDestination
from node.deliver import make_destination
from node.demo.archive import AE_TITLE
from pipelines.load import load_series
from pipelines.results import ResultSet, write_result_set
from pipelines.results.report import build_report
from pipelines.results.segmentation import build_segmentation
from pipelines.results.validation import _find
from pipelines.volume import Findings, Volume
from tests.integration.receiving import dataset_bytes
from tests.integration.running import Pacs, orthanc_program
from tests.unit.pipelines.results.synthetic import chest, context
from tests.unit.pipelines.results.test_segmentation import expected, needs_dcmqi, read_by_dcmqi, sitk_grid
from tests.unit.pipelines.test_process import models
from tests.unit.pipelines.test_storage_forms import FORMS, analyse, turned, write

pytestmark = pytest.mark.integration

#: A lesion near the right, anterior, superior corner of the right lung, longest from side to side: LPS mm
CORNER_MM, CORNER_RADII_MM = np.array([-66.0, -22.0, 38.0]), np.array([18.0, 12.0, 14.0])


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    # the same chest in several forms has the same UIDs
    pacs = Pacs(orthanc_program(), tmp_path_factory.mktemp("archive"), OverwriteInstances=True)
    yield pacs
    pacs.stop()


def delivered(archive: Pacs, folder: Path, **objects: Any) -> dict[str, Path]:
    """Write the objects, send them by the node's C-STORE, fetch them; name -> fetched file."""
    entries = write_result_set(ResultSet(tuple(objects.items())), folder / "sent")
    config = CStoreDestination(type="cstore", ae_title=AE_TITLE, host="127.0.0.1", port=archive.port)
    make_destination("pacs", config, calling_ae_title="PACSNODE").deliver([entry.path for entry in entries])
    fetched = {}
    for entry in entries:
        content = archive.fetch(entry.sop_instance_uid)
        assert content is not None, entry
        fetched[entry.path.stem] = folder / f"{entry.path.stem}.dcm"
        fetched[entry.path.stem].write_bytes(content)
        assert dataset_bytes(fetched[entry.path.stem]) == dataset_bytes(entry.path)
    return fetched


@dataclass(frozen=True)
class Case:
    volume: Volume
    findings: Findings
    segmentation: Path
    report: Path


@pytest.fixture(scope="module")
def case(archive: Pacs, tmp_path_factory: pytest.TempPathFactory) -> Case:
    volume, findings = chest("oblique")
    segmentation = build_segmentation(volume, findings, context())
    report = build_report(volume, findings, segmentation, context())
    files = delivered(archive, tmp_path_factory.mktemp("case"), segmentation=segmentation, report=report)
    return Case(volume, findings, files["segmentation"], files["report"])


@needs_dcmqi
def test_dcmqi_reads_our_masks(case: Case, tmp_path: Path) -> None:
    read = read_by_dcmqi(case.segmentation, tmp_path)
    masks = expected(case.findings)
    assert set(read) == set(masks)
    for label, image in read.items():
        placed = sitk.Resample(image, sitk_grid(case.volume), sitk.Transform(), sitk.sitkNearestNeighbor, 0)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(placed) > 0, masks[label], err_msg=label)


def read_by_tid1500reader(path: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Tracking identifier -> the measurement group on a segment, as tid1500reader's JSON has it."""
    reader = _find("tid1500reader")
    assert reader is not None
    output = folder / "report.json"
    command = [reader, "--inputDICOM", str(path), "--outputMetadata", str(output)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    groups = json.loads(output.read_text())["Measurements"]
    return {group["TrackingIdentifier"]: group for group in groups if "ReferencedSegment" in group}


def numbers(group: dict[str, Any], meaning: str) -> list[float]:
    """Values of this quantity, in the report's order."""
    return [
        float(item["value"])
        for item in group["measurementItems"]
        if item["quantity"]["CodeMeaning"] == meaning
    ]


@needs_dcmqi
def test_tid1500reader_reads_our_regions(case: Case, tmp_path: Path) -> None:
    groups = read_by_tid1500reader(case.report, tmp_path)
    segmentation = hd.seg.segread(case.segmentation)
    for region in case.findings.regions:
        group = groups[f"Region {region.number}"]
        assert numbers(group, "Volume") == [pytest.approx(region.volume_ml, abs=5e-4)]
        assert numbers(group, "Mean Attenuation Coefficient") == [pytest.approx(region.mean_hu, abs=0.05)]
        assert numbers(group, "Probability") == [pytest.approx(region.probability, abs=1e-10)]
        assert group["Laterality"]["CodeMeaning"] == region.laterality.name.capitalize()
        segment = segmentation.SegmentSequence[group["ReferencedSegment"] - 1]
        assert group["segmentationSOPInstanceUID"] == segmentation.SOPInstanceUID
        assert group["TrackingUniqueIdentifier"] == segment.TrackingUID
        assert segment.TrackingID == f"Region {region.number}"


@needs_dcmqi
def test_the_noisy_or_follows_from_what_tid1500reader_reads(case: Case, tmp_path: Path) -> None:
    groups = read_by_tid1500reader(case.report, tmp_path)
    regions = [group for name, group in groups.items() if name.startswith("Region")]
    for infection, finding, name in (
        ("covid19", "COVID-19", "Noisy-OR probability of COVID-19"),
        ("iavp", "Pneumonia caused by Influenza A virus", "Noisy-OR probability of influenza A pneumonia"),
    ):
        of_type = [group for group in regions if group["Finding"]["CodeMeaning"] == finding]
        again = 1.0 - math.prod(1.0 - numbers(group, "Probability")[0] for group in of_type)
        assert numbers(groups["Case"], name) == [pytest.approx(again, abs=5e-7)]
        assert again == pytest.approx(case.findings.noisy_or[infection], abs=1e-9)


@needs_dcmqi
def test_tid1500reader_reads_what_the_lungs_measure(case: Case, tmp_path: Path) -> None:
    group = read_by_tid1500reader(case.report, tmp_path)["Case"]
    measures = case.findings.measures.values()
    assert numbers(group, "Volume") == [pytest.approx(lung.volume_ml, abs=0.05) for lung in measures]
    assert numbers(group, "Volume of lesions in the lung") == [
        pytest.approx(lung.lesions_ml, abs=5e-4) for lung in measures
    ]
    assert numbers(group, "Mean Attenuation Coefficient") == [
        pytest.approx(lung.mean_hu, abs=0.05) for lung in measures
    ]


def test_highdicom_reads_both_back(case: Case) -> None:
    segmentation = hd.seg.segread(case.segmentation)
    uids = [source.SOPInstanceUID for source in case.volume.sources]
    pixels = segmentation.get_pixels_by_source_instance(uids, ignore_spatial_locations=True)
    for number, (label, mask) in enumerate(expected(case.findings).items()):
        np.testing.assert_array_equal(pixels[..., number] > 0, mask, err_msg=label)
    content = hd.sr.srread(case.report).content
    groups = {group.tracking_identifier: group for group in content.get_volumetric_roi_measurement_groups()}
    for region in case.findings.regions:
        group = groups[f"Region {region.number}"]
        (segment,) = segmentation.get_segment_numbers(tracking_uid=group.tracking_uid)
        assert list(group.referenced_segment[0].referenced_segment_numbers) == [segment]


def marked(orientation: str = "axial") -> Volume:
    """A chest whose only lesion is the corner's."""
    volume, _ = chest(orientation, lesions=False, shape=(48, 96, 112), spacing=(4.0, 2.8, 2.4))
    index = np.moveaxis(np.indices(volume.hu.shape), 0, -1).reshape(-1, 3).astype(np.float64)
    offset = (volume.to_patient(index) - CORNER_MM) / CORNER_RADII_MM
    inside = ((offset**2).sum(axis=1) <= 1.0).reshape(volume.hu.shape)
    volume.hu[inside & (volume.hu < -700)] = -550
    return volume


def stored(form: str, folder: Path) -> list[Path]:
    """The marked chest as a series stored in this form."""
    if form in FORMS:
        return write(*turned(marked(), *FORMS[form]), folder)
    volume = marked(form)
    return write(volume.hu, volume.affine, folder)


def place_of(image: sitk.Image) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centroid and half extents of a mask, LPS mm, by ITK's own geometry."""
    voxels = np.argwhere(sitk.GetArrayFromImage(image) > 0)[:, ::-1]
    direction = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    points = voxels @ direction.T + image.GetOrigin()
    return points.mean(axis=0), np.ptp(points, axis=0) / 2


@needs_dcmqi
@pytest.mark.parametrize("form", ["axial", "oblique", "reversed", *FORMS])
def test_the_corner_is_in_the_same_place_however_the_series_is_stored(
    form: str, archive: Pacs, tmp_path: Path
) -> None:
    """From files to a delivered segmentation: load, analyse, encode, send; then read by dcmqi."""
    volume = load_series(stored(form, tmp_path / "series"))
    segmentation = build_segmentation(volume, analyse(volume, models()), context())
    files = delivered(archive, tmp_path, segmentation=segmentation)
    centroid, extents = place_of(read_by_dcmqi(files["segmentation"], tmp_path)["Ground glass opacity"])
    np.testing.assert_allclose(centroid, CORNER_MM, atol=1.0)
    np.testing.assert_allclose(extents, CORNER_RADII_MM, atol=3.0)
