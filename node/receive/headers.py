"""What the headers of a series say of its completeness: numbers expected, concatenations, positions.

In: a file of the spool, read up to Number of Frames (0028,0008): no pixel data, no text.  Out: a few numbers
of each instance, and ``completeness.Headers`` of them all.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pydicom.uid import (
    UID,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
    XRay3DAngiographicImageStorage,
    XRay3DCraniofacialImageStorage,
)

from node.receive.completeness import Headers
from node.receive.dataset import LONG_VRS, top_level_elements
from node.receive.part10 import header_length, inflated
from node.receive.stack import Regular, Slice, regular_stack

#: one object is a volume, or says by its concatenation what else belongs to it
VOLUME_CLASSES = frozenset(
    str(uid)
    for uid in (
        EnhancedCTImageStorage,
        EnhancedMRImageStorage,
        EnhancedPETImageStorage,
        LegacyConvertedEnhancedCTImageStorage,
        LegacyConvertedEnhancedMRImageStorage,
        LegacyConvertedEnhancedPETImageStorage,
        XRay3DAngiographicImageStorage,
        XRay3DCraniofacialImageStorage,
    )
)

_ACQUISITION_NUMBER, _INSTANCE_NUMBER = 0x00200012, 0x00200013
_POSITION, _ORIENTATION = 0x00200032, 0x00200037
_IMAGES_IN_ACQUISITION, _SERIES_COUNT = 0x00201002, 0x00201209
_CONCATENATION_UID, _PART_NUMBER, _PARTS = 0x00209161, 0x00209162, 0x00209163
_NUMBER_OF_FRAMES = 0x00280008
_WANTED = frozenset(
    (
        _ACQUISITION_NUMBER,
        _INSTANCE_NUMBER,
        _POSITION,
        _ORIENTATION,
        _IMAGES_IN_ACQUISITION,
        _SERIES_COUNT,
        _CONCATENATION_UID,
        _PART_NUMBER,
        _PARTS,
        _NUMBER_OF_FRAMES,
    )
)
_LAST = max(_WANTED)

#: most headers are shorter
_HEAD_BYTES = 16 * 1024
#: longer is no value of an element that is wanted
_MAXIMUM_VALUE_BYTES = 1024
#: a number of instances beyond this is no number of instances
_MAXIMUM_COUNT = 1_000_000
#: Instance Numbers missing say something when so many are there and no larger a share is missing
_MINIMUM_NUMBERS, _NUMBERS_SHARE = 8, 0.1

_ELEMENT = struct.Struct("<HH2sH")
_LONG = struct.Struct("<L")

Values = dict[int, bytes]


def read_values(path: Path, transfer_syntax_uid: str) -> Values:
    """The wanted elements' values of a file that the spool wrote. Raises OSError or UnreadableDataset."""
    syntax = UID(transfer_syntax_uid)
    with path.open("rb") as file:
        file.seek(header_length(file))
        stream = inflated(file, syntax)
        start = stream.tell()
        if syntax.is_little_endian and not syntax.is_implicit_VR:
            found = _scan(stream.read(_HEAD_BYTES))
            if found is not None:
                return found
            stream.seek(start)
        return _walk(stream, syntax)


def _scan(head: bytes) -> Values | None:
    """Explicit VR Little Endian, every element of a known length; None for anything else."""
    found: Values = {}
    at, end = 0, len(head)
    while at + 12 <= end:
        group, number, vr, length = _ELEMENT.unpack_from(head, at)
        tag = group << 16 | number
        if tag > _LAST:
            return found
        start = at + 8
        if vr in LONG_VRS:
            length, start = _LONG.unpack_from(head, start)[0], at + 12
        elif not vr.isalpha():
            return None
        at = start + length
        if at > end:  # 0xFFFFFFFF, an undefined length, is beyond any end
            return None
        if tag in _WANTED:
            found[tag] = head[start:at]
    return None


def _walk(stream: BinaryIO, syntax: UID) -> Values:
    found: Values = {}
    little_endian = syntax.is_little_endian
    for tag, at, length in top_level_elements(
        stream, implicit_vr=syntax.is_implicit_VR, little_endian=little_endian
    ):
        if tag > _LAST:
            break
        if tag not in _WANTED or length > _MAXIMUM_VALUE_BYTES:
            continue
        stream.seek(at)
        value = stream.read(length)
        found[tag] = value[::-1] if not little_endian and tag in (_PART_NUMBER, _PARTS) else value
    return found


@dataclass
class _Stack:
    """The planes of one orientation. numbers: Instance Number of each, or _NO_NUMBER."""

    normal: tuple[float, float, float]
    positions: array[float] = field(default_factory=lambda: array("d"))
    numbers: array[int] = field(default_factory=lambda: array("q"))


_NO_NUMBER = -(2**62)


