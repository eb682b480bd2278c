"""Instances of one CT series in, a ``Volume`` in Hounsfield units out.

Headers first: the geometry gate decides before any pixel is decoded, but those of slices that share a plane,
which are compared. Classic CT (one frame an instance) and enhanced multi-frame CT are read alike, as a list
of frames.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage

from pipelines import jpeg
from pipelines.errors import SeriesRefused
from pipelines.geometry import Grid, Plane, gate, plane_normal, tilt_degrees
from pipelines.resampling import fill_grid
from pipelines.volume import Volume

AIR_HU = -1024
#: what pydicom raises on bytes that aren't the value that they should be; it converts when a value is read
MALFORMED = (
    *(ValueError, TypeError, AttributeError, KeyError, IndexError, NotImplementedError),
    *(OverflowError, EOFError, RuntimeError, struct.error, BytesLengthException),
)
SUPPORTED_SOP_CLASSES = {str(CTImageStorage): "CT Image", str(EnhancedCTImageStorage): "Enhanced CT Image"}
#: decoders release the interpreter lock; more threads than this only cost memory
DECODE_THREADS = 4
jpeg.make_known()

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
    localizers_only, missing_attribute, not_hounsfield, unsupported_pixels, geometry_*, undecodable_pixels,
    several_multiframe_instances.
    """
    if not paths:
        raise SeriesRefused("the series has no instances", code="no_instances")
    headers = [(_read_header(path), path) for path in paths]
    _check_one_series([source for source, _ in headers])
    headers.sort(key=lambda header: (str(header[0].SOPInstanceUID), str(header[1])))
    images = [header for header in headers if not _is_localizer(header[0])]
    if not images:
        raise SeriesRefused(
            f"{_name(headers[0][0])}: the series holds nothing but {len(headers)} localizer(s)",
            code="localizers_only",
            hint="route by Image Type (0008,0008), which has LOCALIZER",
        )
    sources, files = [source for source, _ in images], [path for _, path in images]
    received = [frame for i, source in enumerate(sources) for frame in _frames(i, source)]
    frames = _without_copies(received, files, sources)
    grid = gate([frame.plane for frame in frames])
    ordered = [frames[i] for i in grid.order]
    used = list(dict.fromkeys(frame.source for frame in ordered))  # sources in slice order
    if len(used) > 1 and any(sources[i].SOPClassUID == EnhancedCTImageStorage for i in used):
        raise SeriesRefused(
            f"the volume is spread over {len(used)} instances, with multi-frame ones; "
            "a segmentation can refer to one multi-frame instance only",
            code="several_multiframe_instances",
            hint="send the series as one enhanced CT instance, or as classic CT",
        )
    hu = _decode(files, sources, ordered, progress)
    new_index = {old: new for new, old in enumerate(used)}
    return Volume(
        hu=hu if grid.complete else fill_grid(hu, grid.at, grid.slices),
        affine=grid.affine,
        sources=tuple(sources[i] for i in used),
        source_frames=tuple((new_index[frame.source], frame.number) for frame in ordered),
        notes=_notes(grid, copies=len(received) - len(frames), localizers=len(headers) - len(images)),
        source_slices=() if grid.complete else tuple(round(at) for at in grid.at),
    )


def _notes(grid: Grid, *, copies: int, localizers: int) -> tuple[str, ...]:
    notes = []
    if localizers:
        notes.append(f"{localizers} localizer(s) in the series were left out.")
    if copies:
        notes.append(f"{copies} slice(s) came twice, with equal pixels: one of each is used.")
    tilted = tilt_degrees(grid.affine, grid.slices)
    if tilted:
        notes.append(f"The slices are tilted by {tilted:.1f} degrees (gantry tilt).")
    if not grid.complete:
        notes.append(_repair(grid))
    return tuple(notes)


