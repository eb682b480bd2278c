"""Instances of one CT series in, a ``Volume`` in Hounsfield units out.

Headers first: the geometry gate decides before any pixel is decoded, but those of slices that share a plane,
which are compared. Classic CT (one frame an instance) and enhanced multi-frame CT are read alike, as a list
of frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage

from pipelines.errors import SeriesRefused
from pipelines.geometry import Plane, gate, tilt_degrees
from pipelines.volume import Volume

AIR_HU = -1024
SUPPORTED_SOP_CLASSES = {str(CTImageStorage): "CT Image", str(EnhancedCTImageStorage): "Enhanced CT Image"}
#: decoders release the interpreter lock; more threads than this only cost memory
DECODE_THREADS = 4

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Frame:
    """One frame of one instance: its plane and how its stored values become HU."""

    source: int
    number: int  # 1-based
    plane: Plane
    slope: float
    intercept: float


def dicom_files(folder: Path) -> list[Path]:
    """All files below ``folder`` that begin like DICOM Part 10 (PS3.10 7.1), sorted by path."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as stream:
            if stream.read(132)[128:] == b"DICM":
                found.append(path)
    return found


def load_series(paths: Sequence[Path], *, progress: Progress | None = None) -> Volume:
    """Read one CT series.

    paths: Part 10 files, any order. Returns int16 HU (slices, rows, columns), padding as air.
    Raises SeriesRefused (coded): no_instances, unreadable_instance, mixed_series, unsupported_sop_class,
    missing_attribute, geometry_*, undecodable_pixels.
    """
    if not paths:
        raise SeriesRefused("the series has no instances", code="no_instances")
    sources = [_read_header(path) for path in paths]
    _check_one_series(sources)
    received = [frame for i, source in enumerate(sources) for frame in _frames(i, source)]
    frames = _without_copies(received, paths, sources)
    order, affine = gate([frame.plane for frame in frames])
    ordered = [frames[i] for i in order]
    hu = _decode(paths, sources, ordered, progress)
    used = list(dict.fromkeys(frame.source for frame in ordered))  # sources in slice order
    new_index = {old: new for new, old in enumerate(used)}
    return Volume(
        hu=hu,
        affine=affine,
        sources=tuple(sources[i] for i in used),
        source_frames=tuple((new_index[frame.source], frame.number) for frame in ordered),
        notes=_notes(len(received) - len(frames), tilt_degrees(affine, len(frames))),
    )


def _notes(copies: int, tilted: float) -> tuple[str, ...]:
    notes = []
    if copies:
        notes.append(
            f"{copies} slice(s) came twice under different UIDs, with equal pixels: one of each is used."
        )
    if tilted:
        notes.append(f"The slices are tilted by {tilted:.1f} degrees (gantry tilt).")
    return tuple(notes)


def _without_copies(
    frames: Sequence[Frame], paths: Sequence[Path], sources: Sequence[Dataset]
) -> list[Frame]:
    """One of each set of frames with equal plane and equal pixels, the first by UID.

    Different pixels at one position stay: the geometry gate refuses them, for which are right is a guess.
    """
    at_plane: dict[tuple[object, ...], list[Frame]] = {}
    for frame in frames:
        place = replace(frame.plane, name="")
        at_plane.setdefault((place, frame.slope, frame.intercept), []).append(frame)
    kept = []
    for alike in at_plane.values():
        alike.sort(key=lambda frame: (str(sources[frame.source].SOPInstanceUID), frame.number))
        kept.append(alike[0])
        if len(alike) > 1:
            rows, columns = alike[0].plane.shape
            pixels = [_pixels(paths[one.source], rows, columns)[one.number - 1] for one in alike]
            kept += [
                one
                for one, its in zip(alike[1:], pixels[1:], strict=True)
                if not np.array_equal(its, pixels[0])
            ]
    return kept


def _read_header(path: Path) -> Dataset:
    try:
        return dcmread(path, stop_before_pixels=True)
    except (InvalidDicomError, OSError, ValueError, EOFError) as error:
        raise SeriesRefused(
            f"{path.name}: not readable as DICOM: {error}", code="unreadable_instance"
        ) from error


def _check_one_series(sources: Sequence[Dataset]) -> None:
    for source in sources:
        sop_class = str(source.get("SOPClassUID", ""))
        if sop_class not in SUPPORTED_SOP_CLASSES:
            raise SeriesRefused(
                f"{_name(source)}: SOP Class UID {sop_class or '(empty)'} isn't a CT image",
                code="unsupported_sop_class",
                hint="route only " + " and ".join(SUPPORTED_SOP_CLASSES.values()) + " to this pipeline",
            )
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            if not source.get(keyword):
                raise SeriesRefused(
                    f"{_name(source)}: {keyword} is missing or empty", code="missing_attribute"
                )
    uids = sorted({str(source.SeriesInstanceUID) for source in sources})
    if len(uids) > 1:
        raise SeriesRefused(f"instances of {len(uids)} series: {uids[0]}, {uids[1]} …", code="mixed_series")


