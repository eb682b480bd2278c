"""Facts: what routing rules may know of a series.

In: the instances of one series, as files. Out: ``SeriesFacts``, one value or None (missing) a fact. Headers
only; pixel data is never read. ``FACTS`` is the whole vocabulary, with each fact's type and meaning.

One value stands for the series: what most of its images say (ties: the smaller value as text). Facts on
which the images disagree are named in the fact ``mixed_facts``. Empty attributes count as missing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
from pydicom import DataElement, Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import UID

from node.header import read_header as header_of

FactValue = str | float | int | bool | tuple[str, ...]
FactType = Literal["text", "list", "number", "integer", "boolean"]


@dataclass(frozen=True)
class Fact:
    """One word of the rules' vocabulary. ``free_text`` values may hold what an operator typed about a
    patient, so they are shown on the operator's own terminal only, never logged or stored."""

    name: str
    type: FactType
    meaning: str
    keyword: str = ""  # attribute it is copied from, if it is simply copied
    free_text: bool = False


_FACTS = (
    Fact("modality", "text", "Modality (0008,0060)", "Modality"),
    Fact("sop_class", "text", "SOP class, the standard's keyword (CTImageStorage) or the UID if it has none"),
    Fact("sop_class_uid", "text", "SOP Class UID (0008,0016)", "SOPClassUID"),
    Fact("transfer_syntax_uid", "text", "Transfer Syntax UID (0002,0010) as stored"),
    Fact("image_type", "list", "Image Type (0008,0008), value by value"),
    Fact("body_part_examined", "text", "Body Part Examined (0018,0015)", "BodyPartExamined"),
    Fact("series_description", "text", "Series Description (0008,103E)", "SeriesDescription", free_text=True),
    Fact("study_description", "text", "Study Description (0008,1030)", "StudyDescription", free_text=True),
    Fact("protocol_name", "text", "Protocol Name (0018,1030)", "ProtocolName", free_text=True),
    Fact("manufacturer", "text", "Manufacturer (0008,0070)", "Manufacturer"),
    Fact("model", "text", "Manufacturer's Model Name (0008,1090)", "ManufacturerModelName"),
    Fact("convolution_kernel", "list", "Convolution Kernel (0018,1210)"),
    Fact("patient_position", "text", "Patient Position (0018,5100): HFS, FFS …", "PatientPosition"),
    Fact("study_date", "text", "Study Date (0008,0020), YYYYMMDD", "StudyDate", free_text=True),
    Fact("contrast_agent", "boolean", "Contrast/Bolus Agent (0018,0010) has a value in any image"),
    Fact("slice_thickness_mm", "number", "Slice Thickness (0018,0050), mm"),
    Fact("gantry_tilt_degrees", "number", "Gantry/Detector Tilt (0018,1120), degrees"),
    Fact("rows", "integer", "Rows (0028,0010)"),
    Fact("columns", "integer", "Columns (0028,0011)"),
    Fact("orientation", "text", "axial, coronal, sagittal or oblique (normal over 30° off an axis)"),
    Fact("spacing_between_positions_mm", "number", "median gap between image positions along the normal, mm"),
    Fact("position_count", "integer", "different image positions along the normal"),
    Fact("instance_count", "integer", "instances in the series"),
    Fact("frame_count", "integer", "frames in all instances together (an image without frames counts as 1)"),
    Fact("is_localizer", "boolean", "every image has LOCALIZER in its Image Type"),
    Fact("localizer_count", "integer", "images with LOCALIZER in their Image Type"),
    Fact("unreadable_count", "integer", "instances whose header can't be read; they give no other facts"),
    Fact("mixed_facts", "list", "names of the facts on which the images of the series disagree"),
    Fact("calling_ae_title", "text", "AE title of the sender"),
)

#: Fact name -> its definition. The rules accept these names and no others.
FACTS: Mapping[str, Fact] = {fact.name: fact for fact in _FACTS}

_CHARACTER_SET = Tag("SpecificCharacterSet")
_COPIED = {fact.name: fact.keyword for fact in _FACTS if fact.keyword}
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_TAGS = sorted(
    {
        *_COPIED.values(),
        *_GROUPS,
        "ImageType",
        "ConvolutionKernel",
        "ContrastBolusAgent",
        "ContrastBolusAgentSequence",
        "SliceThickness",
        "GantryDetectorTilt",
        "Rows",
        "Columns",
        "NumberOfFrames",
        "ImageOrientationPatient",
        "ImagePositionPatient",
        "SeriesInstanceUID",
        "SOPInstanceUID",
    }
)
_TAG_OF = {keyword: Tag(keyword) for keyword in _TAGS}
#: Facts of single images, folded into one value; the others are counted or computed over the series.
_PER_IMAGE = (
    *_COPIED,
    "sop_class",
    "transfer_syntax_uid",
    "image_type",
    "convolution_kernel",
    "slice_thickness_mm",
    "gantry_tilt_degrees",
    "rows",
    "columns",
    "orientation",
)


