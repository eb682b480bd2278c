"""Folders of labelled pictures, as others lay them out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from triton_models.data.grey import GREY_HU, grey_to_hu
from triton_models.data.labelled_2d import UNTYPED, is_labelled_2d, read_labelled_2d


def _picture(path: Path, pixels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures 10.png, 2.png and 1.png, lying: 8 rows, 12 columns; their masks say which is which."""
    for number in (10, 2, 1):
        _picture(tmp_path / "binary" / "Imgs" / f"{number}.png", np.full((8, 12), 10 * number))
        labels = np.zeros((12, 8))
        labels[:number], labels[-1] = 1, 2
        _picture(tmp_path / "binary" / "GT" / f"{number}.png", (labels.T > 0) * 255)
        _picture(tmp_path / "multiclass" / f"{number}.png", labels.T)
    return tmp_path


def test_pictures_and_masks_by_number(folder: Path) -> None:
    assert is_labelled_2d(folder)
    images = list(read_labelled_2d(folder))
    assert [image.name for image in images] == ["1", "2", "10"]
    assert [int((image.labels == 1).sum()) for image in images] == [8, 16, 80]
    assert all((image.labels[-1] == 2).all() for image in images)
    assert (images[1].hu == grey_to_hu(np.array([20], dtype=np.uint8))).all()


def test_grey_spans_the_window() -> None:
    ends = grey_to_hu(np.array([0, 255], dtype=np.uint8))
    assert ends.tolist() == list(GREY_HU)
    assert ends.dtype == np.int16


def test_without_types_infection_is_all_that_is_known(folder: Path) -> None:
    for path in (folder / "multiclass").iterdir():
        path.unlink()
    assert {int(v) for image in read_labelled_2d(folder) for v in np.unique(image.labels)} == {0, UNTYPED}


def test_what_is_missing_or_does_not_fit_is_named(folder: Path, tmp_path: Path) -> None:
    assert not is_labelled_2d(folder / "multiclass")
    with pytest.raises(FileNotFoundError, match="no folder Imgs"):
        list(read_labelled_2d(folder / "multiclass"))
    (folder / "multiclass" / "2.png").unlink()
    (folder / "binary" / "GT" / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2\.png: no such mask"):
        list(read_labelled_2d(folder))
    _picture(folder / "multiclass" / "2.png", np.full((8, 12), 7))
    with pytest.raises(ValueError, match="wants the values"):
        list(read_labelled_2d(folder))
    _picture(folder / "multiclass" / "2.png", np.zeros((12, 8)))
    with pytest.raises(ValueError, match=r"is \(12, 8\), its mask \(8, 12\)"):
        list(read_labelled_2d(folder))
    (folder / "binary" / "Imgs" / "1.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="isn't a picture"):
        list(read_labelled_2d(folder))


def test_the_real_folder(shared_ct: Path) -> None:
    images = list(read_labelled_2d(shared_ct.parent / "labelled_2d" / "medseg_train"))
    assert len(images) == 50
    assert sum(bool((image.labels == 1).any()) for image in images) == 48
    assert sum(bool((image.labels == 2).any()) for image in images) == 39
    dense = np.concatenate([image.hu[image.labels == 2] for image in images])
    hazy = np.concatenate([image.hu[image.labels == 1] for image in images])
    assert np.median(dense) > np.median(hazy) + 200
