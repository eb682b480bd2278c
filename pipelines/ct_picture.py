"""One picture of a CT slice: a secondary capture in, grey values and guessed Hounsfield units out.

Nothing tells a picture's window, scale or place: ``GREY_HU`` is a guess, and there are no millimetres. What
``pneumonia_class`` and ``fusion`` see of it is the picture itself: their graphs begin with the same window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import SecondaryCaptureImageStorage

from pipelines.errors import SeriesRefused
from pipelines.instance import MALFORMED
from pipelines.load import Progress

#: HU of black and white: the lung window through which ``triton_models`` learns from pictures and measures
#: itself on them (``triton_models.data.grey``, which a test compares)
GREY_HU = (-1050.0, 250.0)
NOTES = (
    "Made from a picture, not from CT. Not for clinical use.",
    f"Its grey values are taken for Hounsfield units, black {GREY_HU[0]:.0f} and white {GREY_HU[1]:.0f} HU: "
    "that is a guess, since nothing tells its window.",
    "It has no millimetres and no position: nothing is measured, and which side is the patient's right isn't "
    "known.",
)
#: grey, 8 bits a pixel (PS3.3 C.7.6.3)
_WANTED = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 8}


@dataclass(frozen=True)
class CtPicture:
    """grey: uint8 (rows, columns), black is 0.  source: the instance's header without pixel data."""

    grey: NDArray[np.uint8]
    source: Dataset
    notes: tuple[str, ...] = NOTES
    source_frames: tuple[tuple[int, int], ...] = ((0, 1),)

    @property
    def sources(self) -> tuple[Dataset, ...]:
        return (self.source,)

    @property
    def instance_uids(self) -> tuple[str, ...]:
        return (str(self.source.SOPInstanceUID),)

    @property
    def series_instance_uid(self) -> str:
        return str(self.source.SeriesInstanceUID)

    @property
    def hu(self) -> NDArray[np.int16]:
        """int16 (rows, columns): ``guessed_hu``."""
        return guessed_hu(self.grey)


def guessed_hu(grey: NDArray[np.uint8]) -> NDArray[np.int16]:
    """int16, as if the window had been ``GREY_HU``; any shape."""
    low, high = GREY_HU
    return np.asarray(np.rint(low + grey.astype(np.float32) * ((high - low) / 255.0)), np.int16)


def load_ct_picture(paths: Sequence[Path], progress: Progress) -> CtPicture:
    """Read one picture, as ``node`` wraps those that a phone sends.

    paths: of one Part 10 file. Raises SeriesRefused (coded): no_instances, several_pictures,
    unreadable_instance, unsupported_sop_class, missing_attribute, unsupported_pixels, undecodable_pixels.
    """
    if not paths:
        raise SeriesRefused("the series has no instances", code="no_instances")
    if len(paths) > 1:
        raise SeriesRefused(
            f"the series has {len(paths)} instances; this pipeline is for a single picture",
            code="several_pictures",
            hint="each picture in a series of its own",
        )
    try:
        dataset = dcmread(paths[0])
    except (InvalidDicomError, OSError, *MALFORMED) as error:
        raise SeriesRefused(
            f"{paths[0].name}: not readable as DICOM: {error}", code="unreadable_instance"
        ) from error
    _check(dataset)
    try:
        grey = dataset.pixel_array
    except (OSError, *MALFORMED) as error:
        raise SeriesRefused(
            f"{_value(dataset, 'SOPInstanceUID')}: its pixel data can't be decoded: {error}",
            code="undecodable_pixels",
        ) from error
    if grey.ndim != 2 or grey.dtype != np.uint8:
        raise _unsupported(dataset, f"pixels are {grey.dtype} {grey.shape}")
    del dataset.PixelData
    progress(1, 1)
    return CtPicture(grey, dataset)


def _check(dataset: Dataset) -> None:
    sop_class = str(_value(dataset, "SOPClassUID") or "")
    if sop_class != SecondaryCaptureImageStorage:
        raise SeriesRefused(
            f"SOP Class UID {sop_class or '(empty)'} isn't Secondary Capture Image Storage",
            code="unsupported_sop_class",
            hint="route only pictures to this pipeline",
        )
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        if not isinstance(_value(dataset, keyword) or None, str):
            raise SeriesRefused(
                f"{keyword} is missing, empty or has several values", code="missing_attribute"
            )
    for keyword, wanted in _WANTED.items():
        if (found := _value(dataset, keyword)) != wanted:
            raise _unsupported(dataset, f"{keyword} is {found}, {wanted} is wanted")


def _unsupported(dataset: Dataset, why: str) -> SeriesRefused:
    return SeriesRefused(f"{_value(dataset, 'SOPInstanceUID')}: {why}", code="unsupported_pixels")


def _value(dataset: Dataset, keyword: str) -> Any:
    """The attribute's value, None where it is missing or its bytes aren't one."""
    try:
        return dataset.get(keyword)
    except MALFORMED:
        return None
