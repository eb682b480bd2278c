"""Headers are read as pydicom reads them, and no file makes that take gigabytes."""

from __future__ import annotations

import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from node import header
from node.header import read_header
from node.route.facts import series_facts
from tests.unit.pipelines.results.synthetic import affine_for, headers

WANTED = ["PatientName", "ImagePositionPatient", "Rows", "SharedFunctionalGroupsSequence"]


def written(path: Path, syntax: str, *, enhanced: bool = False) -> Path:
    shape = (3, 16, 16)
    (image, *_) = headers(affine_for("axial", shape, (5.0, 1.0, 1.0)), shape, enhanced=enhanced)
    image.PixelRepresentation, image.SamplesPerPixel, image.PhotometricInterpretation = 0, 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit = 15
    frames = len(image.PerFrameFunctionalGroupsSequence) if enhanced else 1
    image.PixelData = np.zeros(frames * 256, np.uint16).tobytes()
    image["PixelData"].VR = "OW"
    image.ensure_file_meta()
    image.file_meta.TransferSyntaxUID = syntax
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    dcmwrite(path, image, enforce_file_format=True)
    return path


@pytest.mark.parametrize("enhanced", [False, True])
@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian]
)
def test_it_says_what_pydicom_says(tmp_path: Path, syntax: str, enhanced: bool) -> None:
    path = written(tmp_path / "image.dcm", syntax, enhanced=enhanced)
    ours = read_header(path, WANTED)
    theirs = dcmread(path, stop_before_pixels=True, specific_tags=WANTED)
    assert ours.file_meta.TransferSyntaxUID == syntax
    assert str(ours.PatientName) == "Müller^Jörg"
    for keyword in WANTED:
        assert ours.get(keyword) == theirs.get(keyword), keyword


def bomb(path: Path, megabytes: int) -> Path:
    """Deflated: the elements of an image, then a text that never ends."""
    whole = written(path, DeflatedExplicitVRLittleEndian).read_bytes()
    start = 144 + int.from_bytes(whole[140:144], "little")
    image = zlib.decompress(whole[start:], -zlib.MAX_WBITS)
    text = bytes.fromhex("20004040") + b"UT\0\0" + (megabytes << 20).to_bytes(4, "little")  # (0020,4040)
    deflating = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    parts = [deflating.compress(image[: image.index(bytes.fromhex("28000200"))] + text)]
    parts += [deflating.compress(bytes(1 << 20)) for _ in range(megabytes)]
    path.write_bytes(whole[:start] + b"".join(parts) + deflating.flush())
    return path


def test_a_deflated_bomb_is_unreadable_and_takes_little_memory(tmp_path: Path) -> None:
    path = bomb(tmp_path / "bomb.dcm", 256)
    assert path.stat().st_size < 500_000
    tracemalloc.start()
    try:
        facts = series_facts("1.2.3", [path])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert facts.values["unreadable_count"] == 1
    assert peak < 4 * header.INFLATED_BYTES


def test_what_can_t_be_inflated_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "image.dcm", DeflatedExplicitVRLittleEndian)
    whole = path.read_bytes()
    path.write_bytes(whole[:-200] + b"\xff" * 200)
    damaged = tmp_path / "damaged.dcm"
    start = 144 + int.from_bytes(whole[140:144], "little")
    damaged.write_bytes(whole[:start] + b"\xff" * 100)
    with pytest.raises(ValueError, match="inflated"):
        read_header(damaged, WANTED)


@pytest.mark.parametrize("first", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_a_second_transfer_syntax_hides_no_bomb(tmp_path: Path, first: str) -> None:
    """pydicom goes by the last one: whichever it is, no more is inflated than may be."""
    path = bomb(tmp_path / "bomb.dcm", 64)
    whole = path.read_bytes()
    start = 144 + int.from_bytes(whole[140:144], "little")
    value = first.encode() + b"\0" * (len(first) % 2)
    another = bytes.fromhex("02001000") + b"UI" + len(value).to_bytes(2, "little") + value
    length = (int.from_bytes(whole[140:144], "little") + len(another)).to_bytes(4, "little")
    path.write_bytes(whole[:140] + length + another + whole[144:])
    assert len(path.read_bytes()) == len(whole) + len(another) and start < len(whole)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="takes more than"):
            read_header(path, WANTED)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * header.INFLATED_BYTES
