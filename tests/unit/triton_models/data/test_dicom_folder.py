"""The training reader sorts by position and leaves out what isn't an axial CT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from triton_models.data.dicom_folder import AIR_HU, read_folder


def test_lidc_is_sorted_and_its_padding_is_air(shared_ct: Path) -> None:
    (series,) = read_folder(shared_ct / "lidc0001_ge_deflated")
    assert series.hu.shape == (133, 512, 512)
    assert np.allclose(series.spacing_mm, (2.5, 0.703125, 0.703125))
    assert np.allclose(series.affine[:3, 3], (-166.0, -171.699997, -340.0))
    assert series.hu.min() == AIR_HU


def test_coronal_and_sagittal_images_are_left_out(shared_ct: Path) -> None:
    series = read_folder(shared_ct / "ny_sbu_A046441")
    assert [one.hu.shape[0] for one in series] == [1, 1]


def test_a_folder_without_ct_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(FileNotFoundError, match="no axial CT"):
        read_folder(tmp_path)
