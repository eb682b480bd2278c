"""Level-set labels of a real series, and lesions pasted into it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from triton_models.data.dicom_folder import Series, read_folder
from triton_models.data.real import RealSeries, label_series, paste_lesions, real_slices
from triton_models.data.slices import IGNORE


@pytest.fixture(scope="module")
def real(shared_ct: Path) -> RealSeries:
    """Six slices of the Siemens series, one with the tumour."""
    (whole,) = read_folder(shared_ct / "lungdx_a0002_siemens_b40f")
    affine = whole.affine.copy()
    affine[:3, 3] += 11 * affine[:3, 0]
    return label_series(Series(whole.hu[11:17], affine, whole.series_instance_uid))


def test_level_set_finds_two_aerated_lungs(real: RealSeries) -> None:
    lungs = real.lungs == 1
    pixel_mm2 = real.series.spacing_mm[1] * real.series.spacing_mm[2]
    area_cm2 = lungs.sum(axis=(1, 2)) * pixel_mm2 / 100
    assert ((area_cm2 > 140) & (area_cm2 < 600)).all()
    assert -920 < np.median(real.series.hu[lungs]) < -750
    middle = lungs.any(axis=(0, 1)).nonzero()[0].mean()
    for half in (lungs[:, :, : int(middle)], lungs[:, :, int(middle) :]):
        assert half.sum() > 0.3 * lungs.sum()


def test_the_tumour_is_ignored_and_nothing_is_called_a_lesion(real: RealSeries) -> None:
    assert set(np.unique(real.lesions)) == {0, IGNORE}
    x, y, z = -50.0, -103.0, 192.0
    index = np.linalg.inv(real.series.affine) @ [x, y, z, 1.0]
    assert real.lesions[tuple(round(v) for v in index[:3])] == IGNORE


def test_pasted_lesions_make_lung_denser_only_where_labelled(real: RealSeries) -> None:
    hu, lesions = paste_lesions(real, np.random.default_rng(4), pattern="peripheral")
    pasted = (lesions == 1) | (lesions == 2)
    assert pasted.any()
    assert (real.lungs[pasted] == 1).all()
    assert (hu[pasted].astype(int) - real.series.hu[pasted]).mean() > 60
    far = (real.lungs == 0) & (real.lesions == 0)
    assert (
        np.array_equal(hu[far], real.series.hu[far])
        or np.abs(hu[far].astype(int) - real.series.hu[far]).mean() < 1.0
    )


def test_slices_are_reproducible(real: RealSeries) -> None:
    first = real_slices(real, np.random.default_rng(1))
    second = real_slices(real, np.random.default_rng(1))
    assert np.array_equal(first.hu, second.hu)
    assert np.array_equal(first.lesions, second.lesions)
