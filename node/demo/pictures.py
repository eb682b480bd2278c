"""The secondary captures of a result set as PNG files, for people without a DICOM viewer at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from pydicom import Dataset
from pydicom.uid import MultiFrameTrueColorSecondaryCaptureImageStorage, SecondaryCaptureImageStorage


def save_pictures(datasets: Sequence[Dataset], folder: Path) -> dict[str, Path]:
    """Write the result picture and the first frame of the rendering; returns label -> path."""
    written = {}
    for dataset in datasets:
        if dataset.SOPClassUID == SecondaryCaptureImageStorage:
            written["result picture"] = _save(dataset, folder / "result_picture.png")
        elif dataset.SOPClassUID == MultiFrameTrueColorSecondaryCaptureImageStorage:
            written["rendering, first view"] = _save(dataset, folder / "rendering.png")
    return written


def _save(dataset: Dataset, path: Path) -> Path:
    pixels = dataset.pixel_array
    Image.fromarray(pixels[0] if pixels.ndim == 4 else pixels).save(path)
    return path
