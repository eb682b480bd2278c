"""What the spool needs to know of an encoded data set, and the file header that it puts before one.

In: data set bytes as a peer sent them, with their transfer syntax. Out: the UIDs to file them under, and
the PS3.10 preamble and File Meta Information. No pixel data and no text is decoded (DESIGN I2).
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal

from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian
from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION

from node.errors import InstanceRejected
from node.receive.dataset import LONG_VRS, UNDEFINED_LENGTH, UnreadableDataset, top_level_elements

#: Enough for everything before (0020,000E) of any sane object; more would let a few kilobytes of deflated
#: zeros ask for gigabytes.
_INFLATE_LIMIT_BYTES = 4 * 1024 * 1024

#: what of a data set is held in memory; the UIDs lie in its first kilobytes
HEAD_BYTES = 64 * 1024

#: preamble, prefix, and the group length element with its value of 4 bytes (PS3.10 7.1)
_AFTER_GROUP_LENGTH = 128 + 4 + 8 + 4

_TAG, _SHORT, _LONG = struct.Struct("<HH"), struct.Struct("<H"), struct.Struct("<L")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")

#: as plain numbers, which compare in a tenth of the time that pydicom's tags take
_FILING_TAGS = {
    0x00080016: "SOPClassUID",
    0x00080018: "SOPInstanceUID",
    0x0020000D: "StudyInstanceUID",
    0x0020000E: "SeriesInstanceUID",
}
_LAST_FILING_TAG = max(_FILING_TAGS)
_PIXEL_DATA = 0x7FE00008  # float, double and integer pixel data are (7FE0,0008) to (7FE0,0010)
#: of a value that should have 64 at most: enough to see that it has more
_MAX_UID_VALUE_BYTES = 256
#: transfer syntaxes whose data set as a whole is deflated; the others are those of JPIP
DEFLATED = frozenset((DeflatedExplicitVRLittleEndian, "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"))


@dataclass(frozen=True)
class FilingUids:
    """The four UIDs that say where an instance belongs."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str


def is_uid(text: str) -> bool:
    """Digits and dots, at most 64 characters (PS3.5 9.1); leading zeros, which occur, are let through."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def printable(text: str) -> str:
    """Text from a peer as at most 64 printable ASCII characters, ? for each other one."""
    if text.isascii() and text.isprintable():
        return text[:64]
    return "".join(character if " " <= character <= "~" else "?" for character in text[:64])


def read_filing_uids(
    head: bytes, transfer_syntax_uid: str, whole: Callable[[], BinaryIO] | None = None
) -> FilingUids:
    """Read the UIDs of an encoded data set.

    head: its first HEAD_BYTES, or all of it.  whole: opens all of it, where that is more.
    Raises InstanceRejected with code ``unreadable_dataset``, ``missing_uid`` or ``invalid_uid``.
    """
    syntax = UID(transfer_syntax_uid)
    found = scan_uids(head, transfer_syntax_uid)
    if found is None:
        try:
            with io.BytesIO(head) if whole is None or len(head) < HEAD_BYTES else whole() as stream:
                found = _walk(stream, syntax)
        except UnreadableDataset as error:
            raise InstanceRejected(
                f"the data set can't be read as {syntax.name}: {error}",
                code="unreadable_dataset",
                hint="see the file under quarantine with dcmdump",
            ) from error
    for keyword in _FILING_TAGS.values():
        value = found.get(keyword, "")
        if not is_uid(value):
            code, what = ("invalid_uid", "is not a UID") if value else ("missing_uid", "is missing or empty")
            rejected = InstanceRejected(f"{keyword} {what}", code=code)
            study_instance_uid = found.get("StudyInstanceUID", "")
            rejected.study_instance_uid = study_instance_uid if is_uid(study_instance_uid) else None
            raise rejected
    return FilingUids(
        found["SOPClassUID"], found["SOPInstanceUID"], found["StudyInstanceUID"], found["SeriesInstanceUID"]
    )


@lru_cache(maxsize=256)
def _plain(transfer_syntax_uid: str) -> Literal["explicit", "implicit"] | None:
    """The VRs of a data set in little endian that isn't deflated; its pixel data may be compressed."""
    syntax = UID(transfer_syntax_uid)
    if not syntax.is_little_endian or syntax in DEFLATED:
        return None
    return "implicit" if syntax.is_implicit_VR else "explicit"


def scan_uids(head: bytes, transfer_syntax_uid: str) -> dict[str, str] | None:
    """The four UIDs of a data set in little endian; None for anything out of the ordinary.

    What nearly every instance is, in a tenth of the time that a parser of everything takes: elements in
    ascending order, each of a known length, up to the Series Instance UID.
    """
    plain = _plain(transfer_syntax_uid)
    if plain is None:
        return None
    found: dict[str, str] = {}
    at, end, previous = 0, len(head), -1
    while at + 12 <= end:
        group, number = _TAG.unpack_from(head, at)
        tag = group << 16 | number
        if tag > _LAST_FILING_TAG:
            break
        vr = head[at + 4 : at + 6]
        if plain == "implicit":
            length, start = _LONG.unpack_from(head, at + 4)[0], at + 8
        elif vr in LONG_VRS:
            length, start = _LONG.unpack_from(head, at + 8)[0], at + 12
        elif vr.isalpha() and vr.isupper():
            length, start = _SHORT.unpack_from(head, at + 6)[0], at + 8
        else:
            return None
        if tag <= previous or start + length > end:  # 0xFFFFFFFF, an undefined length, is beyond any end
            return None
        keyword = _FILING_TAGS.get(tag)
        if keyword is not None:
            found[keyword] = head[start : start + length].decode("ascii", errors="replace").strip(" \0")
        at, previous = start + length, tag
    return found if len(found) == len(_FILING_TAGS) else None


