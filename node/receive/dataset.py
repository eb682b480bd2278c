"""The top-level elements of an encoded data set, without holding or decoding any of it.

In: data set bytes from a peer, in a stream.  Out: tag, place and length of each element (PS3.5 chapter 7).

A parser that builds objects lets 16 MB of empty sequence items ask for gigabytes and a minute; this one keeps
nothing, counts nesting instead of recursing into it, and gives up after ``MAX_ELEMENTS``.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

#: headers that are looked at, those in sequences of undefined length included; some 0.2 s of work
MAX_ELEMENTS = 200_000
UNDEFINED_LENGTH = 0xFFFFFFFF

#: VRs with a 32-bit length (PS3.5 table 7.1-1)
LONG_VRS = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)

_ITEM, _ITEM_DELIMITATION, _SEQUENCE_DELIMITATION = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_ITEM_GROUP = 0xFFFE


class UnreadableDataset(Exception):
    """The bytes are no data set in this encoding, or more than we look at. The message has no values."""


class Element(NamedTuple):
    """``at``: where its value begins in the stream; ``length``: in bytes, or UNDEFINED_LENGTH."""

    tag: int
    at: int
    length: int


def top_level_elements(stream: BinaryIO, *, implicit_vr: bool, little_endian: bool) -> Iterator[Element]:
    """The elements from the stream's position to its end, in the order in which they come.

    The stream may be moved between two of them. Raises UnreadableDataset once it can't go on.
    """
    walk = _Walk(stream, implicit_vr=implicit_vr, little_endian=little_endian)
    while walk.left() >= 8:
        element = walk.header()
        yield element
        if element.length != UNDEFINED_LENGTH:
            walk.go_to(element.at + element.length)
        elif element.tag >> 16 == _ITEM_GROUP:  # outside of any sequence: it means nothing
            walk.go_to(element.at)
        else:
            walk.skip_sequence(element.at)


class _Walk:
    def __init__(self, stream: BinaryIO, *, implicit_vr: bool, little_endian: bool) -> None:
        order = "<" if little_endian else ">"
        self._tag, self._short = struct.Struct(f"{order}HH"), struct.Struct(f"{order}H")
        self._long = struct.Struct(f"{order}L")
        self._implicit_vr = implicit_vr
        self._stream = stream
        self._at = stream.tell()
        self._end = stream.seek(0, os.SEEK_END)
        self._headers = 0

    def left(self) -> int:
        return self._end - self._at

    def go_to(self, at: int) -> None:
        if at > self._end:
            raise UnreadableDataset("an element is longer than what is left")
        self._at = at

    def header(self) -> Element:
        """The element at the current position; stays there."""
        self._headers += 1
        if self._headers > MAX_ELEMENTS:
            raise UnreadableDataset(f"more than {MAX_ELEMENTS} elements before the UIDs")
        self._stream.seek(self._at)
        head = self._stream.read(12)
        if len(head) < 8:
            raise UnreadableDataset("it ends inside of a sequence")
        group, number = self._tag.unpack_from(head)
        tag, vr = group << 16 | number, head[4:6]
        if not self._implicit_vr and group != _ITEM_GROUP:
            if vr in LONG_VRS:
                if len(head) < 12:
                    raise UnreadableDataset("it ends inside of an element's header")
                return Element(tag, self._at + 12, self._long.unpack_from(head, 8)[0])
            if vr.isalpha() and vr.isupper():
                return Element(tag, self._at + 8, self._short.unpack_from(head, 6)[0])
            # encoders that switch to implicit VR in the middle exist
        return Element(tag, self._at + 8, self._long.unpack_from(head, 4)[0])

    def skip_sequence(self, at: int) -> None:
        """Go behind a value of undefined length: items up to a delimiter, or fragments of pixel data."""
        self._at = at
        depth = 1  # odd: between a sequence's items; even: between an item's elements
        while depth:
            element = self.header()
            length = element.length
            if depth % 2 and element.tag not in (_ITEM, _SEQUENCE_DELIMITATION):
                raise UnreadableDataset("a sequence with something else than items")
            if element.tag == _SEQUENCE_DELIMITATION:
                depth -= 1 if depth % 2 else 2  # an item that lacks its own delimiter ends, too
                length = 0
            elif element.tag == _ITEM_DELIMITATION:
                depth -= 1
                length = 0
            elif length == UNDEFINED_LENGTH:
                depth += 1
                length = 0
            self.go_to(element.at + length)
