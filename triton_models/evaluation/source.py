"""What a model is measured on: the options of `pacsnode models evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from triton_models.data.folds import Fold


@dataclass(frozen=True)
class Source:
    """data: folder of a DICOM series (with ``mask``, its NIfTI labels) or of labelled images; None for
    ``phantoms`` generated test phantoms.  split: of a list of images with splits, None for all but "train".
    fold: this part of labelled images only (the one that ``TrainSettings.fold`` leaves out).
    """

    data: Path | None = None
    mask: Path | None = None
    phantoms: int = 12
    split: str | None = None
    fold: Fold | None = None
