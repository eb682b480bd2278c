"""Reading UIDs from encoded data sets, and the file header before them."""

from __future__ import annotations

import struct
import time
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom.dsutils import encode

from node.errors import InstanceRejected
from node.receive.listener import TRANSFER_SYNTAXES
from node.receive.part10 import HEAD_BYTES, encode_header, is_uid, read_filing_uids, read_part10, scan_uids
from tests.integration.receiving import ct_slice, encoded

IMAGE = ct_slice("1.2.3", 1)
UIDS = (IMAGE.SOPClassUID, IMAGE.SOPInstanceUID, IMAGE.StudyInstanceUID, IMAGE.SeriesInstanceUID)


def _uids(dataset: bytes, syntax: str) -> tuple[str, ...]:
    found = read_filing_uids(dataset, syntax)
    return (
        found.sop_class_uid,
        found.sop_instance_uid,
        found.study_instance_uid,
        found.series_instance_uid,
    )


def test_every_encoding() -> None:
    explicit = encoded(IMAGE)
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    assert _uids(explicit, ExplicitVRLittleEndian) == UIDS
    assert _uids(encode(IMAGE, True, True), ImplicitVRLittleEndian) == UIDS
    assert _uids(encode(IMAGE, False, False), ExplicitVRBigEndian) == UIDS
    deflated = deflate.compress(explicit) + deflate.flush()
    assert _uids(deflated, DeflatedExplicitVRLittleEndian) == UIDS


def test_elements_out_of_order_are_found() -> None:
    explicit = encoded(IMAGE)
    start = explicit.index(b"\x08\x00\x18\x00UI")  # move SOP Instance UID behind the series' UIDs
    length = 8 + int.from_bytes(explicit[start + 6 : start + 8], "little")
    element = explicit[start : start + length]
    pixels = explicit.index(b"\xe0\x7f\x10\x00OW")
    shuffled = explicit[:start] + explicit[start + length : pixels] + element + explicit[pixels:]
    assert _uids(shuffled, ExplicitVRLittleEndian) == UIDS


def test_a_bomb_is_not_inflated() -> None:
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    # 512 MB of zeros as the value of an element before the UIDs
    head = b"\x08\x00\x05\x00OB\0\0" + (2**29).to_bytes(4, "little")
    bomb = deflate.compress(head)
    for _ in range(512):
        bomb += deflate.compress(bytes(2**20))
    with pytest.raises(InstanceRejected) as rejected:
        read_filing_uids(bomb + deflate.flush(), DeflatedExplicitVRLittleEndian)
    assert rejected.value.code in ("missing_uid", "unreadable_dataset")


_SEQUENCE = struct.pack("<HHL", 0x0008, 0x1140, 0xFFFFFFFF)
_ITEM, _OPEN_ITEM = struct.pack("<HHL", 0xFFFE, 0xE000, 0), struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)


@pytest.mark.parametrize(
    "dataset",
    [
        _SEQUENCE + _ITEM * 2_000_000,  # pydicom's parser made 2.7 GB of these 16 MB, in a minute
        (_SEQUENCE + _OPEN_ITEM) * 200_000,
        struct.pack("<HHL", 0x0009, 0x1001, 0) * 2_000_000,
        struct.pack("<HHL", 0x0008, 0x0005, 10_000_000) + b"\\" * 10_000_000,  # a character set of 10 million
        struct.pack("<HHL", 0x0008, 0x0018, 10_000_000) + b"1" * 10_000_000,
        struct.pack("<HHL", 0x0009, 0x1001, 0xFFFFFFFF) + bytes(10_000_000),
    ],
    ids=["items", "nesting", "elements", "character set", "uid", "no delimiter"],
)
def test_reading_what_is_malicious_takes_neither_memory_nor_time(dataset: bytes) -> None:
    def whole() -> BinaryIO:
        return BytesIO(dataset)

    started = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(InstanceRejected):
            read_filing_uids(dataset[:HEAD_BYTES], ImplicitVRLittleEndian, whole)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000 + len(dataset) % HEAD_BYTES
    assert time.process_time() - started < 20  # a tenth of that without tracing


