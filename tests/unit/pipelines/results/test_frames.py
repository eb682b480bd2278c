"""Our frames of overlapping segments are those that highdicom makes of a stack of all masks."""

from __future__ import annotations

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from pipelines.encoding import Encoding, SegmentationType
from pipelines.results.frames import add_frames
from pipelines.results.segmentation import build_segmentation
from pipelines.results.sources import clean_header, slice_geometry
from pipelines.volume import Findings, Volume
from tests.unit.pipelines.results.synthetic import ORIENTATIONS, chest, context, without_plane


def by_highdicom(volume: Volume, findings: Findings, ours: Dataset, encoding: Encoding) -> Dataset:
    """The same segments, as a (planes, rows, columns, segments) stack, or as a label map."""
    descriptions = [item for item in ours.SegmentSequence if item.SegmentNumber > 0]  # 0: background
    labels = [str(item.SegmentLabel) for item in descriptions]
    masks = {
        "Right lung": findings.lungs == 1,
        "Left lung": findings.lungs == 2,
        "Ground glass opacity": findings.lesions == 1,
        "Consolidation": findings.lesions == 2,
        **{f"Region {r.number}": findings.region_labels == r.number for r in findings.regions},
    }
    stack = np.stack([volume.on_source_planes(masks[label]) for label in labels], axis=-1).astype(np.uint8)
    fractional = encoding.segmentation == "fractional"
    if encoding.segmentation == "labelmap":  # the finest, which is the last
        stack = (stack * np.arange(1, len(labels) + 1, dtype=np.uint8)).max(axis=-1)
    geometry = slice_geometry(volume)
    return hd.seg.Segmentation(
        source_images=[
            clean_header(volume, context(), geometry, plane) for plane in range(len(geometry.positions))
        ],
        pixel_array=stack.astype(np.float64) if fractional else stack,
        segmentation_type=encoding.segmentation.upper(),
        max_fractional_value=255,
        segment_descriptions=[hd.seg.SegmentDescription.from_dataset(item) for item in descriptions],
        series_instance_uid="1.2.3",
        series_number=1,
        sop_instance_uid="1.2.4",
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="m",
        software_versions="1",
        device_serial_number="1",
        transfer_syntax_uid=RLELossless if fractional else ExplicitVRLittleEndian,
        omit_empty_frames=encoding.empty_frames == "omit",
    )


@pytest.mark.parametrize(
    "encoding", ["binary-omit", "binary-include", "fractional-omit", "labelmap-omit", "labelmap-include"]
)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_frames_are_highdicoms(orientation: str, encoding: str) -> None:
    # 61 x 77 pixels: no frame ends with a byte
    shape = (12, 61, 77) if orientation == "axial" else (12, 48, 56)
    volume, findings = chest(orientation, shape=shape, spacing=(16.0, 4.6, 4.2))
    compare(volume, findings, Encoding.named(encoding))


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
@pytest.mark.parametrize("what", ["odd", "repaired", "gap"])
def test_of_other_inputs(what: str, kind: SegmentationType) -> None:
    volume, findings = chest("oblique", shape=(12, 48, 56), spacing=(16.0, 5.6, 4.8))
    if what == "odd":
        volume, findings = chest(shape=(5, 7, 9), spacing=(40.0, 40.0, 33.0), lesions=False)
    elif what == "repaired":
        volume, findings = without_plane(volume, findings, missing=5)
    else:  # no frame there, so the others are no regular volume
        for array in (findings.lungs, findings.lesions, findings.region_labels):
            array[5] = 0
    compare(volume, findings, Encoding(kind))


def compare(volume: Volume, findings: Findings, encoding: Encoding) -> None:
    ours = build_segmentation(volume, findings, context(), encoding)
    theirs = by_highdicom(volume, findings, ours, encoding)
    assert int(ours.NumberOfFrames) == theirs.NumberOfFrames
    assert ours.get("DimensionOrganizationType") == theirs.get("DimensionOrganizationType")
    for own, other in zip(
        ours.PerFrameFunctionalGroupsSequence, theirs.PerFrameFunctionalGroupsSequence, strict=True
    ):
        assert own.to_json_dict() == other.to_json_dict()
    whole = len(ours.PixelData)
    if encoding.segmentation != "fractional":  # highdicom pads an odd length with a digit 0
        whole = -(-int(ours.NumberOfFrames * ours.Rows * ours.Columns * ours.BitsAllocated) // 8)
    assert ours.PixelData[:whole] == theirs.PixelData[:whole]
    assert len(ours.PixelData) == len(theirs.PixelData)
    for keyword in ("SourceImageSequence", "ReferencedSeriesSequence", "SharedFunctionalGroupsSequence"):
        assert ours[keyword].to_json_dict(None, 0) == theirs[keyword].to_json_dict(None, 0), keyword


def test_frames_with_other_functional_groups_than_known_are_refused() -> None:
    volume, findings = chest(shape=(5, 20, 24), spacing=(40.0, 14.0, 12.0))
    segmentation = build_segmentation(volume, findings, context())
    del segmentation.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence
    with pytest.raises(ValueError, match="PlanePositionSequence"):
        add_frames(
            *(segmentation, volume, slice_geometry(volume), lambda *_: np.ones((20, 24), np.uint8)),
            omit_empty=True,
        )
