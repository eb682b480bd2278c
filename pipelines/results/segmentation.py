"""Findings -> one DICOM Segmentation (PS3.3 A.51), or Label Map Segmentation (A.51 of 2023 and later).

In: a Volume, its Findings, a ResultContext and an Encoding.  Out: a Dataset on the source images'
planes, with a segment for each lung, each lesion type and each region that entered the Noisy-OR.
Segments without a voxel are left out (several viewers fail on a segment that has no frame); the report says
what was looked for.

    BINARY      segments overlap: a region's voxels are also its lesion type's and its lung's
    FRACTIONAL  the same; lesions and regions have the lesion model's probability of each voxel
    LABELMAP    a voxel has one segment, the finest: region, else lesion type, else lung
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

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
from pipelines.results.frames import Mask, add_frames
from pipelines.results.identity import MANUFACTURER, SERIES_TYPES, result_uid, stamp
from pipelines.results.sources import (
    clean_header,
    frame_of_reference_uid,
    instance_references,
    referenced_series_sequence,
    slice_geometry,
)
from pipelines.volume import LESION_TYPES, Findings, Lung, ResultContext, Volume

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
    array: Literal["lungs", "lesions", "region_labels"]  # of Findings: where its voxels are …
    value: int  # … and what they have there
    laterality: Lung | None = None


def region_tracking(volume: Volume, context: ResultContext, number: int) -> tuple[str, UID]:
    """Tracking ID and UID of a region: the same in the SEG and in the report."""
    return f"Region {number}", result_uid(volume, context, f"region/{number}/tracking")


def build_segmentation(
    volume: Volume, findings: Findings, context: ResultContext, encoding: Encoding = DEFAULT
) -> Dataset:
    """Encode the findings' masks.

    Frames lie on the source images' planes (ImagePositionPatient, ImageOrientationPatient and PixelSpacing
    are the sources'), each referring to the image or frame that it lies on.

    Raises SeriesRefused when no voxel is lung (``no_lungs``), or when a source image's position disagrees
    with the volume's affine (``geometry_mismatch``).
    """
    segments = [s for s in _segments(findings) if _has_voxels(findings, s)]
    if not segments:
        raise SeriesRefused("no lung was found in the volume", code="no_lungs", hint="is it a chest CT?")
    if encoding.segmentation == "labelmap":
        segments = _seen(volume, findings, segments)
    # highdicom makes one plane of each; ``frames`` makes the others
    layers = () if encoding.segmentation == "labelmap" else (len(segments),)
    pixels = np.ones((1, *volume.hu.shape[1:], *layers), np.uint8)
    geometry = slice_geometry(volume)
    headers = [clean_header(volume, context, geometry, 0)]
    series = SERIES_TYPES["segmentation"]
    made = hd.seg.Segmentation(
        source_images=headers,
        pixel_array=pixels,
        segmentation_type=hd.seg.SegmentationTypeValues(encoding.segmentation.upper()),
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
    segmentation = Dataset()
    segmentation.update(made)
    segmentation.file_meta = made.file_meta
    masks = {"binary": _masks, "fractional": _fractions, "labelmap": _label_map}[encoding.segmentation]
    segmentation.SourceImageSequence = instance_references(volume)
    segmentation.ReferencedSeriesSequence = referenced_series_sequence(volume)
    add_frames(
        *(segmentation, volume, geometry, masks(volume, findings, segments)),
        omit_empty=encoding.empty_frames == "omit",
    )
    if encoding.segmentation == "labelmap":
        # the whole data set, when it is written: a third of RLE
        segmentation.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
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


def _masks(volume: Volume, findings: Findings, segments: list[_Segment]) -> Mask:
    arrays = {name: volume.on_source_planes(array) for name, array in _arrays(findings).items()}

    def mask(segment: int, plane: int) -> NDArray[np.uint8]:
        one = segments[segment]
        selected: NDArray[np.uint8] = (arrays[one.array][plane] == one.value).view(np.uint8)
        return selected

    return mask


def _fractions(volume: Volume, findings: Findings, segments: list[_Segment]) -> Mask:
    """Lesion types have their own probability everywhere; regions that of a lesion of either type."""
    masks = _masks(volume, findings, segments)
    found = findings.lesion_probabilities
    probabilities = None if found is None else [volume.on_source_planes(array) for array in found]

    def scaled(mask: NDArray[np.uint8], by: NDArray[np.uint8] | np.uint8) -> NDArray[np.uint8]:
        product: NDArray[np.uint8] = mask * by
        return product

    def fraction(segment: int, plane: int) -> NDArray[np.uint8]:
        one = segments[segment]
        if probabilities is None or one.array == "lungs":  # nobody has a probability of it
            return scaled(masks(segment, plane), np.uint8(_MAX_FRACTION))
        if one.array == "lesions":
            own: NDArray[np.uint8] = probabilities[one.value - 1][plane]
            return own
        both = probabilities[0][plane].astype(np.uint16) + probabilities[1][plane]
        return scaled(masks(segment, plane), np.minimum(both, _MAX_FRACTION).astype(np.uint8))

    return fraction


def _label_map(volume: Volume, findings: Findings, segments: list[_Segment]) -> Mask:
    """The number of each voxel's finest segment."""
    layers = []
    for name, array in _arrays(findings).items():  # coarse ones come first
        table = np.zeros(int(array.max()) + 1, np.min_scalar_type(len(segments)))
        for number, segment in enumerate(segments, start=1):
            if segment.array == name:
                table[segment.value] = number
        layers.append((volume.on_source_planes(array), table))

    def labels(_: int, plane: int) -> NDArray[np.unsignedinteger[Any]]:
        painted = np.zeros(volume.hu.shape[1:], layers[0][1].dtype)
        for array, table in layers:
            if array[plane].any():
                finer = table[array[plane]]
                np.copyto(painted, finer, where=finer > 0)
        return painted

    return labels


def _seen(volume: Volume, findings: Findings, segments: list[_Segment]) -> list[_Segment]:
    """Those that are some voxel's finest."""
    labels, seen = _label_map(volume, findings, segments), np.zeros(len(segments) + 1, np.bool_)
    for plane in range(len(volume.source_frames)):
        seen[labels(0, plane)] = True
    return [segment for segment, one in zip(segments, seen[1:], strict=True) if one]


def _arrays(findings: Findings) -> dict[str, NDArray[np.unsignedinteger[Any]]]:
    return {
        "lungs": findings.lungs,
        "lesions": findings.lesions,
        "region_labels": findings.region_labels,
    }


def _has_voxels(findings: Findings, segment: _Segment) -> bool:
    return any((plane == segment.value).any() for plane in _arrays(findings)[segment.array])  # to the first


def _segments(findings: Findings) -> list[_Segment]:
    anatomy, abnormal = codes.ANATOMICAL_STRUCTURE, codes.ABNORMAL_STRUCTURE
    segments = [
        _Segment(
            f"{lung.name.capitalize()} lung",
            f"segment/lung-{lung.name.lower()}",
            *(anatomy, codes.LUNG, palette.LUNG[lung], "lungs", "lungs", int(lung), lung),
        )
        for lung in (Lung.RIGHT, Lung.LEFT)
    ]
    segments += [
        _Segment(
            palette.NAMES[name],
            f"segment/{name}",
            *(abnormal, codes.LESION[lesion], palette.LESION[lesion], "lesions", "lesions", int(lesion)),
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
                *("region_labels", region.number, region.laterality),
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