def _repair(grid: Grid) -> str:
    """What was interpolated, at which mm along the planes' normal (LPS z where the planes are axial)."""
    normal = plane_normal(grid.affine)
    first, spacing = float(grid.affine[:3, 3] @ normal), float(grid.affine[:3, 0] @ normal)
    if grid.uneven:
        gaps = np.diff(grid.at) * spacing
        return (
            f"The {len(grid.at)} slices lie {gaps.min():.2f} to {gaps.max():.2f} mm apart: for the analysis, "
            f"{grid.slices} slices {spacing:.2f} mm apart were interpolated. Segments are on the slices "
            "acquired."
        )
    missing = sorted(set(range(grid.slices)) - {round(at) for at in grid.at})
    places = ", ".join(f"{first + k * spacing:.1f}" for k in missing)
    return (
        f"{len(missing)} of {grid.slices} slices are missing and were interpolated, at {places} mm "
        "along the normal. Segments are on the slices acquired."
    )


def _is_localizer(source: Dataset) -> bool:
    """Image Type (0008,0008) value 3 (PS3.3 C.8.2.1.1.1), which some scanners write elsewhere."""
    values = _value(source, "ImageType")
    return "LOCALIZER" in ([values] if isinstance(values, str) else list(values or ()))


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
            pixels = [_pixels(paths[one.source], rows, columns, one.number)[one.number - 1] for one in alike]
            kept += [
                one
                for one, its in zip(alike[1:], pixels[1:], strict=True)
                if not np.array_equal(its, pixels[0])
            ]
    return kept


def _read_header(path: Path) -> Dataset:
    try:
        return dcmread(path, stop_before_pixels=True)
    except (InvalidDicomError, OSError, *MALFORMED) as error:
        raise SeriesRefused(
            f"{path.name}: not readable as DICOM: {error}", code="unreadable_instance"
        ) from error


def _value(holder: Dataset, keyword: str) -> Any:
    """The attribute's value, None where it is missing. Raises SeriesRefused where its bytes aren't one."""
    try:
        return holder.get(keyword)
    except MALFORMED as error:
        raise SeriesRefused(f"{keyword} can't be read: {error}", code="missing_attribute") from error


def _check_one_series(sources: Sequence[Dataset]) -> None:
    for source in sources:
        sop_class = str(_value(source, "SOPClassUID") or "")
        if sop_class not in SUPPORTED_SOP_CLASSES:
            raise SeriesRefused(
                f"{_name(source)}: SOP Class UID {sop_class or '(empty)'} isn't a CT image",
                code="unsupported_sop_class",
                hint="route only " + " and ".join(SUPPORTED_SOP_CLASSES.values()) + " to this pipeline",
            )
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            if not isinstance(_value(source, keyword) or None, str):
                raise SeriesRefused(
                    f"{_name(source)}: {keyword} is missing, empty or has several values",
                    code="missing_attribute",
                )
    uids = sorted({str(source.SeriesInstanceUID) for source in sources})
    if len(uids) > 1:
        raise SeriesRefused(f"instances of {len(uids)} series: {uids[0]}, {uids[1]} …", code="mixed_series")


def _frames(index: int, source: Dataset) -> list[Frame]:
    if source.SOPClassUID == EnhancedCTImageStorage:
        shared = _first(source, "SharedFunctionalGroupsSequence")
        per_frame = _value(source, "PerFrameFunctionalGroupsSequence")
        if not isinstance(per_frame, Sequence) or not per_frame:
            raise SeriesRefused(
                f"{_name(source)}: PerFrameFunctionalGroupsSequence is missing or empty",
                code="missing_attribute",
            )
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
    sequence = _value(holder, keyword)
    return sequence[0] if isinstance(sequence, Sequence) and sequence else Dataset()


