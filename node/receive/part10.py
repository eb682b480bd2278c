"""What the spool needs to know of an encoded data set, and the file header that it puts before one.

In: data set bytes as a peer sent them, with their transfer syntax. Out: the UIDs to file them under, and
the PS3.10 preamble and File Meta Information. No pixel data and no text is decoded (DESIGN I2).
"""

from __future__ import annotations

import io
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from pydicom.filereader import data_element_generator, read_file_meta_info
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian
from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION
from pynetdicom.dsutils import create_file_meta, encode_file_meta

from node.errors import InstanceRejected

#: Enough for everything before (0020,000E) of any sane object; more would let a few kilobytes of deflated
#: zeros ask for gigabytes.
_INFLATE_LIMIT_BYTES = 4 * 1024 * 1024

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")

_FILING_TAGS: dict[BaseTag, str] = {
    Tag(0x0008, 0x0016): "SOPClassUID",
    Tag(0x0008, 0x0018): "SOPInstanceUID",
    Tag(0x0020, 0x000D): "StudyInstanceUID",
    Tag(0x0020, 0x000E): "SeriesInstanceUID",
}
_LAST_FILING_TAG = max(_FILING_TAGS)
_PIXEL_DATA = Tag(0x7FE0, 0x0008)  # float, double and integer pixel data are (7FE0,0008) to (7FE0,0010)


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
    return "".join(character if " " <= character <= "~" else "?" for character in text[:64])


def read_filing_uids(dataset: bytes, transfer_syntax_uid: str) -> FilingUids:
    """Read the UIDs of an encoded data set.

    Raises InstanceRejected with code ``unreadable_dataset``, ``missing_uid`` or ``invalid_uid``.
    """
    syntax = UID(transfer_syntax_uid)
    found: dict[str, str] = {}
    # An encoder that ignores the ascending order of tags (PS3.5 7.1) is read to the pixel data.
    for last in (_LAST_FILING_TAG, _PIXEL_DATA - 1):
        # Whatever a parser of foreign bytes raises is this instance's fault and becomes its quarantine
        # reason: the list of what pydicom can raise here is open, and a file must not stop its neighbours.
        try:
            stream = io.BytesIO(_inflate(dataset) if syntax == DeflatedExplicitVRLittleEndian else dataset)
            found = _read_uids(stream, syntax, last)
        except Exception as error:
            raise InstanceRejected(
                f"the data set can't be read as {syntax.name}: {type(error).__name__}",
                code="unreadable_dataset",
                hint="see the file under quarantine with dcmdump",
            ) from error
        if len(found) == len(_FILING_TAGS):
            break
    for keyword in _FILING_TAGS.values():
        value = found.get(keyword, "")
        if not value:
            raise InstanceRejected(f"{keyword} is missing or empty", code="missing_uid")
        if not is_uid(value):
            raise InstanceRejected(f"{keyword} is not a UID", code="invalid_uid")
    return FilingUids(
        found["SOPClassUID"], found["SOPInstanceUID"], found["StudyInstanceUID"], found["SeriesInstanceUID"]
    )


def _inflate(dataset: bytes) -> bytes:
    """PS3.5 A.5: raw deflate (RFC 1951); only the beginning is inflated."""
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(dataset, _INFLATE_LIMIT_BYTES)


def _read_uids(stream: io.BytesIO, syntax: UID, last: int) -> dict[str, str]:
    found: dict[str, str] = {}
    elements = data_element_generator(
        stream,
        syntax.is_implicit_VR,
        syntax.is_little_endian,
        stop_when=lambda tag, _vr, _length: tag > last,
        specific_tags=list(_FILING_TAGS),
    )
    for element in elements:
        keyword = _FILING_TAGS.get(element.tag)
        if keyword is not None and isinstance(element.value, bytes):
            found[keyword] = element.value.decode("ascii", errors="replace").strip(" \0")
    return found


def encode_header(
    *, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, calling_ae_title: str
) -> bytes:
    """Preamble, prefix and File Meta Information (PS3.10 7.1) of one instance.

    The source AE title (0002,0016) is kept so that a file can be indexed again from itself alone.
    """
    meta = create_file_meta(
        sop_class_uid=UID(printable(sop_class_uid)),
        sop_instance_uid=UID(printable(sop_instance_uid)),
        transfer_syntax=UID(transfer_syntax_uid),
        implementation_uid=PYNETDICOM_IMPLEMENTATION_UID,
        implementation_version=PYNETDICOM_IMPLEMENTATION_VERSION,
    )
    meta.SourceApplicationEntityTitle = printable(calling_ae_title)[:16]
    header: bytes = bytes(128) + b"DICM" + encode_file_meta(meta)
    return header


@dataclass(frozen=True)
class Part10:
    """A spooled file, taken apart again."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str
    dataset: bytes


def read_part10(path: Path) -> Part10:
    """Take a file apart that the spool wrote.

    Raises InvalidDicomError, OSError, AttributeError or EOFError when it is none.
    """
    meta = read_file_meta_info(path)
    # 128 preamble + 4 prefix + the group length element itself (8 header, 4 value)
    start = 144 + int(meta.FileMetaInformationGroupLength)
    return Part10(
        sop_class_uid=str(meta.MediaStorageSOPClassUID),
        sop_instance_uid=str(meta.MediaStorageSOPInstanceUID),
        transfer_syntax_uid=str(meta.TransferSyntaxUID),
        calling_ae_title=str(meta.get("SourceApplicationEntityTitle", "")),
        dataset=path.read_bytes()[start:],
    )