@dataclass(frozen=True)
class SeriesFacts:
    """The facts of one series; every name of ``FACTS`` is a key, None means missing."""

    series_instance_uid: str
    values: Mapping[str, FactValue | None]

    def __getitem__(self, name: str) -> FactValue | None:
        return self.values[name]

    def storable(self) -> dict[str, Any]:
        """The facts that are present and may be logged and stored: no free text."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in self.values.items()
            if value is not None and not FACTS[name].free_text
        }


@dataclass
class _Geometry:
    normal: tuple[float, float, float]
    position: float  # along the normal, mm


@dataclass
class FactCollector:
    """Collects headers of one series and folds them into facts."""

    series_instance_uid: str
    calling_ae_title: str | None = None
    _votes: dict[str, Counter[FactValue | None]] = field(default_factory=dict)
    _geometry: list[_Geometry] = field(default_factory=list)
    _instances: int = 0
    _frames: int = 0
    _localizers: int = 0
    _contrast: bool = False
    _unreadable: int = 0
    _known: dict[object, tuple[str, ...]] = field(default_factory=dict)

    def add(self, header: Dataset, transfer_syntax_uid: str) -> None:
        """Count one instance. A value that its VR can't hold counts as missing."""
        known = partial(self._texts, header, header.get_item(_CHARACTER_SET))
        image_type = known("ImageType")
        orientation = None
        for cosines, position in _planes(header):
            normal = np.cross(cosines[:3], cosines[3:])
            length = float(np.linalg.norm(normal))
            if not math.isfinite(length) or length < 0.5:  # not two perpendicular unit vectors at all
                continue
            normal = normal / length
            orientation = orientation or _orientation(normal)
            if position is not None:
                self._geometry.append(_Geometry(tuple(normal.tolist()), float(np.dot(normal, position))))
        measures = _first_item(header, "PixelMeasuresSequence")
        values: dict[str, FactValue | None] = {
            name: "\\".join(known(keyword)) or None for name, keyword in _COPIED.items()
        }
        sop_class = UID(str(values["sop_class_uid"] or ""))
        values |= {
            "sop_class": (sop_class.keyword or str(sop_class)) or None,
            "transfer_syntax_uid": transfer_syntax_uid or None,
            "image_type": image_type or None,
            "convolution_kernel": known("ConvolutionKernel") or None,
            "slice_thickness_mm": _first(known("SliceThickness")) or _number(measures, "SliceThickness"),
            "gantry_tilt_degrees": _first(known("GantryDetectorTilt")),
            "rows": _whole(known("Rows")),
            "columns": _whole(known("Columns")),
            "orientation": orientation,
        }
        for name in _PER_IMAGE:
            self._votes.setdefault(name, Counter())[values[name]] += 1
        self._instances += 1
        self._frames += _whole(known("NumberOfFrames")) or 1
        self._localizers += "LOCALIZER" in image_type
        self._contrast |= bool(known("ContrastBolusAgent")) or bool(header.get("ContrastBolusAgentSequence"))

    def _texts(self, header: Dataset, characters: object, keyword: str) -> tuple[str, ...]:
        """``_texts``, decoded once for all images that have the same bytes."""
        raw = header.get_item(_TAG_OF[keyword])
        if not isinstance(raw, RawDataElement) or not isinstance(raw.value, bytes):
            return _texts(header, keyword)
        charset = characters.value if isinstance(characters, RawDataElement | DataElement) else None
        key = (keyword, raw.VR, raw.value, raw.is_implicit_VR, raw.is_little_endian, str(charset))
        if key not in self._known:
            self._known[key] = _texts(header, keyword)
        return self._known[key]

    def add_unreadable(self) -> None:
        """Count an instance whose header can't be read."""
        self._unreadable += 1

    def facts(self) -> SeriesFacts:
        """The facts of what was added so far."""
        values: dict[str, FactValue | None] = dict.fromkeys(FACTS)
        mixed = []
        for name, votes in self._votes.items():
            values[name] = min(votes, key=lambda value: (-votes[value], str(value)))
            if len(votes) > 1:
                mixed.append(name)
        spacing, positions = _spacing(self._geometry)
        return SeriesFacts(
            self.series_instance_uid,
            values
            | {
                "spacing_between_positions_mm": spacing,
                "position_count": positions,
                "instance_count": self._instances + self._unreadable,
                "frame_count": self._frames,
                "localizer_count": self._localizers,
                "is_localizer": self._localizers == self._instances if self._instances else None,
                "contrast_agent": self._contrast if self._instances else None,
                "unreadable_count": self._unreadable,
                "mixed_facts": tuple(sorted(mixed)) or None,
                "calling_ae_title": self.calling_ae_title,
            },
        )