def _frame(index: int, source: Dataset, holders: Sequence[Dataset], number: int) -> Frame:
    name = f"{source.SOPInstanceUID}#{number}" if len(holders) > 1 else str(source.SOPInstanceUID)

    def invalid(keyword: str, found: object) -> SeriesRefused:
        return SeriesRefused(f"{name}: {keyword} is missing or invalid: {found!r}", code="missing_attribute")

    def found(keyword: str) -> Any:
        values = (_value(holder, keyword) for holder in holders)
        return next((value for value in values if value not in (None, "")), None)

    def numbers(keyword: str, count: int) -> tuple[float, ...]:
        value = found(keyword)
        try:
            several = tuple(float(v) for v in (value if count > 1 else (value,)))
        except (TypeError, ValueError):
            several = ()
        if len(several) != count or not np.all(np.isfinite(several)):
            raise invalid(keyword, value)
        return several

    spacing = numbers("PixelSpacing", 2)
    if min(spacing) <= 0:
        raise SeriesRefused(f"{name}: PixelSpacing {spacing} isn't positive", code="missing_attribute")
    shape = _value(source, "Rows"), _value(source, "Columns")
    if not all(isinstance(size, int) and size > 0 for size in shape):
        raise invalid("Rows or Columns", shape)
    plane = Plane(
        position=numbers("ImagePositionPatient", 3),  # type: ignore[arg-type]
        orientation=numbers("ImageOrientationPatient", 6),  # type: ignore[arg-type]
        pixel_spacing=spacing,  # type: ignore[arg-type]
        shape=shape,
        frame_of_reference_uid=str(_value(source, "FrameOfReferenceUID") or ""),
        name=name,
    )
    _check_hounsfield(name, source, found("RescaleType"))
    # Signed pixels without a rescale can be HU; unsigned ones can't, air would be below zero.
    signed = _value(source, "PixelRepresentation") == 1
    plain = signed and found("RescaleIntercept") is None and found("RescaleSlope") is None
    slope, intercept = (
        (1.0, 0.0) if plain else (numbers(k, 1)[0] for k in ("RescaleSlope", "RescaleIntercept"))
    )
    if slope == 0:
        raise invalid("RescaleSlope", slope)
    return Frame(index, number, plane, slope, intercept)


def _check_hounsfield(name: str, source: Dataset, rescale_type: object) -> None:
    """Grey pixels, in HU once rescaled (PS3.3 C.11.1.1.2); US is "unspecified", which scanners write, too."""
    if rescale_type is not None and str(rescale_type).strip().upper() not in ("HU", "US"):
        raise SeriesRefused(
            f"{name}: RescaleType is {rescale_type}, its pixels aren't in Hounsfield units (HU)",
            code="not_hounsfield",
            hint="perfusion, electron density or material maps aren't for this pipeline",
        )
    if _value(source, "SamplesPerPixel") not in (None, 1):
        raise SeriesRefused(
            f"{name}: SamplesPerPixel is {source.SamplesPerPixel}, a CT image has 1",
            code="unsupported_pixels",
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
        stored = _pixels(paths[source], rows, columns, max(frames[k].number for k in slices_of[source]))
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


def _pixels(path: Path, rows: int, columns: int, at_least: int) -> NDArray[np.integer[Any]]:
    """Stored values of all frames of one instance, (frames, rows, columns), ``at_least`` so many frames."""
    dataset = dcmread(path)
    try:
        stored: NDArray[np.integer[Any]] = dataset.pixel_array.reshape(-1, rows, columns)
    except (OSError, *MALFORMED) as error:
        syntax = getattr(dataset.file_meta.get("TransferSyntaxUID"), "name", "(none)")
        raise SeriesRefused(
            f"{_name(dataset)}: pixel data ({syntax}) can't be decoded: {error}", code="undecodable_pixels"
        ) from error
    if len(stored) < at_least:
        raise SeriesRefused(
            f"{_name(dataset)}: pixel data has {len(stored)} frame(s), its header describes {at_least}",
            code="undecodable_pixels",
        )
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
    value = _value(source, "PixelPaddingValue")
    if not isinstance(value, int):
        return None
    limit = _value(source, "PixelPaddingRangeLimit")
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
