"""The frames of a segmentation: their functional groups and their pixels.

In: a segmentation that highdicom made of one plane, and what each frame has on each plane.  Out: the same
with a frame wherever a segment has voxels, the first segment's first, or, of a label map, wherever any has
(PS3.3 C.7.6.16, C.8.20).

highdicom takes overlapping segments as one (slices, rows, columns, segments) stack, 4 GB for 300 slices with
50 regions, copies a label map twice, and makes an item of twenty elements for each frame. Items of two frames
differ in what is said of the plane and in two numbers: the former is encoded once a plane.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Protocol

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import DataElement, Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from pipelines.results.sequences import SequenceEncoder, as_item, encoded_sequence
from pipelines.results.sources import SliceGeometry, is_multiframe
from pipelines.volume import Volume

#: segment (from 0), plane -> (rows, columns) of a frame: 0 and 1, or 0 to 255 where it is fractional, or
#: Segment Numbers of a label map, which has but one frame on a plane
Mask = Callable[[int, int], NDArray[np.unsignedinteger[Any]]]

#: the functional groups that a frame has, in the order of their tags; a label map's has no last
_OF_SEGMENT = "SegmentIdentificationSequence"
_GROUPS = ("DerivationImageSequence", "FrameContentSequence", "PlanePositionSequence", _OF_SEGMENT)


def add_frames(
    segmentation: Dataset,
    volume: Volume,
    geometry: SliceGeometry,
    mask: Mask,
    *,
    omit_empty: bool,
) -> None:
    """Replace the frames of ``segmentation``, which has one of each segment, all on the first plane.

    mask: called for each segment in turn and, of each, for the planes in their order.
    omit_empty: leave out frames without a voxel; else all planes have a frame of every segment.
    """
    pixels, order = _pixels(segmentation), _in_order(geometry)
    groups = _FunctionalGroups(segmentation.PerFrameFunctionalGroupsSequence[0], volume, geometry)
    found = []
    for segment in range(len(segmentation.SegmentSequence) if groups.are_of_segments else 1):
        for plane in order:
            frame = mask(segment, plane)
            if not omit_empty or frame.any():
                pixels.add(frame)
                found.append((segment + 1, plane))
    with_frames = {plane for _, plane in found}
    in_order = [plane for plane in order if plane in with_frames]
    numbers = {plane: n for n, plane in enumerate(in_order, start=1)}
    planes = {plane: groups.of_plane(plane) for plane in with_frames}
    items = [groups.item(planes[plane], segment, numbers[plane]) for segment, plane in found]
    element = encoded_sequence(segmentation["PerFrameFunctionalGroupsSequence"].tag, b"".join(items))
    segmentation["PerFrameFunctionalGroupsSequence"] = element
    segmentation.NumberOfFrames = len(found)
    segmentation.PixelData = pixels.value()
    if not groups.are_of_segments and _are_regular(geometry, in_order):
        segmentation.DimensionOrganizationType = "3D"


def _are_regular(geometry: SliceGeometry, planes: list[int]) -> bool:
    """Whether frames on these planes are a volume, as highdicom sees it (PS3.3 C.7.6.17.1)."""
    if len(planes) < 2:
        return False
    positions = [geometry.positions[plane] for plane in planes]
    spacing, _ = hd.spatial.get_volume_positions(positions, geometry.orientation, sort=False)
    return spacing is not None and spacing > 0


def _in_order(geometry: SliceGeometry) -> list[int]:
    """Planes in the order of their dimension index, which is highdicom's: against the slices' normal."""
    row, column = np.array(geometry.orientation[:3]), np.array(geometry.orientation[3:])
    return [int(n) for n in np.argsort(np.array(geometry.positions) @ np.cross(column, row), kind="stable")]


@dataclass(frozen=True)
class _Plane:
    """Encoded functional groups that frames on one plane share."""

    derivation: bytes
    position: bytes


class _FunctionalGroups:
    """Encodes items of Per-frame Functional Groups Sequence like a given one."""

    def __init__(self, example: Dataset, volume: Volume, geometry: SliceGeometry) -> None:
        names = tuple(element.keyword for element in example)
        if names not in (_GROUPS, _GROUPS[:-1]):
            raise ValueError(f"a frame has {', '.join(names)}; {', '.join(_GROUPS)} are expected")
        self.are_of_segments = _OF_SEGMENT in names
        self._example, self._volume, self._positions = example, volume, geometry.positions
        self._encoder = SequenceEncoder()
        # the values that differ are the last of their group
        index = "<II" if self.are_of_segments else "<I"
        self._content = self._encoder.element(example["FrameContentSequence"])[: -struct.calcsize(index)]
        self._segment = b""
        if self.are_of_segments:
            self._segment = self._encoder.element(example[_OF_SEGMENT])[: -struct.calcsize("<H")]

    def of_plane(self, plane: int) -> _Plane:
        source, frame = self._volume.source_frames[plane]
        image = self._example.DerivationImageSequence[0].SourceImageSequence[0]
        image.ReferencedSOPClassUID = self._volume.sources[source].SOPClassUID
        image.ReferencedSOPInstanceUID = self._volume.sources[source].SOPInstanceUID
        if is_multiframe(self._volume):
            image.ReferencedFrameNumber = frame
        position = hd.PlanePositionSequence("PATIENT", self._positions[plane])
        return _Plane(
            self._encoder.element(self._example["DerivationImageSequence"]),
            self._encoder.element(DataElement("PlanePositionSequence", "SQ", position)),
        )

    def item(self, plane: _Plane, segment: int, position: int) -> bytes:
        """segment, position: the frame's Dimension Index Values, from 1."""
        if not self.are_of_segments:
            return as_item(plane.derivation + self._content + struct.pack("<I", position) + plane.position)
        content = self._content + struct.pack("<II", segment, position)
        return as_item(
            plane.derivation + content + plane.position + self._segment + struct.pack("<H", segment)
        )


