"""Pictures as DICOM: what is kept of them, what isn't, and what isn't taken."""

from __future__ import annotations

import struct
import subprocess
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.uid import SecondaryCaptureImageStorage

from node.web import wrapping
from node.web.multipart import BadBody, Part
from node.web.unpack import kind_of
from node.web.wrapping import Wrapping

PLACE = "N 48 E 11, a phone"


def gradient(rows: int = 96, columns: int = 128) -> Image.Image:
    """Black at the top left, brighter to the right and, by less, downwards; so its turns can be told."""
    row, column = np.mgrid[:rows, :columns]
    return Image.fromarray((row * 0.8 + column * 1.2).clip(0, 255).astype(np.uint8))


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def exif(orientation: int = 1) -> Image.Exif:
    said = Image.Exif()
    said[0x0112] = orientation
    said[0x010E] = PLACE  # ImageDescription
    said.get_ifd(0x8825)[1] = "N"  # GPS
    said.get_ifd(0x8825)[2] = (48.0, 8.0, 0.0)
    return said


def wrap(folder: Path, content: bytes, uid_root: str | None = None) -> bytes:
    folder.mkdir(exist_ok=True)
    path = folder / "upload"
    path.write_bytes(content)
    assert kind_of(path) == "picture"
    return Wrapping(uid_root).wrap(Part(path, "", "name", len(content)), folder).read_bytes()


def read(content: bytes) -> Dataset:
    return dcmread(BytesIO(content))


def test_a_picture_is_a_secondary_capture_of_nobody(tmp_path: Path) -> None:
    image = read(wrap(tmp_path, encoded(gradient())))
    assert image.SOPClassUID == SecondaryCaptureImageStorage
    assert list(image.ImageType) == ["DERIVED", "SECONDARY"] and image.ConversionType == "DI"
    assert (image.BurnedInAnnotation, image.Modality) == ("YES", "OT")
    np.testing.assert_array_equal(image.pixel_array, np.asarray(gradient()))
    assert image.PhotometricInterpretation == "MONOCHROME2" and image.BitsStored == 8
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"):
        assert keyword in image and not image[keyword].value
    assert "LossyImageCompression" not in image


def test_the_same_file_is_the_same_instance_and_another_is_another(tmp_path: Path) -> None:
    first, again = (wrap(tmp_path / name, encoded(gradient())) for name in "ab")
    assert first == again
    other = read(wrap(tmp_path / "c", encoded(gradient(), compress_level=0)))
    rooted = read(wrap(tmp_path / "d", encoded(gradient()), "1.2.826.0.1.3680043.10.1"))
    names = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
    uids = [str(image[name].value) for image in (read(first), other, rooted) for name in names]
    assert len(set(uids)) == 9
    assert all(uid.startswith("2.25.") for uid in uids[:6])
    assert all(uid.startswith("1.2.826.0.1.3680043.10.1.") for uid in uids[6:])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_upright_and_nothing_else_is_kept(tmp_path: Path, kind: str, orientation: int) -> None:
    turned: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, 1),  # stored so, it is upright when turned by 90 degrees clockwise
        7: lambda a: np.rot90(a, 2).T,
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(turned[orientation](np.asarray(gradient()))))
    content = encoded(stored, kind, exif=exif(orientation))
    assert PLACE.encode() in content
    wrapped = wrap(tmp_path, content)
    assert PLACE.encode() not in wrapped and b"GPS" not in wrapped and b"Exif" not in wrapped
    difference = read(wrapped).pixel_array.astype(int) - np.asarray(gradient())
    assert np.abs(difference).max() <= (12 if kind == "JPEG" else 0)


def test_what_a_jpeg_lost_is_said(tmp_path: Path) -> None:
    content = encoded(gradient(), "JPEG")
    image = read(wrap(tmp_path, content))
    assert (image.LossyImageCompression, image.LossyImageCompressionMethod) == ("01", "ISO_10918_1")
    assert float(image.LossyImageCompressionRatio) == pytest.approx(96 * 128 / len(content), abs=0.01)


