"""The input series as result objects refer to it.

In: a Volume, whose headers are whatever scanners and anonymisers left.  Out: small clean headers for
highdicom, per-slice geometry taken from the source images, and references to every source instance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.uid import UID

from pipelines.errors import SeriesRefused
from pipelines.geometry import SPACING_TOLERANCE_MM
from pipelines.results import codes
from pipelines.results.identity import result_uid
from pipelines.volume import ResultContext, SourceImages, Volume

# of the slice spacing, or half as much again as the geometry gate lets a plane be off its slice: more than
# rounding and jitter, less than any mix-up
_POSITION_TOLERANCE, _POSITION_TOLERANCE_MM = 0.15, 1.5 * SPACING_TOLERANCE_MM


@dataclass(frozen=True)
class SliceGeometry:
    """Where the acquired slices of a volume are, in the words of the source images (PS3.3 C.7.6.2.1.1).

    orientation: ImageOrientationPatient, direction cosines of a row then of a column.
    positions: ImagePositionPatient of each acquired slice, LPS mm, in slice order.
    pixel_spacing: mm between rows, mm between columns.  slice_spacing: of the volume, mm.
    slice_thickness: mm.
    """

    orientation: tuple[float, ...]
    positions: tuple[tuple[float, float, float], ...]
    pixel_spacing: tuple[float, float]
    slice_spacing: float
    slice_thickness: float


def is_multiframe(volume: SourceImages) -> bool:
    """Whether the input is enhanced multi-frame (one instance holds the slices)."""
    return "SharedFunctionalGroupsSequence" in volume.sources[0]


def slice_geometry(volume: Volume) -> SliceGeometry:
    """Read each slice's plane from its source image or frame, and check it against the affine.

    Raises SeriesRefused (``geometry_mismatch``) when an image's position and the affine disagree: a mask
    drawn on the affine's grid would land elsewhere when a viewer overlays it on the image.
    """
    spacing = volume.spacing_mm
    orientation = _plane_value(volume, 0, "PlaneOrientationSequence", "ImageOrientationPatient")
    pixel_spacing = _plane_value(volume, 0, "PixelMeasuresSequence", "PixelSpacing")
    positions = [
        tuple(float(x) for x in _plane_value(volume, s, "PlanePositionSequence", "ImagePositionPatient"))
        for s in range(len(volume.source_frames))
    ]
    # Of each plane, the first voxel and the last one: the latter also tells orientation and pixel spacing.
    slices = np.array(volume.source_slices or range(len(positions)), np.float64)
    ends = (volume.hu.shape[1] - 1.0, volume.hu.shape[2] - 1.0)
    row, column = np.array(orientation[:3], np.float64), np.array(orientation[3:], np.float64)
    diagonal = column * ends[0] * float(pixel_spacing[0]) + row * ends[1] * float(pixel_spacing[1])
    first = np.stack([slices, 0 * slices, 0 * slices], axis=1)
    last = np.stack([slices, 0 * slices + ends[0], 0 * slices + ends[1]], axis=1)
    here, there = volume.to_patient(first) - positions, volume.to_patient(last) - positions - diagonal
    if volume.source_slices:
        # Between slices that were interpolated, an acquired one lies up to half a slice from the nearest.
        way = volume.affine[:3, 0] / spacing[0]
        along = np.clip(here @ way, -spacing[0] / 2, spacing[0] / 2)[:, None] * way
        here, there = here - along, there - along
    off = np.maximum(np.linalg.norm(here, axis=1), np.linalg.norm(there, axis=1))
    if off.max() > max(_POSITION_TOLERANCE_MM, _POSITION_TOLERANCE * spacing[0]):
        worst = int(off.argmax())
        uid = volume.sources[volume.source_frames[worst][0]].SOPInstanceUID
        raise SeriesRefused(
            f"instance {uid}: its plane is {off[worst]:.3f} mm from where the volume has slice "
            f"{slices[worst]:.0f}",
            code="geometry_mismatch",
            hint="results can only be placed on the planes of the source images",
        )
    distance = round(volume.plane_distance_mm, 6)  # a DS has 16 characters
    thickness = _plane_value(volume, 0, "PixelMeasuresSequence", "SliceThickness", default=distance)
    return SliceGeometry(
        orientation=tuple(float(x) for x in orientation),
        positions=tuple((p[0], p[1], p[2]) for p in positions),
        pixel_spacing=(float(pixel_spacing[0]), float(pixel_spacing[1])),
        slice_spacing=distance,
        slice_thickness=float(thickness) if float(thickness) > 0 else distance,
    )


def _plane_value(
    volume: Volume, slice_index: int, group: str, keyword: str, default: float | None = None
) -> Any:
    """One attribute of a slice's plane, wherever classic or enhanced CT keeps it."""
    index, frame = volume.source_frames[slice_index]
    source = volume.sources[index]
    places = [source]
    if "SharedFunctionalGroupsSequence" in source:
        places = [
            *source.PerFrameFunctionalGroupsSequence[frame - 1].get(group, []),
            *source.SharedFunctionalGroupsSequence[0].get(group, []),
        ]
    for place in places:
        value = place.get(keyword)
        if value not in (None, ""):
            return value
    if default is None:
        raise SeriesRefused(
            f"instance {source.SOPInstanceUID}: frame {frame} has no {keyword}", code="geometry_missing"
        )
    return default