def _frames(index: int, source: Dataset) -> list[Frame]:
    if source.SOPClassUID == EnhancedCTImageStorage:
        shared = _first(source, "SharedFunctionalGroupsSequence")
        per_frame = source.get("PerFrameFunctionalGroupsSequence") or []
        return [_enhanced_frame(index, source, shared, group, n) for n, group in enumerate(per_frame, 1)]
    return [_frame(index, source, (source,), 1)]


def _enhanced_frame(index: int, source: Dataset, shared: Dataset, group: Dataset, number: int) -> Frame:
    """Gather the functional group macros of one frame (PS3.3 C.7.6.16.2), per frame before shared."""
    macros = [
        _first(holder, keyword)
        for keyword in (
            "PlanePositionSequence",
            "PlaneOrientationSequence",
            "PixelMeasuresSequence",
            "PixelValueTransformationSequence",
        )
        for holder in (group, shared)
    ]
    return _frame(index, source, macros, number)


def _first(holder: Dataset, keyword: str) -> Dataset:
    sequence = holder.get(keyword)
    return sequence[0] if sequence else Dataset()


def _frame(index: int, source: Dataset, holders: Sequence[Dataset], number: int) -> Frame:
    name = f"{source.SOPInstanceUID}#{number}" if len(holders) > 1 else str(source.SOPInstanceUID)

    def values(keyword: str, count: int, default: float | None = None) -> tuple[float, ...]:
        found = next((h.get(keyword) for h in holders if h.get(keyword) is not None), None)
        if found is None and default is not None:
            return (default,) * count
        several: Sequence[Any] = found if count > 1 and found is not None else (found,)
        try:
            numbers = tuple(float(v) for v in several)
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) != count or not np.all(np.isfinite(numbers)):
            raise SeriesRefused(
                f"{name}: {keyword} is missing or invalid: {found!r}", code="missing_attribute"
            )
        return numbers

    spacing = values("PixelSpacing", 2)
    if min(spacing) <= 0:
        raise SeriesRefused(f"{name}: PixelSpacing {spacing} isn't positive", code="missing_attribute")
    plane = Plane(
        position=values("ImagePositionPatient", 3),  # type: ignore[arg-type]
        orientation=values("ImageOrientationPatient", 6),  # type: ignore[arg-type]
        pixel_spacing=spacing,  # type: ignore[arg-type]
        shape=(int(source.get("Rows", 0)), int(source.get("Columns", 0))),
        frame_of_reference_uid=str(source.get("FrameOfReferenceUID", "")),
        name=name,
    )
    return Frame(
        index, number, plane, values("RescaleSlope", 1, 1.0)[0], values("RescaleIntercept", 1, 0.0)[0]
    )


def _decode(
    paths: Sequence[Path], sources: Sequence[Dataset], frames: Sequence[Frame], progress: Progress | None
) -> NDArray[np.int16]:
    rows, columns = frames[0].plane.shape
    hu = np.empty((len(frames), rows, columns), np.int16)
    slices_of: dict[int, list[int]] = {}
    for k, frame in enumerate(frames):
        slices_of.setdefault(frame.source, []).append(k)

    def decode(source: int) -> int:
        stored = _pixels(paths[source], rows, columns)
        for k in slices_of[source]:
            hu[k] = _to_hu(stored[frames[k].number - 1], frames[k], sources[source])
        return len(slices_of[source])

    done = 0
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        for count in pool.map(decode, slices_of):
            done += count
            if progress is not None:
                progress(done, len(frames))
    return hu


def _pixels(path: Path, rows: int, columns: int) -> NDArray[np.integer[Any]]:
    """Stored values of all frames of one instance, (frames, rows, columns)."""
    dataset = dcmread(path)
    try:
        stored: NDArray[np.integer[Any]] = dataset.pixel_array.reshape(-1, rows, columns)
    except (AttributeError, ValueError, RuntimeError, NotImplementedError, KeyError, TypeError) as error:
        syntax = getattr(dataset.file_meta.get("TransferSyntaxUID"), "name", "(none)")
        raise SeriesRefused(
            f"{_name(dataset)}: pixel data ({syntax}) can't be decoded: {error}", code="undecodable_pixels"
        ) from error
    return stored


def _to_hu(stored: NDArray[np.integer[Any]], frame: Frame, source: Dataset) -> NDArray[np.int16]:
    """Modality rescale (PS3.3 C.11.1.1.2); pixels in the padding range (C.7.5.1.1.2) become air."""
    if frame.slope == 1.0 and float(frame.intercept).is_integer():
        values = stored.astype(np.int32) + int(frame.intercept)
    else:
        values = np.rint(stored.astype(np.float64) * frame.slope + frame.intercept).astype(np.int32)
    # Below -1024 no CT number is a measurement: vendors write -2000, -2048, -3024 … outside the circle.
    hu = np.clip(values, AIR_HU, np.iinfo(np.int16).max).astype(np.int16)
    padding = _padding_range(source)
    if padding is not None:
        hu[(stored >= padding[0]) & (stored <= padding[1])] = AIR_HU
    return hu


def _padding_range(source: Dataset) -> tuple[int, int] | None:
    value = source.get("PixelPaddingValue")
    if not isinstance(value, int):
        return None
    limit = source.get("PixelPaddingRangeLimit")
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


def _name(source: Dataset) -> str:
    return str(source.get("SOPInstanceUID") or "(instance without SOP Instance UID)")