class _Pixels(Protocol):
    def add(self, frame: NDArray[np.unsignedinteger[Any]]) -> None: ...

    def value(self) -> bytes: ...


class _Bits:
    """A bit a pixel, the lowest first, frames without a gap (PS3.5 section 8.1.1 and D.1)."""

    def __init__(self) -> None:
        self._whole = BytesIO()  # its value isn't a copy
        self._begun: NDArray[np.uint8] = np.zeros(0, np.uint8)

    def add(self, frame: NDArray[np.unsignedinteger[Any]]) -> None:
        bits = frame.ravel()
        if len(self._begun):
            bits = np.concatenate([self._begun, bits])
        whole = len(bits) // 8 * 8
        self._whole.write(np.packbits(bits[:whole], bitorder="little").data)
        self._begun = bits[whole:]

    def value(self) -> bytes:
        last = np.packbits(self._begun, bitorder="little").tobytes()
        self._whole.write(last)
        self._whole.write(b"\0" * (self._whole.tell() % 2))
        return self._whole.getvalue()


class _Samples:
    """One or two bytes a pixel, the lowest first, as they are."""

    def __init__(self, bits_allocated: int) -> None:
        self._whole = BytesIO()
        self._dtype = np.dtype(f"<u{bits_allocated // 8}")

    def add(self, frame: NDArray[np.unsignedinteger[Any]]) -> None:
        self._whole.write(np.ascontiguousarray(frame, self._dtype).data)

    def value(self) -> bytes:
        self._whole.write(b"\0" * (self._whole.tell() % 2))
        return self._whole.getvalue()


class _Compressed:
    """A byte a pixel, each frame compressed for itself."""

    def __init__(self, transfer_syntax_uid: UID) -> None:
        self._frames: list[bytes] = []
        self._how: dict[str, Any] = {
            "transfer_syntax_uid": transfer_syntax_uid,
            "bits_allocated": 8,
            "bits_stored": 8,
            "photometric_interpretation": "MONOCHROME2",
        }

    def add(self, frame: NDArray[np.unsignedinteger[Any]]) -> None:
        self._frames.append(hd.frame.encode_frame(frame, **self._how))

    def value(self) -> bytes:
        return bytes(encapsulate(self._frames))


def _pixels(segmentation: Dataset) -> _Pixels:
    syntax = segmentation.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        return _Compressed(syntax)
    return _Bits() if segmentation.BitsAllocated == 1 else _Samples(segmentation.BitsAllocated)