def frame_of_reference_uid(volume: SourceImages, context: ResultContext) -> UID:
    """The input's Frame of Reference UID; where de-identification removed it, one for this input alone."""
    value = volume.sources[0].get("FrameOfReferenceUID")
    return UID(value) if value else result_uid(volume, context, "frame-of-reference")


def bare_header(source: Dataset, volume: SourceImages, context: ResultContext) -> Dataset:
    """What highdicom wants to know of an object that is evidence, without its geometry."""
    header = Dataset()
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID"):
        setattr(header, keyword, source[keyword].value)
    header.Rows, header.Columns = source.get("Rows"), source.get("Columns")
    header.Modality = source.get("Modality") or "CT"
    header.FrameOfReferenceUID = frame_of_reference_uid(volume, context)
    header.PositionReferenceIndicator = source.get("PositionReferenceIndicator")
    for keyword in ("PatientID", "PatientName", "PatientSex", "AccessionNumber", "StudyID"):
        setattr(header, keyword, "")
    header.PatientBirthDate = header.StudyDate = header.StudyTime = None
    return header


def clean_header(volume: Volume, context: ResultContext, geometry: SliceGeometry, plane: int) -> Dataset:
    """A small header of the source image with this plane, as if it had no other: what highdicom reads.

    highdicom refuses or warns about values that real scanners and anonymisers write (PatientSex "U",
    missing StudyID, odd character sets). It gets blanks; ``identity.stamp`` copies the real ones later.
    """
    source, position = volume.sources[volume.source_frames[plane][0]], list(geometry.positions[plane])
    header = bare_header(source, volume, context)
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if source.get(keyword):
            header.add(source[keyword])
    if is_multiframe(volume):
        _add_frame(header, geometry, position)
    else:
        header.ImagePositionPatient = position
        header.ImageOrientationPatient = list(geometry.orientation)
        header.PixelSpacing = list(geometry.pixel_spacing)
        header.SliceThickness = geometry.slice_thickness
        header.SpacingBetweenSlices = geometry.slice_spacing
    return header


def _add_frame(header: Dataset, geometry: SliceGeometry, position: list[float]) -> None:
    shared, frame = Dataset(), Dataset()
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = list(geometry.pixel_spacing)
    shared.PixelMeasuresSequence[0].SliceThickness = geometry.slice_thickness
    shared.PixelMeasuresSequence[0].SpacingBetweenSlices = geometry.slice_spacing
    shared.PlaneOrientationSequence = [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = list(geometry.orientation)
    frame.PlanePositionSequence = [Dataset()]
    frame.PlanePositionSequence[0].ImagePositionPatient = position
    header.NumberOfFrames = 1
    header.SharedFunctionalGroupsSequence = [shared]
    header.PerFrameFunctionalGroupsSequence = [frame]


def source_image_sequence(volume: SourceImages) -> list[Dataset]:
    """Items of Source Image Sequence (0008,2112): every source instance, with its frames if multi-frame."""
    items = []
    for index, source in enumerate(volume.sources):
        item = Dataset()
        item.ReferencedSOPClassUID = source.SOPClassUID
        item.ReferencedSOPInstanceUID = source.SOPInstanceUID
        if volume.source_frames and is_multiframe(volume):
            item.ReferencedFrameNumber = [frame for i, frame in volume.source_frames if i == index]
        item.PurposeOfReferenceCodeSequence = [codes.concept(codes.SOURCE_IMAGE)]
        items.append(item)
    return items


def referenced_series_sequence(volume: SourceImages) -> list[Dataset]:
    """The item of Referenced Series Sequence (PS3.3 C.12.2) that lists the source instances."""
    series = Dataset()
    series.SeriesInstanceUID = volume.series_instance_uid
    series.ReferencedInstanceSequence = instance_references(volume)
    return [series]


def instance_references(volume: SourceImages) -> list[Dataset]:
    """An item with class and instance UID (PS3.3 Table 10-11) for every source instance."""
    items = []
    for source in volume.sources:
        item = Dataset()
        item.ReferencedSOPClassUID = source.SOPClassUID
        item.ReferencedSOPInstanceUID = source.SOPInstanceUID
        items.append(item)
    return items
