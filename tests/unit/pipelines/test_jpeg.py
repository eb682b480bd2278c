"""Every kind of JPEG that CT comes in, against DCMTK: encoded by dcmcjpeg and dcmcjpls, decoded by both."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import (
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from pipelines import jpeg
from triton_models.data.dicom_series import write_series
from triton_models.data.phantom import chest_phantom

#: program and option -> what it makes
CODED = {
    ("dcmcjpeg", "+ee"): JPEGExtended12Bit,
    ("dcmcjpeg", "+el"): JPEGLossless,
    ("dcmcjpeg", "+e1"): JPEGLosslessSV1,
    ("dcmcjpls", "+el"): JPEGLSLossless,
    ("dcmcjpls", "+en"): JPEGLSNearLossless,
}
DECODERS = {"dcmcjpeg": "dcmdjpeg", "dcmcjpls": "dcmdjpls"}


def dcmtk(program: str, *arguments: str | Path) -> None:
    path = Path("/usr/bin") / program  # pydicom and pynetdicom install scripts of like names
    if not path.exists():
        pytest.skip("needs DCMTK: apt-get install dcmtk")
    subprocess.run([path, *arguments], check=True, timeout=60, capture_output=True)


@pytest.fixture(scope="module", params=["unsigned", "signed"])
def slice_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A noisy CT slice of 12 bits, uncompressed."""
    folder = tmp_path_factory.mktemp("slice")
    path = write_series(chest_phantom(5, slices=3, rows=96, columns=80, lesions=True), folder, seed=5)[1]
    image = dcmread(path)
    noise = np.random.default_rng(5).integers(-40, 40, image.pixel_array.shape)
    signed = request.param == "signed"
    low, high = (-2048, 2047) if signed else (0, 4095)
    stored = np.clip(image.pixel_array + noise + (0 if signed else 1024), low, high)
    image.PixelRepresentation = int(signed)
    image.BitsStored, image.HighBit = 12, 11
    image.PixelData = stored.astype(np.int16).tobytes()
    image.save_as(path)
    return path


@pytest.mark.parametrize(("encoder", "option"), CODED)
def test_decoded_as_by_dcmtk(slice_of: Path, encoder: str, option: str, tmp_path: Path) -> None:
    if CODED[encoder, option] == JPEGLSNearLossless and dcmread(slice_of).PixelRepresentation:
        pytest.skip("DCMTK encodes no signed samples with loss")
    jpeg.make_known()
    coded, plain = tmp_path / "coded.dcm", tmp_path / "plain.dcm"
    dcmtk(encoder, option, slice_of, coded)
    dcmtk(DECODERS[encoder], coded, plain)
    ours = dcmread(coded)
    assert ours.file_meta.TransferSyntaxUID == CODED[encoder, option]
    np.testing.assert_array_equal(ours.pixel_array, dcmread(plain).pixel_array)


def test_nothing_is_decoded_of_a_damaged_frame_but_pixels_or_an_error(slice_of: Path, tmp_path: Path) -> None:
    jpeg.make_known()
    for option in ("+ee", "+e1"):
        coded = tmp_path / "coded.dcm"
        dcmtk("dcmcjpeg", option, slice_of, coded)
        damaged = dcmread(coded)
        whole, random, errors = bytes(damaged.PixelData), np.random.default_rng(7), 0
        for _ in range(60):
            data = bytearray(whole)
            for at in random.integers(16, 16 + 200, 3):
                data[at] = random.integers(256)
            damaged.PixelData = bytes(data)
            try:
                assert damaged.pixel_array.shape == (damaged.Rows, damaged.Columns)
            except (RuntimeError, ValueError):
                errors += 1
        assert errors > 5


def test_a_frame_of_another_size_is_an_error(slice_of: Path, tmp_path: Path) -> None:
    jpeg.make_known()
    coded = tmp_path / "coded.dcm"
    dcmtk("dcmcjpeg", "+e1", slice_of, coded)
    image = dcmread(coded)
    image.Rows -= 1
    with pytest.raises(RuntimeError, match=r"a frame of \(96, 80\), where 95 x 80 is said"):
        image.pixel_array  # noqa: B018 - decodes