def _walk(beginning: BinaryIO, syntax: UID) -> dict[str, str]:
    """The four UIDs of a data set in any encoding and any order of elements, as far as they are there.

    Raises UnreadableDataset.
    """
    found: dict[str, str] = {}
    stream = inflated(beginning, syntax)
    elements = top_level_elements(
        stream, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian
    )
    for tag, at, length in elements:
        # an encoder that ignores the ascending order of tags (PS3.5 7.1) is read to the pixel data
        if tag >= _PIXEL_DATA or (tag > _LAST_FILING_TAG and len(found) == len(_FILING_TAGS)):
            break
        keyword = _FILING_TAGS.get(tag)
        if keyword is None or length == UNDEFINED_LENGTH:
            continue
        stream.seek(at)
        value = stream.read(min(length, _MAX_UID_VALUE_BYTES)).decode("ascii", errors="replace").strip(" \0")
        if found.setdefault(keyword, value) != value:
            raise UnreadableDataset(f"{keyword} is there twice, with different values")
    return found


def inflated(stream: BinaryIO, syntax: UID) -> BinaryIO:
    """PS3.5 A.5: raw deflate (RFC 1951); only the beginning is inflated. Raises UnreadableDataset."""
    if syntax not in DEFLATED:
        return stream
    return io.BytesIO(inflate_beginning(stream, _INFLATE_LIMIT_BYTES)[0])


def inflate_beginning(stream: BinaryIO, limit_bytes: int) -> tuple[bytes, bool]:
    """At most so many bytes of what a raw deflate stream holds, read from as many, and whether that is all.

    Raises UnreadableDataset.
    """
    inflating = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        beginning = inflating.decompress(stream.read(limit_bytes), limit_bytes)
    except zlib.error as error:
        raise UnreadableDataset("it can't be inflated") from error
    return beginning, inflating.eof


def encode_header(
    *, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, calling_ae_title: str
) -> bytes:
    """Preamble, prefix and File Meta Information (PS3.10 7.1) of one instance.

    The source AE title (0002,0016) is kept so that a file can be indexed again from itself alone.
    """
    elements = (
        (0x0001, b"OB", b"\0\1"),
        (0x0002, b"UI", printable(sop_class_uid).encode()),
        (0x0003, b"UI", printable(sop_instance_uid).encode()),
        (0x0010, b"UI", transfer_syntax_uid.encode()),
        (0x0012, b"UI", PYNETDICOM_IMPLEMENTATION_UID.encode()),
        (0x0013, b"SH", PYNETDICOM_IMPLEMENTATION_VERSION.encode()),
        (0x0016, b"AE", printable(calling_ae_title)[:16].encode()),
    )
    encoded = b"".join(_meta_element(number, vr, value) for number, vr, value in elements)
    return bytes(128) + b"DICM" + _meta_element(0x0000, b"UL", _LONG.pack(len(encoded))) + encoded


def _meta_element(number: int, vr: bytes, value: bytes) -> bytes:
    """An element of group 0002, Explicit VR Little Endian (PS3.5 7.1.2)."""
    value += (b"\0" if vr in (b"UI", b"OB") else b" ") * (len(value) % 2)
    length = b"\0\0" + _LONG.pack(len(value)) if vr in LONG_VRS else _SHORT.pack(len(value))
    return _TAG.pack(0x0002, number) + vr + length + value


@dataclass(frozen=True)
class Part10:
    """A spooled file, taken apart again."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str
    header_bytes: int


def header_length(file: BinaryIO) -> int:
    """Bytes before the data set in a file that starts with ``encode_header``'s header."""
    file.seek(_AFTER_GROUP_LENGTH - 4)
    return _AFTER_GROUP_LENGTH + int.from_bytes(file.read(4), "little")


def read_part10(path: Path) -> Part10:
    """Take a file apart that the spool wrote.

    Raises InvalidDicomError, OSError, AttributeError or EOFError when it is none.
    """
    meta = read_file_meta_info(path)
    start = _AFTER_GROUP_LENGTH + int(meta.FileMetaInformationGroupLength)
    return Part10(
        sop_class_uid=str(meta.MediaStorageSOPClassUID),
        sop_instance_uid=str(meta.MediaStorageSOPInstanceUID),
        transfer_syntax_uid=str(meta.TransferSyntaxUID),
        calling_ae_title=str(meta.get("SourceApplicationEntityTitle", "")),
        header_bytes=start,
    )
