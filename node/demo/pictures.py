"""The secondary captures of a result set as PNG files, for people without a DICOM viewer at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from pydicom import Dataset
from pydicom.uid import MultiFrameTrueColorSecondaryCaptureImageStorage, SecondaryCaptureImageStorage

from pipelines.results.identity import SERIES_TYPES

#: role of a capture -> what it is called for people, and its file
_PICTURES: Mapping[str, tuple[str, str]] = {
    "picture": ("result picture", "result_picture.png"),
    "rotation": ("rendering, first view", "rendering.png"),
    "montage": ("slices", "montage.png"),
    "inpainted": ("as if without lesions", "inpainted.png"),
}


def save_pictures(datasets: Sequence[Dataset], folder: Path) -> dict[str, Path]:
    """Write the secondary captures, of a loop its first frame; returns label -> path."""
    roles = {series.number: role for role, series in SERIES_TYPES.items()}
    written = {}
    for dataset in datasets:
        if dataset.SOPClassUID in {
            SecondaryCaptureImageStorage,
            MultiFrameTrueColorSecondaryCaptureImageStorage,
        }:
            label, name = _PICTURES[roles[int(dataset.SeriesNumber)]]
            written[label] = _save(dataset, folder / name)
    return written


def _save(dataset: Dataset, path: Path) -> Path:
    pixels = dataset.pixel_array
    Image.fromarray(pixels[0] if pixels.ndim == 4 else pixels).save(path)
    return path
