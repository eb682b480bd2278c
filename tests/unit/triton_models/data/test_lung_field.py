"""Lungs of a labelled picture, found without labels of lungs."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from triton_models.data.lung_field import lung_field
from triton_models.data.phantom import Phantom


def _picture() -> tuple[NDArray[np.int16], NDArray[np.bool_], NDArray[np.bool_]]:
    """A body in air with two lungs, a vessel, a hazy lesion and a consolidation at the wall."""
    rows, columns = np.mgrid[:160, :200]
    body = ((rows - 80) / 78) ** 2 + ((columns - 100) / 98) ** 2 < 1
    lungs = np.zeros(body.shape, bool)
    for centre in (55, 145):
        lungs |= ((rows - 80) / 55) ** 2 + ((columns - centre) / 32) ** 2 < 1
    hu = np.where(body, 40, -1000)
    hu[lungs] = -850
    hu[79:81, 40:60] = 30
    lesions = np.zeros(body.shape, bool)
    lesions[60:75, 130:150] = lesions[100:115, 30:48] = True
    lesions &= lungs
    hu[lesions & (columns > 100)] = -500
    hu[lesions & (columns < 100)] = 30
    noise = np.random.default_rng(0).normal(0, 25, hu.shape)
    return (hu + noise).astype(np.int16), lungs, lesions


def test_lungs_with_lesions_and_vessels_without_the_air_around() -> None:
    hu, lungs, lesions = _picture()
    found = lung_field(hu, lesions)
    assert (found & lungs).sum() / (found | lungs).sum() > 0.97
    assert not found[0, 0]
    assert found[lesions].all()


@pytest.mark.parametrize("hu", [-1024, -1000, 40])
def test_a_picture_of_one_grey_has_its_lesions_only(hu: int) -> None:
    lesions = np.zeros((40, 50), bool)
    lesions[10:14, 10:20] = True
    assert np.array_equal(lung_field(np.full((40, 50), hu, np.int16), lesions), lesions)


def test_phantoms_agree(small_phantom: Phantom) -> None:
    middle = len(small_phantom.hu) // 2
    lungs = small_phantom.lungs[middle] > 0
    found = lung_field(small_phantom.hu[middle], small_phantom.lesions[middle] > 0)
    assert 2 * (found & lungs).sum() / (found.sum() + lungs.sum()) > 0.9
