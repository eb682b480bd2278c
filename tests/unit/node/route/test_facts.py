"""Facts from headers: types, missing values, mixed series, geometry, enhanced multi-frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian

from node.receive.part10 import encode_header
from node.route.facts import FACTS, FactCollector, SeriesFacts, series_facts
from tests.integration.receiving import ct_slice, encoded
from tests.shared_data import shared


def collect(*images: Dataset) -> SeriesFacts:
    collector = FactCollector("1.2.3", "SCANNER")
    for image in images:
        collector.add(image, ExplicitVRLittleEndian)
    return collector.facts()


def test_a_plain_series() -> None:
    facts = collect(
        *(
            ct_slice(
                "1.2.3", n, SliceThickness="2.5", ConvolutionKernel=["B40f", "2"], GantryDetectorTilt="0"
            )
            for n in range(1, 5)
        )
    )
    assert set(facts.values) == set(FACTS)
    expected = {
        "modality": "CT",
        "sop_class": "CTImageStorage",
        "transfer_syntax_uid": ExplicitVRLittleEndian,
        "image_type": ("ORIGINAL", "PRIMARY", "AXIAL"),
        "body_part_examined": "CHEST",
        "slice_thickness_mm": 2.5,
        "spacing_between_positions_mm": 2.5,
        "position_count": 4,
        "instance_count": 4,
        "frame_count": 4,
        "orientation": "axial",
        "gantry_tilt_degrees": 0.0,
        "convolution_kernel": ("B40f", "2"),
        "contrast_agent": False,
        "rows": 16,
        "is_localizer": False,
        "calling_ae_title": "SCANNER",
        "series_description": None,
        "mixed_facts": None,
    }
    assert {name: facts[name] for name in expected} == expected


def test_empty_and_unreadable_values_are_missing() -> None:
    image = ct_slice("1.2.3", 1, BodyPartExamined="", ImageOrientationPatient=None)
    image.add_new("SliceThickness", "DS", "")
    image.add_new("SeriesDescription", "LO", "   ")
    facts = collect(image)
    for name in ("body_part_examined", "orientation", "slice_thickness_mm", "series_description"):
        assert facts[name] is None


def test_a_mixed_series_says_so_and_goes_with_the_majority() -> None:
    localizer = ct_slice(
        "1.2.3",
        9,
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
        ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
    )
    facts = collect(localizer, *(ct_slice("1.2.3", n) for n in range(3)))
    assert facts["image_type"] == ("ORIGINAL", "PRIMARY", "AXIAL")
    assert facts["orientation"] == "axial"
    assert facts["mixed_facts"] == ("image_type", "orientation")
    assert facts["localizer_count"] == 1
    assert facts["is_localizer"] is False
    assert facts["spacing_between_positions_mm"] is None  # not parallel
    assert collect(localizer)["is_localizer"] is True


@pytest.mark.parametrize(
    ("cosines", "expected"),
    [
        ([1, 0, 0, 0, 1, 0], "axial"),
        ([-1, 0, 0, 0, 1, 0], "axial"),
        ([1, 0, 0, 0, 0, -1], "coronal"),
        ([0, 1, 0, 0, 0, -1], "sagittal"),
        ([1, 0, 0, 0, 0.9483237, -0.3173047], "axial"),  # 18.5° of gantry tilt
        ([1, 0, 0, 0, 0.7071, -0.7071], "oblique"),
        ([0, 0, 0, 0, 0, 0], None),
    ],
)
def test_orientation(cosines: list[float], expected: str | None) -> None:
    assert collect(ct_slice("1.2.3", 1, ImageOrientationPatient=cosines))["orientation"] == expected


def test_spacing_is_along_the_normal_and_ignores_order_and_duplicates() -> None:
    images = [
        ct_slice("1.2.3", n, ImagePositionPatient=[7.0 * n, 0, z])
        for n, z in enumerate([10.0, 0.0, 5.0, 5.0, 30.0])
    ]
    facts = collect(*images)
    assert facts["position_count"] == 4
    assert facts["spacing_between_positions_mm"] == 5.0


def test_enhanced_multi_frame() -> None:
    image = ct_slice("1.2.3", 1, SOPClassUID=EnhancedCTImageStorage, NumberOfFrames=3)
    del image.ImageOrientationPatient, image.ImagePositionPatient
    shared_groups, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.SliceThickness = 3.0
    shared_groups.PlaneOrientationSequence = [orientation]
    shared_groups.PixelMeasuresSequence = [measures]
    image.SharedFunctionalGroupsSequence = [shared_groups]
    frames = []
    for z in (0, 3, 6):
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, z]
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    image.PerFrameFunctionalGroupsSequence = frames
    facts = collect(image)
    assert (facts["instance_count"], facts["frame_count"], facts["position_count"]) == (1, 3, 3)
    assert facts["spacing_between_positions_mm"] == 3.0
    assert facts["slice_thickness_mm"] == 3.0
    assert facts["orientation"] == "axial"


def test_damaged_files_are_counted(tmp_path: Path) -> None:
    image = ct_slice("1.2.3", 1)
    header = encode_header(
        sop_class_uid=image.SOPClassUID,
        sop_instance_uid=image.SOPInstanceUID,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        calling_ae_title="A",
    )
    (tmp_path / "good").write_bytes(header + encoded(image))
    (tmp_path / "cut_in_the_pixels").write_bytes(header + encoded(image)[:-100])
    (tmp_path / "noise").write_bytes(np.random.default_rng(1).bytes(500))
    facts = series_facts("1.2.3", [*sorted(tmp_path.iterdir()), tmp_path / "gone"])
    assert (facts["unreadable_count"], facts["instance_count"], facts["frame_count"]) == (2, 4, 2)
    assert facts["modality"] == "CT"


def test_free_text_is_not_storable() -> None:
    image = ct_slice("1.2.3", 1, SeriesDescription="CHEST Mr. Doe", StudyDate="20200101")
    facts = collect(image)
    assert facts["series_description"] == "CHEST Mr. Doe"
    assert "Doe" not in str(facts.storable())
    assert "20200101" not in str(facts.storable())


def test_no_patient_attribute_is_a_fact() -> None:
    assert not [name for name in FACTS if name.startswith("patient") and name != "patient_position"]


def test_a_real_tilted_head() -> None:
    paths = sorted(shared("geometry/ge_head_tilt_variable_spacing").iterdir())
    facts = series_facts("x", paths)
    assert facts["body_part_examined"] == "HEAD"
    assert facts["gantry_tilt_degrees"] == 18.5
    assert facts["orientation"] == "axial"
    assert "slice_thickness_mm" in facts["mixed_facts"]  # type: ignore[operator]