@dataclass
class SeriesHeaders:
    """Collects the headers of one series."""

    last_id: int = 0
    count: int = 0
    unreadable: int = 0
    _series_counts: set[int | None] = field(default_factory=set)
    #: Acquisition Number -> the values of Images in Acquisition in it; and its instances
    _in_acquisition: dict[bytes, set[int | None]] = field(default_factory=dict)
    _acquired: Counter[bytes] = field(default_factory=Counter)
    _stacks: dict[tuple[float, ...], _Stack] = field(default_factory=dict)
    _numbers: set[int] = field(default_factory=set)
    _whole: int = 0
    #: Concatenation UID -> the number of its parts, None when no part says; and the parts that are there
    _concatenations: dict[bytes, int | None] = field(default_factory=dict)
    _parts: dict[bytes, set[int]] = field(default_factory=dict)

    def add(self, sop_class_uid: str, values: Values) -> None:
        """Count one instance."""
        self.count += 1
        self._series_counts.add(_count(values.get(_SERIES_COUNT)))
        acquisition = values.get(_ACQUISITION_NUMBER, b"").strip()
        self._in_acquisition.setdefault(acquisition, set()).add(_count(values.get(_IMAGES_IN_ACQUISITION)))
        self._acquired[acquisition] += 1
        number = _integer(values.get(_INSTANCE_NUMBER))
        if number is not None:
            self._numbers.add(number)
        self._add_plane(values, number)
        if sop_class_uid in VOLUME_CLASSES:
            self._add_volume(values)

    def add_unreadable(self) -> None:
        """Count an instance whose header can't be read."""
        self.count += 1
        self.unreadable += 1

    def summary(self) -> Headers:
        """What they say together so far."""
        stacks = [self._regular(stack) for stack in self._stacks.values()]
        holed = next((stack for stack in stacks if stack is not None and stack.missing_mm), None)
        return Headers(
            unreadable=self.unreadable,
            series_count=_agreed(self._series_counts),
            acquisitions_count=self._acquisitions_count(),
            concatenation_count=self._concatenation_count(),
            whole_objects=self._is_whole(),
            spacing_mm=holed.spacing_mm if holed else None,
            missing_positions_mm=holed.missing_mm if holed else (),
            missing_instance_numbers=0 if stacks and all(stacks) else self._missing_numbers(),
        )

    def _add_plane(self, values: Values, number: int | None) -> None:
        cosines, position = _numbers(values.get(_ORIENTATION), 6), _numbers(values.get(_POSITION), 3)
        if cosines is None or position is None:
            return
        key = tuple(round(cosine, 3) for cosine in cosines)
        stack = self._stacks.get(key)
        if stack is None:
            stack = self._stacks[key] = _Stack(_normal(cosines))
        stack.positions.append(sum(a * b for a, b in zip(stack.normal, position, strict=True)))
        stack.numbers.append(_NO_NUMBER if number is None else number)

    def _add_volume(self, values: Values) -> None:
        frames = _integer(values.get(_NUMBER_OF_FRAMES)) or 1
        concatenation = values.get(_CONCATENATION_UID, b"").strip(b" \0")
        if concatenation:
            part, parts = _short(values.get(_PART_NUMBER)), _short(values.get(_PARTS))
            known = self._concatenations.get(concatenation)
            self._concatenations[concatenation] = parts or known
            self._parts.setdefault(concatenation, set()).add(part or 0)
            self._whole += 1
        elif frames > 1:
            self._whole += 1

    def _is_whole(self) -> bool:
        """Whether every object is a volume, or a part of one of which every part is there."""
        return 0 < self._whole == self.count and all(
            parts is not None and self._parts[uid] >= set(range(1, parts + 1))
            for uid, parts in self._concatenations.items()
        )

    def _concatenation_count(self) -> int | None:
        missing = 0
        for uid, parts in self._concatenations.items():
            if parts is None:
                return None
            missing += len(set(range(1, parts + 1)) - self._parts[uid])
        return self.count + missing if self._concatenations else None

    def _acquisitions_count(self) -> int | None:
        """The images of all acquisitions; None unless each gives one number that its images don't exceed.

        A number of 1 says nothing: some scanners write it into every image.
        """
        total = 0
        for acquisition, counts in self._in_acquisition.items():
            count = _agreed(counts)
            if count is None or count < max(2, self._acquired[acquisition]):
                return None
            total += count
        return total or None

    def _regular(self, stack: _Stack) -> Regular | None:
        return regular_stack(
            [
                Slice(position, None if number == _NO_NUMBER else number)
                for position, number in zip(stack.positions, stack.numbers, strict=True)
            ]
        )

    def _missing_numbers(self) -> int:
        numbers = self._numbers
        if len(numbers) < _MINIMUM_NUMBERS:
            return 0
        missing = max(numbers) - min(numbers) + 1 - len(numbers)
        return missing if missing <= _NUMBERS_SHARE * len(numbers) else 0


def _agreed(values: set[int | None]) -> int | None:
    return next(iter(values)) if len(values) == 1 else None


def _text(value: bytes | None) -> str:
    return (value or b"").decode("ascii", errors="replace").strip(" \0")


def _integer(value: bytes | None) -> int | None:
    """An IS, as it occurs: some write 12.0."""
    try:
        number = float(_text(value))
    except ValueError:
        return None
    return int(number) if math.isfinite(number) and number == int(number) and abs(number) < 2**53 else None


def _count(value: bytes | None) -> int | None:
    number = _integer(value)
    return number if number is not None and 0 < number <= _MAXIMUM_COUNT else None


def _short(value: bytes | None) -> int | None:
    return int.from_bytes(value, "little") if value is not None and len(value) == 2 else None


def _numbers(value: bytes | None, count: int) -> list[float] | None:
    """So many finite numbers of a DS."""
    try:
        numbers = [float(part) for part in _text(value).split("\\")]
    except ValueError:
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def _normal(cosines: Sequence[float]) -> tuple[float, float, float]:
    """The cross product of row and column cosines (PS3.3 C.7.6.2.1.1)."""
    a, b, c, d, e, f = cosines
    return (b * f - c * e, c * d - a * f, a * e - b * d)