def read_header(path: Path) -> tuple[Dataset, str]:
    """The attributes that facts need, and the transfer syntax UID ("" if not given).

    Raises OSError, or whatever pydicom raises for a file that isn't DICOM or is damaged.
    """
    header = header_of(path, _TAGS)
    return header, str(header.file_meta.get("TransferSyntaxUID", ""))


def series_facts(
    series_instance_uid: str, paths: Iterable[Path], *, calling_ae_title: str | None = None
) -> SeriesFacts:
    """Facts of one series from its files; a file that can't be read is counted, not fatal."""
    collector = FactCollector(series_instance_uid, calling_ae_title)
    for path in paths:
        # The list of what pydicom raises for damaged headers is open; the file is counted as unreadable,
        # which is what rules and the recorded decision see.
        try:
            collector.add(*read_header(path))
        except Exception:
            collector.add_unreadable()
    return collector.facts()


def _planes(header: Dataset) -> Iterator[tuple[Any, Any]]:
    """(six direction cosines, position or None), LPS mm, of each image or frame that has them."""
    cosines, position = _floats(header, "ImageOrientationPatient"), _floats(header, "ImagePositionPatient")
    if len(cosines) == 6:
        yield np.array(cosines), np.array(position) if len(position) == 3 else None
        return
    shared = _floats(_first_item(header, "PlaneOrientationSequence"), "ImageOrientationPatient")
    for frame in header.get("PerFrameFunctionalGroupsSequence") or ():
        own = _floats(_item(frame, "PlaneOrientationSequence"), "ImageOrientationPatient")
        cosines = own or shared
        position = _floats(_item(frame, "PlanePositionSequence"), "ImagePositionPatient")
        if len(cosines) == 6:
            yield np.array(cosines), np.array(position) if len(position) == 3 else None


def _orientation(normal: Any) -> str:
    axis = int(np.argmax(np.abs(normal)))
    if abs(float(normal[axis])) < math.cos(math.radians(30.0)):
        return "oblique"
    return ("sagittal", "coronal", "axial")[axis]


def _spacing(images: list[_Geometry]) -> tuple[float | None, int | None]:
    """Median gap, mm, and number of different positions; None unless all images are parallel."""
    if not images:
        return None, None
    first = np.array(images[0].normal)
    if any(abs(float(np.dot(first, image.normal))) < 0.9999 for image in images):
        return None, None
    positions = sorted({round(image.position, 3) for image in images})
    gaps = [after - before for before, after in pairwise(positions)]
    return (round(median(gaps), 3) if gaps else None), len(positions)


def _first_item(header: Dataset, keyword: str) -> Dataset:
    """The item of a functional group macro: shared, else of the first frame; empty if there is none."""
    for groups in _GROUPS:
        for group in (header.get(groups) or ())[:1]:
            item = _item(group, keyword)
            if item:
                return item
    return Dataset()


def _item(group: Dataset, keyword: str) -> Dataset:
    sequence = group.get(keyword)
    return sequence[0] if sequence else Dataset()


def _value(header: Dataset, keyword: str) -> Any:
    """The attribute's value; None if it is absent, empty or can't be converted from its bytes."""
    try:
        return header.get(keyword)
    except (ValueError, TypeError, OverflowError, LookupError, NotImplementedError):
        return None


def _texts(header: Dataset, keyword: str) -> tuple[str, ...]:
    value = _value(header, keyword)
    if value is None:
        return ()
    values = [value] if isinstance(value, str) or not isinstance(value, Iterable) else value
    return tuple(text for text in (str(one).strip() for one in values) if text)


def _floats(header: Dataset, keyword: str) -> list[float]:
    return _numbers(_texts(header, keyword))


def _numbers(texts: Iterable[str]) -> list[float]:
    """None of them where one is no finite number."""
    numbers = []
    for text in texts:
        try:
            number = float(text)
        except ValueError:
            return []
        if not math.isfinite(number):
            return []
        numbers.append(number)
    return numbers


def _number(header: Dataset, keyword: str) -> float | None:
    return _first(_texts(header, keyword))


def _first(texts: Iterable[str]) -> float | None:
    return next(iter(_numbers(texts)), None)


def _whole(texts: Iterable[str]) -> int | None:
    number = _first(texts)
    return None if number is None else int(number)