def test_nested_sequences_before_the_uids_are_skipped() -> None:
    close = struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
    end = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    inner = struct.pack("<HHL", 0x0008, 0x0018, 4) + b"9.9\0"  # not the data set's own UID
    nested = _SEQUENCE + _OPEN_ITEM + inner + _SEQUENCE + _ITEM + end + close + _ITEM + end
    assert _uids(nested + encode(IMAGE, True, True), ImplicitVRLittleEndian) == UIDS
    fragments = b"\x09\0\x01\x10OB\0\0\xff\xff\xff\xff" + _ITEM + end
    assert _uids(fragments + encoded(IMAGE), ExplicitVRLittleEndian) == UIDS
    unfinished = _SEQUENCE + _OPEN_ITEM + inner + end  # the item's own delimiter is missing
    assert _uids(unfinished + encode(IMAGE, True, True), ImplicitVRLittleEndian) == UIDS


@pytest.mark.parametrize("syntax", sorted(TRANSFER_SYNTAXES))
def test_every_transfer_syntax_that_is_accepted(syntax: str) -> None:
    uid = UID(syntax)
    dataset = encode(IMAGE, uid.is_implicit_VR, uid.is_little_endian)
    assert dataset is not None
    if "Deflate" in uid.name and "Frame" not in uid.name:
        deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        dataset = deflate.compress(dataset) + deflate.flush()
    assert _uids(dataset, syntax) == UIDS


@pytest.mark.parametrize("implicit", [True, False])
def test_the_scan_finds_the_uids_in_the_right_encoding_only(implicit: bool) -> None:
    right, other = encode(IMAGE, implicit, True), encode(IMAGE, not implicit, True)
    assert right is not None and other is not None
    syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    found = scan_uids(right, syntax)
    assert found is not None and set(found.values()) == set(UIDS)
    assert scan_uids(other, syntax) is None
    assert scan_uids(right, "1.2.840.10008.1.2.2") is None


@pytest.mark.parametrize("implicit", [True, False])
def test_a_uid_that_is_there_twice(implicit: bool) -> None:
    """Which one a reader takes would be chance."""
    syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    other = Dataset()
    other.SOPInstanceUID = "9.9"
    image = encode(IMAGE, implicit, True)
    assert image is not None
    with pytest.raises(InstanceRejected, match="twice") as rejected:
        read_filing_uids(encode(other, implicit, True) + image, syntax)
    assert rejected.value.code == "unreadable_dataset"
    other.SOPInstanceUID = IMAGE.SOPInstanceUID
    assert _uids(encode(other, implicit, True) + image, syntax) == UIDS


@pytest.mark.parametrize("uid", ["1.2.840.10008.1.1", "1", "1.2.00.3"])
def test_uids(uid: str) -> None:
    assert is_uid(uid)


@pytest.mark.parametrize("uid", ["", ".", "1.", "1..2", "1.2\n", "../1", "1.2/3", "1" * 65, "１.２"])
def test_not_uids(uid: str) -> None:
    assert not is_uid(uid)


@given(st.binary(max_size=400), st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian]))
def test_any_bytes_are_read_or_rejected(dataset: bytes, syntax: str) -> None:
    with pytest.raises(InstanceRejected):
        read_filing_uids(dataset, syntax)


@given(st.data())
def test_any_mutation_is_read_or_rejected(data: st.DataObject) -> None:
    dataset = bytearray(encoded(IMAGE)[:300])
    for _ in range(data.draw(st.integers(1, 8))):
        dataset[data.draw(st.integers(0, len(dataset) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read_filing_uids(bytes(dataset), ExplicitVRLittleEndian)
    except InstanceRejected:
        return
    assert is_uid(found.sop_instance_uid) and is_uid(found.series_instance_uid)


def test_a_file_can_be_taken_apart_again(tmp_path: Path) -> None:
    header = encode_header(
        sop_class_uid=CTImageStorage,
        sop_instance_uid="1.2.3.4",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        calling_ae_title="SCANNER 1",
    )
    path = tmp_path / "x.dcm"
    path.write_bytes(header + encoded(IMAGE))
    parts = read_part10(path)
    assert path.read_bytes()[parts.header_bytes :] == encoded(IMAGE)
    assert dcmread(path).file_meta.FileMetaInformationVersion == b"\0\1"
    assert (parts.sop_class_uid, parts.sop_instance_uid) == (CTImageStorage, "1.2.3.4")
    assert (parts.transfer_syntax_uid, parts.calling_ae_title) == (ExplicitVRLittleEndian, "SCANNER 1")