def test_colours_become_luminance(tmp_path: Path) -> None:
    grey = gradient()
    red = Image.new("RGB", (128, 96), (200, 0, 0))
    clear = grey.convert("RGBA")
    clear.putalpha(
        Image.fromarray(np.where(np.arange(128) < 64, 255, 0).astype(np.uint8)[None].repeat(96, 0))
    )
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    for picture, wanted in (
        (grey.convert("RGB"), np.asarray(grey)),
        (grey.convert("P"), np.asarray(grey.convert("P").convert("L"))),
        (red, np.full((96, 128), 60)),  # 0.299 of it (ITU-R 601-2)
        (clear, np.where(np.arange(128) < 64, np.asarray(grey), 0)),
        (deep, np.asarray(grey)),
        (grey.convert("1"), np.asarray(grey.convert("1").convert("L"))),
    ):
        found = read(wrap(tmp_path, encoded(picture))).pixel_array
        np.testing.assert_allclose(found, wanted, atol=1, err_msg=picture.mode)


def test_a_large_picture_is_shrunk(tmp_path: Path) -> None:
    for kind in ("JPEG", "PNG"):
        image = read(wrap(tmp_path, encoded(gradient().resize((4000, 3000)).convert("RGB"), kind)))
        assert (image.Rows, image.Columns) == (768, 1024)
        assert f"{kind} picture of 3000 x 4000 pixels" in image.DerivationDescription
        expected = np.asarray(gradient().resize((1024, 768)), dtype=int)
        assert np.abs(image.pixel_array.astype(int) - expected).mean() < 3


def test_a_phones_second_picture_is_left_out(tmp_path: Path) -> None:
    """MPO: a JPEG with another behind it, for bright screens or depth."""
    content = encoded(gradient(), "MPO", save_all=True, append_images=[Image.new("L", (128, 96), 255)])
    image = read(wrap(tmp_path, content))
    assert np.abs(image.pixel_array.astype(int) - np.asarray(gradient())).max() <= 12


def png_of(columns: int, rows: int) -> bytes:
    """What says that it is so large, and holds almost nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    rest = chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rest


def moving() -> bytes:
    return encoded(gradient(), save_all=True, append_images=[Image.new("L", (128, 96))])


def scans(times: int) -> bytes:
    """A small progressive JPEG of many pixels with one scan many times: each time all of it is gone over."""
    whole = encoded(Image.new("L", (7000, 7000)), "JPEG", progressive=True)
    start = whole.index(b"\xff\xda", whole.index(b"\xff\xda") + 2)  # the second: the first has no AC
    before = whole.rindex(b"\xff\xc4", 0, start)  # with its table
    end = whole.index(b"\xff\xc4", start)
    return whole[:before] + whole[before:end] * times + whole[end:]


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        pytest.param(png_of(50_000, 50_000), 422, "50000 x 50000 pixels; at most 60 million", id="bomb"),
        pytest.param(png_of(2**31 - 1, 2**31 - 1), 422, "at most 60 million", id="largest header"),
        pytest.param(encoded(gradient())[:-40], 422, "cut short or broken", id="truncated PNG"),
        pytest.param(encoded(gradient(), "JPEG")[:-200], 422, "cut short or broken", id="truncated JPEG"),
        pytest.param(b"\x89PNG\r\n\x1a\n", 422, "its header can't be read", id="signature only"),
        pytest.param(b"\xff\xd8\xff\xe0 a photo", 422, "its header can't be read", id="no JPEG"),
        pytest.param(encoded(gradient().convert("CMYK"), "JPEG"), 422, "colours of print", id="CMYK"),
        pytest.param(moving(), 422, "the picture moves", id="animated"),
        pytest.param(encoded(gradient(40, 100)), 422, "too few", id="small"),
        pytest.param(encoded(gradient(100, 900)), 422, "too narrow", id="narrow"),
    ],
)
def test_what_is_not_taken(tmp_path: Path, content: bytes, status: int, message: str) -> None:
    with pytest.raises(BadBody, match=message) as caught:
        wrap(tmp_path, content)
    assert caught.value.status == status


def test_a_picture_that_never_ends_decoding_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrapping, "SECONDS", 4.0)
    content = scans(20_000)
    assert len(content) < wrapping.MOST_BYTES
    with pytest.raises(BadBody, match="too much time or memory") as caught:
        wrap(tmp_path, content)
    assert caught.value.status == 422


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrapping, "MOST_BYTES", 1_000_000)
    with pytest.raises(BadBody, match="1 MB at most") as caught:
        wrap(tmp_path, encoded(gradient()) + bytes(1_000_000))
    assert caught.value.status == 413


def test_what_decodes_has_none_of_the_nodes_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACS_TOKEN", "secret")
    seen: list[dict[str, str]] = []
    run = subprocess.run

    def spied(command: list[str], **options: Any) -> Any:
        seen.append(options["env"])
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", spied)
    wrap(tmp_path, encoded(gradient()))
    assert seen and "PACS_TOKEN" not in seen[0]
