"""Findings -> one DICOM Segmentation (PS3.3 A.51, BINARY).

In: a Volume, its Findings and a ResultContext.  Out: a highdicom Segmentation on the source images' planes,
with a segment for each lung, each lesion type and each region that entered the Noisy-OR. Segments without a
voxel are left out (several viewers fail on a segment that has no frame); the report says what was looked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import UID

from pipelines.drawing import palette
from pipelines.errors import SeriesRefused
from pipelines.results import codes
from pipelines.results.identity import MANUFACTURER, SERIES_TYPES, result_uid, stamp
from pipelines.results.sources import clean_headers, frame_of_reference_uid, is_multiframe
from pipelines.volume import LESION_TYPES, Findings, Lung, ResultContext, Volume

# One number a voxel says everything about it: bits 0-1 lung, bits 2-3 lesion, the rest region number.
_LUNG_BITS, _LESION_BITS, _REGION_BITS = (0, 0x3), (2, 0x3), (4, 0xFFFF)


@dataclass(frozen=True)
class _Segment:
    label: str
    role: str
    category: Code
    kind: Code
    color: palette.RGB
    model: str  # name of the model that drew it
    bits: tuple[int, int]
    value: int
    laterality: Lung | None = None


def region_tracking(volume: Volume, context: ResultContext, number: int) -> tuple[str, UID]:
    """Tracking ID and UID of a region: the same in the SEG and in the report."""
    return f"Region {number}", result_uid(volume, context, f"region/{number}/tracking")


def build_segmentation(volume: Volume, findings: Findings, context: ResultContext) -> hd.seg.Segmentation:
    """Encode the findings' masks.

    Frames lie on the source images' planes (ImagePositionPatient, ImageOrientationPatient and PixelSpacing
    are the sources'), each referring to the image or frame that it lies on; empty frames are left out.

    Raises SeriesRefused when no voxel is lung (``no_lungs``), or when a source image's position disagrees
    with the volume's affine (``geometry_mismatch``).
    """
    coded = volume.on_source_planes(_coded(findings))
    segments = [s for s in _segments(findings) if _has_voxels(findings, s)]
    if not segments:
        raise SeriesRefused("no lung was found in the volume", code="no_lungs", hint="is it a chest CT?")
    series = SERIES_TYPES["segmentation"]
    segmentation = _LayeredSegmentation(
        source_images=clean_headers(volume, context),
        pixel_array=coded,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _description(n, segment, volume, context) for n, segment in enumerate(segments, start=1)
        ],
        layers={n: (segment.bits, segment.value) for n, segment in enumerate(segments, start=1)},
        series_instance_uid=result_uid(volume, context, "seg/series"),
        series_number=series.number,
        sop_instance_uid=result_uid(volume, context, "seg/instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=context.pipeline[:64],
        software_versions=context.software_version[:64],
        device_serial_number="",
        content_label="LUNG_LESIONS",
        content_description=series.description,
        omit_empty_frames=True,
    )
    _restore_frame_numbers(segmentation, volume)
    dimension_uid = result_uid(volume, context, "seg/dimension-organization")
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimension_uid
    stamp(segmentation, volume, context, series)
    segmentation.FrameOfReferenceUID = frame_of_reference_uid(volume, context)
    return segmentation


def segment_numbers(segmentation: Dataset) -> dict[str, int]:
    """Tracking UID -> Segment Number of every segment."""
    return {str(item.TrackingUID): int(item.SegmentNumber) for item in segmentation.SegmentSequence}


class _LayeredSegmentation(hd.seg.Segmentation):  # type: ignore[misc]  # highdicom is untyped for us
    """A Segmentation whose segments overlap, from one coded voxel array instead of one plane a segment.

    highdicom takes overlapping segments as a (slices, rows, columns, segments) stack: 4 GB for 300 slices
    with 50 regions. Its two pixel hooks are all that has to know about the
    coding. They are private, so the dependency is pinned to a minor version and a test covers this.
    """

    def __init__(self, *, layers: dict[int, tuple[tuple[int, int], int]], **arguments: object) -> None:
        self.__dict__["_layers"] = layers
        super().__init__(**arguments)

    def _check_and_cast_pixel_array(
        self, pixel_array: NDArray[np.unsignedinteger[Any]], *_arguments: object, **_keywords: object
    ) -> tuple[NDArray[np.unsignedinteger[Any]], hd.seg.SegmentsOverlapValues]:
        return pixel_array, hd.seg.SegmentsOverlapValues.YES

    def _get_segment_pixel_array(
        self, pixel_array: NDArray[np.unsignedinteger[Any]], segment_number: int, **_keywords: object
    ) -> NDArray[np.uint8]:
        (shift, mask), value = self.__dict__["_layers"][segment_number]
        selected: NDArray[np.uint8] = ((pixel_array >> shift & mask) == value).astype(np.uint8)
        return selected


def _coded(findings: Findings) -> NDArray[np.unsignedinteger[Any]]:
    most = max((region.number for region in findings.regions), default=0)
    enough = np.min_scalar_type((most + 1 << _REGION_BITS[0]) - 1)  # two bytes a voxel, if not one
    coded: NDArray[np.unsignedinteger[Any]] = findings.region_labels.astype(enough)
    np.left_shift(coded, _REGION_BITS[0] - _LESION_BITS[0], out=coded)
    coded |= findings.lesions
    np.left_shift(coded, _LESION_BITS[0], out=coded)
    coded |= findings.lungs
    return coded


def _has_voxels(findings: Findings, segment: _Segment) -> bool:
    arrays = {
        _LUNG_BITS: findings.lungs,
        _LESION_BITS: findings.lesions,
        _REGION_BITS: findings.region_labels,
    }
    return bool(np.any(arrays[segment.bits] == segment.value))


def _segments(findings: Findings) -> list[_Segment]:
    anatomy, abnormal = codes.ANATOMICAL_STRUCTURE, codes.ABNORMAL_STRUCTURE
    segments = [
        _Segment(
            f"{lung.name.capitalize()} lung",
            f"segment/lung-{lung.name.lower()}",
            *(anatomy, codes.LUNG, palette.LUNG[lung], "lungs", _LUNG_BITS, int(lung), lung),
        )
        for lung in (Lung.RIGHT, Lung.LEFT)
    ]
    segments += [
        _Segment(
            palette.NAMES[name],
            f"segment/{name}",
            *(abnormal, codes.LESION[lesion], palette.LESION[lesion], "lesions", _LESION_BITS, int(lesion)),
        )
        for name, lesion in LESION_TYPES.items()
    ]
    for region in findings.regions:
        lesion = LESION_TYPES[region.lesion_type]
        segments.append(
            _Segment(
                f"Region {region.number}",
                f"region/{region.number}/tracking",
                *(abnormal, codes.LESION[lesion], palette.LESION[lesion], "lesions"),
                *(_REGION_BITS, region.number, region.laterality),
            )
        )
    return segments


def _description(
    number: int, segment: _Segment, volume: Volume, context: ResultContext
) -> hd.seg.SegmentDescription:
    model = next((m for m in context.models if m.name == segment.model), None)
    name = model.name if model else context.pipeline
    version = model.version if model else context.pipeline_version
    algorithm = hd.AlgorithmIdentificationSequence(
        name=name,
        family=codes.ARTIFICIAL_INTELLIGENCE,
        version=version,
        source=MANUFACTURER,
        parameters={"sha256": model.sha256} if model else None,
    )
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=segment.label,
        segmented_property_category=segment.category,
        segmented_property_type=segment.kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=result_uid(volume, context, segment.role),
        tracking_id=segment.label,
        anatomic_regions=None if segment.kind == codes.LUNG else [codes.LUNG],
        display_color=hd.color.CIELabColor.from_rgb(*segment.color),
    )
    if segment.laterality is not None:
        side = codes.concept(codes.LATERALITY[segment.laterality])
        if segment.kind == codes.LUNG:
            description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
                side
            ]
        else:
            description.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [side]
    return description


def _restore_frame_numbers(segmentation: Dataset, volume: Volume) -> None:
    """Frame numbers of a multi-frame source: the header that highdicom saw had one frame a slice."""
    if not is_multiframe(volume):
        return
    references = {  # by identity: frames of several segments on one plane share one item
        id(image): image
        for frame in segmentation.PerFrameFunctionalGroupsSequence
        for derivation in frame.DerivationImageSequence
        for image in derivation.SourceImageSequence
    }
    for image in references.values():
        image.ReferencedFrameNumber = volume.source_frames[int(image.ReferencedFrameNumber) - 1][1]
