"""Findings -> one DICOM Segmentation (PS3.3 A.51), or Label Map Segmentation (A.51 of 2023 and later).

In: a Volume, its Findings, a ResultContext and an Encoding.  Out: a highdicom Segmentation on the source
images' planes, with a segment for each lung, each lesion type and each region that entered the Noisy-OR.
Segments without a voxel are left out (several viewers fail on a segment that has no frame); the report says
what was looked for.

    BINARY      segments overlap: a region's voxels are also its lesion type's and its lung's
    FRACTIONAL  the same; lesions and regions have the lesion model's probability of each voxel
    LABELMAP    a voxel has one segment, the finest: region, else lesion type, else lung
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless

from pipelines.drawing import palette
from pipelines.encoding import DEFAULT, Encoding
from pipelines.errors import SeriesRefused
from pipelines.results import codes
from pipelines.results.identity import MANUFACTURER, SERIES_TYPES, result_uid, stamp
from pipelines.results.sources import clean_headers, frame_of_reference_uid, is_multiframe
from pipelines.volume import LESION_TYPES, Findings, Lesion, Lung, ResultContext, Volume

# One number a voxel says everything about it: bits 0-1 lung, bits 2-3 lesion, the rest region number.
_LUNG_BITS, _LESION_BITS, _REGION_BITS = (0, 0x3), (2, 0x3), (4, 0xFFF)
#: with probabilities: lesion label -> where its own is, 0 to 255
_PROBABILITY_BITS = {Lesion.GROUND_GLASS: 16, Lesion.CONSOLIDATION: 24}
_MAX_FRACTION = 255
#: BINARY packs eight voxels a byte; a byte a voxel is coded. RLE, because DCMTK and dcmqi read no JPEG-LS in
#: segmentations.
_TRANSFER_SYNTAX = {
    "binary": ExplicitVRLittleEndian,
    "labelmap": ExplicitVRLittleEndian,
    "fractional": RLELossless,
}


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


def build_segmentation(
    volume: Volume, findings: Findings, context: ResultContext, encoding: Encoding = DEFAULT
) -> hd.seg.Segmentation:
    """Encode the findings' masks.

    Frames lie on the source images' planes (ImagePositionPatient, ImageOrientationPatient and PixelSpacing
    are the sources'), each referring to the image or frame that it lies on.

    Raises SeriesRefused when no voxel is lung (``no_lungs``), or when a source image's position disagrees
    with the volume's affine (``geometry_mismatch``).
    """
    kind = hd.seg.SegmentationTypeValues(encoding.segmentation.upper())
    segments = [s for s in _segments(findings) if _has_voxels(findings, s)]
    if not segments:
        raise SeriesRefused("no lung was found in the volume", code="no_lungs", hint="is it a chest CT?")
    coded: dict[str, Any] = {}
    if encoding.segmentation == "labelmap":
        make, (labels, segments) = hd.seg.Segmentation, _label_map(findings, segments)
        coded["pixel_array"] = volume.on_source_planes(labels)
    else:
        make = _LayeredSegmentation
        coded["pixel_array"] = volume.on_source_planes(
            _coded(findings, fractional=kind.value == "FRACTIONAL")
        )
        coded["layers"] = dict(enumerate(segments, start=1))
    series = SERIES_TYPES["segmentation"]
    segmentation = make(
        **coded,
        source_images=clean_headers(volume, context),
        segmentation_type=kind,
        max_fractional_value=_MAX_FRACTION,
        transfer_syntax_uid=_TRANSFER_SYNTAX[encoding.segmentation],
        segment_descriptions=[
            _description(n, segment, volume, context) for n, segment in enumerate(segments, start=1)
        ],
        series_instance_uid=result_uid(volume, context, f"seg/series{encoding.suffix}"),
        series_number=series.number,
        sop_instance_uid=result_uid(volume, context, f"seg/instance{encoding.suffix}"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=context.pipeline[:64],
        software_versions=context.software_version[:64],
        device_serial_number="",
        content_label="LUNG_LESIONS",
        content_description=series.description,
        omit_empty_frames=encoding.empty_frames == "omit",
    )
    if encoding.segmentation == "labelmap":  # the whole data set, when it is written: a third of RLE
        segmentation.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    _restore_frame_numbers(segmentation, volume)
    dimension_uid = result_uid(volume, context, f"seg/dimension-organization{encoding.suffix}")
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimension_uid
    stamp(segmentation, volume, context, series)
    segmentation.FrameOfReferenceUID = frame_of_reference_uid(volume, context)
    return segmentation


def segment_numbers(segmentation: Dataset) -> dict[str, int]:
    """Tracking UID -> Segment Number of every segment."""
    return {
        str(item.TrackingUID): int(item.SegmentNumber)
        for item in segmentation.SegmentSequence
        if "TrackingUID" in item  # a label map's background has none
    }


class _LayeredSegmentation(hd.seg.Segmentation):  # type: ignore[misc]  # highdicom is untyped for us
    """A Segmentation whose segments overlap, from one coded voxel array instead of one plane a segment.

    highdicom takes overlapping segments as a (slices, rows, columns, segments) stack: 4 GB for 300 slices
    with 50 regions. Its two pixel hooks are all that has to know about the
    coding. They are private, so the dependency is pinned to a minor version and a test covers this.
    """

    def __init__(self, *, layers: dict[int, _Segment], **arguments: object) -> None:
        self.__dict__["_layers"] = layers
        super().__init__(**arguments)

    def _check_and_cast_pixel_array(
        self, pixel_array: NDArray[np.unsignedinteger[Any]], *_arguments: object, **_keywords: object
    ) -> tuple[NDArray[np.unsignedinteger[Any]], hd.seg.SegmentsOverlapValues]:
        return pixel_array, hd.seg.SegmentsOverlapValues.YES

    def _get_segment_pixel_array(
        self,
        pixel_array: NDArray[np.unsignedinteger[Any]],
        segment_number: int,
        segmentation_type: hd.seg.SegmentationTypeValues = hd.seg.SegmentationTypeValues.BINARY,
        **_keywords: object,
    ) -> NDArray[np.uint8]:
        segment: _Segment = self.__dict__["_layers"][segment_number]
        shift, mask = segment.bits
        selected: NDArray[np.uint8] = ((pixel_array >> shift & mask) == segment.value).astype(np.uint8)
        if segmentation_type != hd.seg.SegmentationTypeValues.FRACTIONAL:
            return selected
        if pixel_array.itemsize < 4 or segment.bits == _LUNG_BITS:  # nobody has a probability of it
            return selected * np.uint8(_MAX_FRACTION)
        of_type = [(pixel_array >> bits & 0xFF).astype(np.uint8) for bits in _PROBABILITY_BITS.values()]
        if segment.bits == _LESION_BITS:
            return of_type[segment.value - 1]
        either = np.minimum(of_type[0].astype(np.uint16) + of_type[1], _MAX_FRACTION).astype(np.uint8)
        return selected * either


def _label_map(
    findings: Findings, segments: list[_Segment]
) -> tuple[NDArray[np.unsignedinteger[Any]], list[_Segment]]:
    """(slices, rows, columns) numbers, of the finest segment of each voxel; and the segments with voxels."""
    arrays = _arrays(findings)

    def painted(over: list[_Segment]) -> NDArray[np.unsignedinteger[Any]]:
        labels = np.zeros(findings.lungs.shape, np.min_scalar_type(len(over)))
        for number, segment in enumerate(over, start=1):  # coarse ones come first
            labels[arrays[segment.bits] == segment.value] = number
        return labels

    labels = painted(segments)
    counts = np.bincount(labels.ravel(), minlength=len(segments) + 1)[1:]
    if counts.all():
        return labels, segments
    kept = [segment for segment, count in zip(segments, counts, strict=True) if count]
    return painted(kept), kept


def _coded(findings: Findings, *, fractional: bool = False) -> NDArray[np.unsignedinteger[Any]]:
    probabilities = findings.lesion_probabilities if fractional else None
    most = max((region.number for region in findings.regions), default=0)
    enough = np.min_scalar_type((most + 1 << _REGION_BITS[0]) - 1)  # two bytes a voxel, if not one
    if probabilities is not None:
        enough = np.dtype(np.uint32)
    coded: NDArray[np.unsignedinteger[Any]] = findings.region_labels.astype(enough)
    np.left_shift(coded, _REGION_BITS[0] - _LESION_BITS[0], out=coded)
    coded |= findings.lesions
    np.left_shift(coded, _LESION_BITS[0], out=coded)
    coded |= findings.lungs
    if probabilities is not None:
        for lesion, shift in _PROBABILITY_BITS.items():
            coded |= probabilities[lesion - 1].astype(np.uint32) << shift
    return coded


def _arrays(findings: Findings) -> dict[tuple[int, int], NDArray[np.uint8]]:
    return {
        _LUNG_BITS: findings.lungs,
        _LESION_BITS: findings.lesions,
        _REGION_BITS: findings.region_labels,
    }


def _has_voxels(findings: Findings, segment: _Segment) -> bool:
    return bool(np.any(_arrays(findings)[segment.bits] == segment.value))


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
    model = next((m for m in context.models if m.role == segment.model), None)
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
