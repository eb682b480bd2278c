"""A written phantom reads back with its geometry, and DICOM validators accept it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest

from triton_models.data.dicom_folder import AIR_HU, read_folder
from triton_models.data.dicom_series import phantom_uid, write_series
from triton_models.data.phantom import Phantom, chest_phantom
from triton_models.data.scanner import outside_circle

Series = tuple[Phantom, Path, list[Path]]


@pytest.fixture(
    scope="module", params=[1, 2, 3, 6]
)  # Toshiba, Siemens and two kinds of GE and Toshiba padding
def series(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Series:
    phantom = chest_phantom(request.param, slices=4, rows=96, columns=128)
    folder = tmp_path_factory.mktemp("series")
    return phantom, folder, write_series(phantom, folder, seed=request.param)


def test_reads_back_with_values_and_geometry(series: Series) -> None:
    phantom, folder, paths = series
    assert len(paths) == 4
    (read,) = read_folder(folder)
    expected = phantom.hu.copy()
    padding = phantom.meta.scanner.padding_hu
    if padding is not None and phantom.meta.scanner.signed:
        expected[expected == padding] = AIR_HU
    assert np.array_equal(read.hu, np.clip(expected, AIR_HU, 3071))
    assert np.allclose(read.spacing_mm, phantom.spacing_mm, atol=1e-5)
    assert np.allclose(read.affine[:3, 3], phantom.meta.first_position_mm, atol=1e-5)
    # columns run to the patient's left, rows to the back, slices to the head
    assert (read.affine[:3, :3] > 0).tolist() == [
        [False, False, True],
        [False, True, False],
        [True, False, False],
    ]


def test_padding_value_is_declared(series: Series) -> None:
    phantom, _, paths = series
    ds = pydicom.dcmread(paths[0])
    scanner = phantom.meta.scanner
    if scanner.signed and scanner.padding_hu is not None:
        stored = ds.pixel_array[outside_circle(ds.pixel_array.shape)]
        assert (stored == ds.PixelPaddingValue).all()
        assert ds.PixelPaddingValue + ds.RescaleIntercept == scanner.padding_hu
    else:
        assert "PixelPaddingValue" not in ds


def test_uids_are_a_function_of_the_seed(tmp_path: Path) -> None:
    phantom = chest_phantom(1, slices=2, rows=64, columns=64)
    first = write_series(phantom, tmp_path / "a", seed=5)
    again = write_series(phantom, tmp_path / "b", seed=5)
    other = write_series(phantom, tmp_path / "c", seed=6)
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]
    uids = [pydicom.dcmread(p).SOPInstanceUID for p in (*first, *other)]
    assert len(set(uids)) == 4
    assert all(uid.is_valid and uid.startswith("2.25.") for uid in uids)
    assert pydicom.dcmread(first[0]).StudyInstanceUID == phantom_uid(5, "study")


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
def test_dciodvfy_finds_no_error(series: Series) -> None:
    _, _, paths = series
    for path in (paths[0], paths[-1]):
        result = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        assert "Error" not in result.stderr, result.stderr
        assert result.stderr.splitlines()[0] == "CTImage"
