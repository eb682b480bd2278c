"""Lists of pictures with classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triton_models.data.image_list import is_image_list, read_image_list, source_groups


def test_papers_cases_and_runs_of_slices_are_groups() -> None:
    names = [
        "2020.02.22.20024927-p18-66%1.png",
        "2020.02.22.20024927-p19-70.png",
        "2020.03.03.20030775-p10-88%0.png",
        "89%2.jpg",
        "89.jpg",
        "47.jpg",
        "1305.png",
        "1308.png",
        "1400.png",
    ]
    groups = source_groups(names)
    assert [groups.index(group) for group in groups] == [0, 0, 2, 3, 3, 5, 6, 6, 8]


def test_the_real_list(shared_ct: Path) -> None:
    folder = shared_ct.parent / "labelled_2d" / "ucsd_covid_ct"
    assert is_image_list(folder)
    images = read_image_list(folder)
    assert images.classes == ("COVID", "NonCOVID")
    assert (len(images.images), len(images.for_training.images), len(images.for_testing.images)) == (
        543,
        425,
        118,
    )
    hu = images.images[0].hu()
    assert hu.ndim == 2
    assert hu.dtype == np.int16
    assert len({image.group for image in images.images}) > 150


def test_a_list_without_splits_is_for_training_and_for_testing(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 6), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file,class\na.png,normal\n")
    images = read_image_list(tmp_path)
    assert images.for_training == images.for_testing == images
    assert images.images[0].hu().shape == (4, 6)


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    assert not is_image_list(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"labels\.csv"):
        read_image_list(tmp_path)
    (tmp_path / "labels.csv").write_text("file,kind\na.png,normal\n")
    with pytest.raises(ValueError, match="columns file and class"):
        read_image_list(tmp_path)
