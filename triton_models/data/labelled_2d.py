"""Labelled 2D slices laid out like Inf-Net's copy of the MedSeg data (Fan et al. 2020).

In: a folder with ``binary/Imgs``, ``binary/GT`` and ``multiclass`` (or ``Imgs`` and ``GT`` in the folder
itself), files that belong together having one name.  Out: ``LabelledImage``s.

The pictures of that copy lie on their side, rows where columns belong (the spine is on the right); they are
stood up. Such data only measures architectures and training code; no weights that ship were trained on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from triton_models.data.grey import grey_to_hu, read_grey

#: infection of a type that the data doesn't tell
UNTYPED = 3


@dataclass(frozen=True)
class LabelledImage:
    """hu: int16 (rows, columns), the patient's front at the top.

    labels: uint8, 0, 1 ground glass, 2 consolidation or UNTYPED.
    """

    name: str
    hu: NDArray[np.int16]
    labels: NDArray[np.uint8]


def is_labelled_2d(folder: Path) -> bool:
    """Whether the folder is laid out so."""
    return _pictures(folder) is not None


def _pictures(folder: Path) -> Path | None:
    return next((base for base in (folder / "binary", folder) if (base / "Imgs").is_dir()), None)


def read_labelled_2d(folder: Path) -> Iterator[LabelledImage]:
    """Every picture of ``Imgs`` with its labels, in the order of the names (numbers by value).

    Raises FileNotFoundError for a folder of another layout or a picture without mask, ValueError for a mask
    of another size or with values that mean nothing.
    """
    base = _pictures(folder)
    if base is None:
        raise FileNotFoundError(f"{folder}: has no folder Imgs or binary/Imgs")
    pictures = sorted((base / "Imgs").iterdir(), key=lambda p: (not p.stem.isdigit(), p.stem.zfill(12)))
    if not pictures:
        raise FileNotFoundError(f"{base / 'Imgs'}: has no pictures")
    for path in pictures:
        hu = grey_to_hu(read_grey(path).T)
        labels = _labels(folder, base, path.stem)
        if labels.shape != hu.shape:
            raise ValueError(f"{path}: is {hu.shape}, its mask {labels.shape} (rows, columns)")
        yield LabelledImage(path.stem, hu, labels)


def _labels(folder: Path, base: Path, stem: str) -> NDArray[np.uint8]:
    typed = folder / "multiclass" / f"{stem}.png"
    if typed.is_file():
        with Image.open(typed) as mask:  # a palette picture: its indices are the labels
            labels = np.asarray(mask).T
        if labels.ndim != 2 or not np.isin(labels, (0, 1, 2)).all():
            raise ValueError(f"{typed}: wants the values 0, 1 (ground glass) and 2 (consolidation)")
        return labels.astype(np.uint8)
    mask_path = base / "GT" / f"{stem}.png"
    if not mask_path.is_file():
        raise FileNotFoundError(f"{mask_path}: no such mask")
    return np.where(read_grey(mask_path).T > 127, UNTYPED, 0).astype(np.uint8)
