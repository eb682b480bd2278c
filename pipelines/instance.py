"""One instance of a series: its file in, its header, its stored values and their Hounsfield units out."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import data_element_generator
from pydicom.uid import DeflatedExplicitVRLittleEndian

from pipelines import jpeg
from pipelines.errors import SeriesRefused

AIR_HU = -1024
#: what pydicom raises on bytes that aren't the value that they should be; it converts when a value is read
MALFORMED = (
    *(ValueError, TypeError, AttributeError, KeyError, IndexError, NotImplementedError),
    *(OverflowError, EOFError, RuntimeError, struct.error, BytesLengthException),
)
jpeg.make_known()


@dataclass(frozen=True)
class Image:
    """One instance: its header without pixel data, and the byte of its file at which that ends."""

    header: Dataset
    path: Path
    end: int


def read_image(path: Path) -> Image:
    """Read a file up to its pixels. Raises SeriesRefused (unreadable_instance)."""
    try:
        with path.open("rb") as file:
            return Image(dcmread(file, stop_before_pixels=True), path, file.tell())
    except (InvalidDicomError, OSError, *MALFORMED) as error:
        raise SeriesRefused(
            f"{path.name}: not readable as DICOM: {error}", code="unreadable_instance"
        ) from error


def value_of(holder: Dataset, keyword: str) -> Any:
    """The attribute's value, None where it is missing. Raises SeriesRefused where its bytes aren't one."""
    try:
        return holder.get(keyword)
    except MALFORMED as error:
        raise SeriesRefused(f"{keyword} can't be read: {error}", code="missing_attribute") from error


def name_of(source: Dataset) -> str:
    return str(source.get("SOPInstanceUID") or "(instance without SOP Instance UID)")


def stored_values(image: Image, rows: int, columns: int, at_least: int) -> NDArray[np.integer[Any]]:
    """Stored values of all frames of one instance, (frames, rows, columns), ``at_least`` so many frames.

    Raises SeriesRefused (undecodable_pixels).
    """
    syntax = image.header.file_meta.get("TransferSyntaxUID")
    try:
        dataset = _with_pixels(image) if syntax != DeflatedExplicitVRLittleEndian else dcmread(image.path)
        stored: NDArray[np.integer[Any]] = dataset.pixel_array.reshape(-1, rows, columns)
    except (OSError, *MALFORMED) as error:
        raise SeriesRefused(
            f"{name_of(image.header)}: pixel data ({getattr(syntax, 'name', '(none)')}) can't be decoded: "
            f"{error}",
            code="undecodable_pixels",
        ) from error
    if len(stored) < at_least:
        raise SeriesRefused(
            f"{name_of(image.header)}: pixel data has {len(stored)} frame(s), its header describes "
            f"{at_least}",
            code="undecodable_pixels",
        )
    return stored


def _with_pixels(image: Image) -> Dataset:
    """What decoding needs of an instance whose header was read: the rest of its file isn't read again."""
    header = image.header
    dataset = header.group_dataset(0x0028)
    dataset.update(header.group_dataset(0x7FE0))  # extended offset tables come before the pixels
    dataset.file_meta = header.file_meta
    with image.path.open("rb") as file:
        file.seek(image.end)
        for element in data_element_generator(file, *header.original_encoding):
            dataset[element.tag] = element
            break
    return dataset


def to_hu(
    stored: NDArray[np.integer[Any]],
    source: Dataset,
    *,
    slope: float,
    intercept: float,
    out: NDArray[np.int16],
) -> None:
    """Modality rescale (PS3.3 C.11.1.1.2); pixels in the padding range (C.7.5.1.1.2) become air."""
    # Below -1024 no CT number is a measurement: vendors write -2000, -2048, -3024 … outside the circle.
    limits = AIR_HU, np.iinfo(np.int16).max
    if slope == 1.0 and float(intercept).is_integer():
        values = np.add(stored, int(intercept), dtype=np.int32, casting="unsafe")
    else:
        values = np.rint(stored.astype(np.float64) * slope + intercept).astype(np.int32)
    np.clip(values, *limits, out=out, casting="unsafe")
    padding = _padding_range(source)
    if padding is not None:
        out[(stored >= padding[0]) & (stored <= padding[1])] = AIR_HU


def _padding_range(source: Dataset) -> tuple[int, int] | None:
    value = value_of(source, "PixelPaddingValue")
    if not isinstance(value, int):
        return None
    limit = value_of(source, "PixelPaddingRangeLimit")
    ends = [_as_stored(value, source), _as_stored(limit if isinstance(limit, int) else value, source)]
    return min(ends), max(ends)


def _as_stored(value: int, source: Dataset) -> int:
    """Read a padding value with the pixels' sign: files carry 63536 (US) where the pixels hold -2000."""
    bits = int(source.get("BitsAllocated", 16))
    if source.get("PixelRepresentation") == 1 and value >= 1 << (bits - 1):
        return value - (1 << bits)
    if source.get("PixelRepresentation") == 0 and value < 0:
        return value + (1 << bits)
    return value
