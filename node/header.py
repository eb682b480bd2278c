"""The header of a Part 10 file as pydicom decodes it, for whoever asks of a file that anybody may have sent.

In: a file and the attributes that are wanted.  Out: them, and the File Meta Information. Pixel data isn't
read, and of a deflated data set only a beginning is inflated: a few kilobytes of it can stand for gigabytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.tag import Tag

from node.receive.dataset import UnreadableDataset, top_level_elements
from node.receive.part10 import DEFLATED, header_length, inflate_beginning

#: more than the header of an enhanced CT with thousands of frames
INFLATED_BYTES = 32 * 1024 * 1024
_PIXEL_DATA = 0x7FE00008
_META_GROUP, _TRANSFER_SYNTAX_UID = 0x0002, 0x00020010
#: preamble and prefix; and enough for all that comes before the data set, as a rule
_AFTER_PREFIX, _META_BYTES = 132, 2048


def read_header(path: Path, wanted: Sequence[str | int]) -> Dataset:
    """The wanted attributes, as keywords or tags; ``file_meta`` holds the meta information.

    Raises OSError, or whatever pydicom raises for a file that isn't DICOM or is damaged; ValueError for a
    header that is longer than is inflated.
    """
    if not _is_deflated(path):
        return dcmread(path, stop_before_pixels=True, specific_tags=list(wanted))
    meta = read_file_meta_info(path)
    with path.open("rb") as file:
        file.seek(header_length(file))
        try:
            beginning, is_all = inflate_beginning(file, INFLATED_BYTES)
        except UnreadableDataset as error:
            raise ValueError(f"{path.name}: {error}") from error
    seen_pixels = False

    def at_pixels(tag: int, _vr: str | None, _length: int) -> bool:
        nonlocal seen_pixels
        seen_pixels = tag >= _PIXEL_DATA
        return seen_pixels

    tags = [Tag(each) for each in wanted]
    header = read_dataset(io.BytesIO(beginning), False, True, stop_when=at_pixels, specific_tags=tags)
    if not seen_pixels and not is_all:
        raise ValueError(f"{path.name}: its header takes more than {INFLATED_BYTES} bytes")
    header.file_meta = meta
    return header


def _is_deflated(path: Path) -> bool:
    """As its Transfer Syntax UID (0002,0010) says: told without pydicom, which takes as long for that as for
    all the rest. Where any of several says so, it is."""
    with path.open("rb") as file:
        beginning = io.BytesIO(file.read(_META_BYTES))
    beginning.seek(_AFTER_PREFIX)
    syntaxes = set[str]()
    try:
        for tag, at, length in top_level_elements(beginning, implicit_vr=False, little_endian=True):
            if tag >> 16 != _META_GROUP:
                return bool(syntaxes & DEFLATED)
            if tag == _TRANSFER_SYNTAX_UID:
                value = beginning.getvalue()[at : at + length]
                syntaxes.add(value.decode("ascii", errors="replace").strip(" \0"))
    except UnreadableDataset:
        pass  # it is longer than what was read
    return str(read_file_meta_info(path).get("TransferSyntaxUID", "")) in DEFLATED
