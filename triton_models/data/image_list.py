"""Pictures with a class each, laid out like the UCSD COVID-CT data: a folder with ``labels.csv``.

In: that folder; columns ``file`` and ``class``, and if they are there ``split`` and ``original_file``.
Out: ``ImageList``. Such data only measures architectures and training code; no weights that ship were
trained on it.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from triton_models.data.folds import Fold, inside
from triton_models.data.grey import grey_to_hu, read_grey

LIST = "labels.csv"
TRAIN = "train"


@dataclass(frozen=True)
class ListedImage:
    """group: shared by images of one source (a paper, a case), which train and test must not share."""

    path: Path
    label: str
    split: str
    group: str

    def hu(self) -> NDArray[np.int16]:
        """(rows, columns). Raises FileNotFoundError, ValueError."""
        return grey_to_hu(read_grey(self.path))


@dataclass(frozen=True)
class ImageList:
    images: tuple[ListedImage, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """By name."""
        return tuple(sorted({image.label for image in self.images}))

    def of_split(self, split: str) -> ImageList:
        return ImageList(tuple(image for image in self.images if image.split == split))

    def within(self, fold: Fold) -> ImageList:
        """Those of one part; images of one group are never in two."""
        return self._kept(self._inside(fold))

    def without(self, fold: Fold) -> ImageList:
        """Those of the other parts."""
        return self._kept(~self._inside(fold))

    def _inside(self, fold: Fold) -> NDArray[np.bool_]:
        labels = [image.label for image in self.images]
        return inside([image.group for image in self.images], fold, labels)

    def _kept(self, keep: NDArray[np.bool_]) -> ImageList:
        return ImageList(tuple(image for image, kept in zip(self.images, keep, strict=True) if kept))

    @property
    def for_training(self) -> ImageList:
        """Those of the split "train", or all where nothing is split."""
        train = self.of_split(TRAIN)
        return train if train.images else self

    @property
    def for_testing(self) -> ImageList:
        """All but those of the split "train", or all where nothing is split."""
        rest = ImageList(tuple(image for image in self.images if image.split != TRAIN))
        return rest if rest.images else self


def is_image_list(folder: Path) -> bool:
    return (folder / LIST).is_file()


def read_image_list(folder: Path) -> ImageList:
    """Raises FileNotFoundError without labels.csv, ValueError for one that lacks columns or rows."""
    path = folder / LIST
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: has no {LIST}")
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or not {"file", "class"} <= rows[0].keys():
        raise ValueError(
            f"{path}: wants rows with the columns file and class (split, original_file if known)"
        )
    groups = source_groups([row.get("original_file") or row["file"] for row in rows])
    return ImageList(
        tuple(
            ListedImage(folder / row["file"], row["class"], row.get("split") or "", group)
            for row, group in zip(rows, groups, strict=True)
        )
    )


def source_groups(names: list[str]) -> list[str]:
    """The source of each original file name.

    ``2020.02.22.20024927-p18-66%1.png`` is of the paper before ``-p18``; ``89%2.jpg`` of the case before
    ``%``; numbered slices (``1305.png``) are of one case while the numbers run on with gaps of 3 at most.
    """
    numbered = sorted({int(name[:-4]) for name in names if re.fullmatch(r"\d+\.png", name)})
    starts: dict[int, int] = {}
    for before, number in zip([-100, *numbered], numbered, strict=False):
        starts[number] = starts[before] if number - before <= 3 else number
    groups = []
    for name in names:
        if paper := re.match(r"(.+?)-p\d+-", name):
            groups.append(paper[1])
        elif re.fullmatch(r"\d+\.png", name):
            groups.append(f"slices from {starts[int(name[:-4])]}")
        else:
            groups.append(re.split(r"[%.]", name)[0])
    return groups
