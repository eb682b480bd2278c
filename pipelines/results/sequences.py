"""Sequences encoded ahead of pydicom, most of whose time for a large object goes into elements it has seen.

In: a finished Dataset.  Out: the same with its sequences as bytes, which ``dcmwrite`` copies, and large
pixels as a buffer, which it needn't. The file is what pydicom alone would write, byte for byte: it still
encodes every element, but of equal ones (codes, names, units) the first; ours is the nesting alone (PS3.5
section 7.5).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from io import BytesIO
from operator import attrgetter

from pydicom import DataElement, Dataset
from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataelem import RawDataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import correct_ambiguous_vr_element, write_data_element, write_sequence_item
from pydicom.tag import BaseTag
from pydicom.uid import UID

_PIXEL_DATA = 0x7FE00010
#: pixels of more bytes aren't copied to be written
COPIED_BYTES = 32 * 2**20
#: types of values whose equality means equal bytes: not those of DS and IS, which know how they were written
_PLAIN = (str, UID, int, float)
_ITEM_TAG, _ITEM_HEADER, _SEQUENCE_HEADER = (
    b"\xfe\xff\x00\xe0",
    struct.Struct("<4sI"),
    struct.Struct("<HH2sHI"),
)


def with_encoded_sequences(dataset: Dataset) -> Dataset:
    """A copy, to be written once, that shares its elements with ``dataset``.

    ``dataset`` itself where that can't be done: a transfer syntax that isn't Explicit VR Little Endian, or an
    element in a sequence whose Value Representation depends on others.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_implicit_VR or not syntax.is_little_endian:
        return dataset
    characters = dataset.get("SpecificCharacterSet")
    encodings = convert_encodings(characters) if characters else default_encoding
    encoder = SequenceEncoder([encodings] if isinstance(encodings, str) else encodings)
    encoded = Dataset()
    try:
        for element in dataset.values():
            if element.VR == "SQ" and not element.is_raw:
                encoded[element.tag] = encoded_sequence(element.tag, encoder.items(element.value))
                continue
            plain = correct_ambiguous_vr_element(element, dataset, True)
            large = element.tag == _PIXEL_DATA and len(plain.value) > COPIED_BYTES
            encoded[element.tag] = _as_buffer(plain) if large else plain
    except _Ambiguous:
        return dataset
    encoded.file_meta, encoded.preamble = dataset.file_meta, getattr(dataset, "preamble", None)
    encoded.set_original_encoding(False, True, encodings)  # else pydicom decodes what is encoded
    return encoded


def _as_buffer(pixels: DataElement) -> DataElement:
    """The same memory, from which pydicom writes in pieces, slower; of bytes it makes another copy first."""
    return DataElement(
        pixels.tag, pixels.VR, BytesIO(pixels.value), is_undefined_length=pixels.is_undefined_length
    )


def as_item(elements: bytes) -> bytes:
    """An item of these elements."""
    return _ITEM_HEADER.pack(_ITEM_TAG, len(elements)) + elements


class _Ambiguous(Exception):
    """A Value Representation like "US or SS"."""


def encoded_sequence(tag: int, items: bytes) -> RawDataElement:
    """A sequence from its items' encoding. It is decoded when it is asked for."""
    return RawDataElement(BaseTag(tag), "SQ", len(items), items, 0, False, True)


class SequenceEncoder:
    """Of one file: what it remembers is in its character set."""

    def __init__(self, encodings: Sequence[str] = (default_encoding,)) -> None:
        self._encodings = list(encodings)
        self._known: dict[tuple[int, str, type, object], bytes] = {}

    def items(self, items: Sequence[Dataset]) -> bytes:
        """The value of a sequence."""
        return b"".join(
            [
                self._by_pydicom(item) if _is_special(item) else as_item(self.elements(item.values()))
                for item in items
            ]
        )

    def elements(self, elements: Iterable[DataElement]) -> bytes:
        """What is in an item."""
        return b"".join([self.element(element) for element in sorted(elements, key=attrgetter("tag"))])

    def element(self, element: DataElement) -> bytes:
        if len(element.VR) != 2:
            raise _Ambiguous
        if element.VR == "SQ" and not element.is_undefined_length:
            items = self.items(element.value)
            tag = element.tag
            return _SEQUENCE_HEADER.pack(tag >> 16, tag & 0xFFFF, b"SQ", 0, len(items)) + items
        value = element.value
        if type(value) not in _PLAIN:
            return self._by_pydicom(element)
        key = (int(element.tag), str(element.VR), type(value), value)
        if key not in self._known:
            self._known[key] = self._by_pydicom(element)
        return self._known[key]

    def _by_pydicom(self, what: DataElement | Dataset) -> bytes:
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, False
        if isinstance(what, Dataset):
            write_sequence_item(buffer, what, self._encodings)
        else:
            write_data_element(buffer, what, self._encodings)
        return bytes(buffer.getvalue())


def _is_special(item: Dataset) -> bool:
    """Whether an item is as it was read, or has a character set or a length of its own."""
    return (
        item.is_undefined_length_sequence_item
        or "SpecificCharacterSet" in item
        or any(element.is_raw for element in item.values())
    )
