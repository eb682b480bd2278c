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
from pydicom import Dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage

from pipelines.errors import SeriesRefused
from pipelines.geometry import Grid, Plane, gate, plane_normal, tilt_degrees
from pipelines.instance import Image, name_of, read_image, stored_values, to_hu, value_of
from pipelines.resampling import fill_grid
from pipelines.volume import Volume

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
    localizers_only, missing_attribute, not_hounsfield, unsupported_pixels, geometry_*, undecodable_pixels,
    several_multiframe_instances.
    """
    if not paths:
        raise SeriesRefused("the series has no instances", code="no_instances")
    instances = [read_image(path) for path in paths]
    _check_one_series([instance.header for instance in instances])
    instances.sort(key=lambda instance: (str(instance.header.SOPInstanceUID), str(instance.path)))
    images = [instance for instance in instances if not _is_localizer(instance.header)]
    if not images:
        raise SeriesRefused(
            f"{name_of(instances[0].header)}: the series holds nothing but {len(instances)} localizer(s)",
            code="localizers_only",
            hint="route by Image Type (0008,0008), which has LOCALIZER",
        )
    sources = [image.header for image in images]
    received = [frame for i, source in enumerate(sources) for frame in _frames(i, source)]
    frames = _without_copies(received, images)
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
    hu = _decode(images, ordered, progress)
    new_index = {old: new for new, old in enumerate(used)}
    return Volume(
        hu=hu if grid.complete else fill_grid(hu, grid.at, grid.slices),
        affine=grid.affine,
        sources=tuple(sources[i] for i in used),
        source_frames=tuple((new_index[frame.source], frame.number) for frame in ordered),
        notes=_notes(grid, copies=len(received) - len(frames), localizers=len(instances) - len(images)),
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
    values = value_of(source, "ImageType")
    return "LOCALIZER" in ([values] if isinstance(values, str) else list(values or ()))


def _without_copies(frames: Sequence[Frame], images: Sequence[Image]) -> list[Frame]:
    """One of each set of frames with equal plane and equal pixels, the first by UID.

    Different pixels at one position stay: the geometry gate refuses them, for which are right is a guess.
    """
    at_plane: dict[tuple[object, ...], list[Frame]] = {}
    for frame in frames:
        place = replace(frame.plane, name="")
        at_plane.setdefault((place, frame.slope, frame.intercept), []).append(frame)
    kept = []
    for alike in at_plane.values():
        alike.sort(key=lambda frame: (str(images[frame.source].header.SOPInstanceUID), frame.number))
        kept.append(alike[0])
        if len(alike) > 1:
            rows, columns = alike[0].plane.shape
            pixels = [
                stored_values(images[one.source], rows, columns, one.number)[one.number - 1] for one in alike
            ]
            kept += [
                one
                for one, its in zip(alike[1:], pixels[1:], strict=True)
                if not np.array_equal(its, pixels[0])
            ]
    return kept


def _check_one_series(sources: Sequence[Dataset]) -> None:
    for source in sources:
        sop_class = str(value_of(source, "SOPClassUID") or "")
        if sop_class not in SUPPORTED_SOP_CLASSES:
            raise SeriesRefused(
                f"{name_of(source)}: SOP Class UID {sop_class or '(empty)'} isn't a CT image",
                code="unsupported_sop_class",
                hint="route only " + " and ".join(SUPPORTED_SOP_CLASSES.values()) + " to this pipeline",
            )
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            if not isinstance(value_of(source, keyword) or None, str):
                raise SeriesRefused(
                    f"{name_of(source)}: {keyword} is missing, empty or has several values",
                    code="missing_attribute",
                )
    uids = sorted({str(source.SeriesInstanceUID) for source in sources})
    if len(uids) > 1:
        raise SeriesRefused(f"instances of {len(uids)} series: {uids[0]}, {uids[1]} …", code="mixed_series")


def _frames(index: int, source: Dataset) -> list[Frame]:
    if source.SOPClassUID == EnhancedCTImageStorage:
        shared = _first(source, "SharedFunctionalGroupsSequence")
        per_frame = value_of(source, "PerFrameFunctionalGroupsSequence")
        if not isinstance(per_frame, Sequence) or not per_frame:
            raise SeriesRefused(
                f"{name_of(source)}: PerFrameFunctionalGroupsSequence is missing or empty",
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
    sequence = value_of(holder, keyword)
    return sequence[0] if isinstance(sequence, Sequence) and sequence else Dataset()


def _frame(index: int, source: Dataset, holders: Sequence[Dataset], number: int) -> Frame:
    name = f"{source.SOPInstanceUID}#{number}" if len(holders) > 1 else str(source.SOPInstanceUID)

    def invalid(keyword: str, found: object) -> SeriesRefused:
        return SeriesRefused(f"{name}: {keyword} is missing or invalid: {found!r}", code="missing_attribute")

    def found(keyword: str) -> Any:
        values = (value_of(holder, keyword) for holder in holders)
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
    shape = value_of(source, "Rows"), value_of(source, "Columns")
    if not all(isinstance(size, int) and size > 0 for size in shape):
        raise invalid("Rows or Columns", shape)
    plane = Plane(
        position=numbers("ImagePositionPatient", 3),  # type: ignore[arg-type]
        orientation=numbers("ImageOrientationPatient", 6),  # type: ignore[arg-type]
        pixel_spacing=spacing,  # type: ignore[arg-type]
        shape=shape,
        frame_of_reference_uid=str(value_of(source, "FrameOfReferenceUID") or ""),
        name=name,
    )
    _check_hounsfield(name, source, found("RescaleType"))
    # Signed pixels without a rescale can be HU; unsigned ones can't, air would be below zero.
    signed = value_of(source, "PixelRepresentation") == 1
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
    if value_of(source, "SamplesPerPixel") not in (None, 1):
        raise SeriesRefused(
            f"{name}: SamplesPerPixel is {source.SamplesPerPixel}, a CT image has 1",
            code="unsupported_pixels",
        )


def _decode(images: Sequence[Image], frames: Sequence[Frame], progress: Progress | None) -> NDArray[np.int16]:
    rows, columns = frames[0].plane.shape
    hu = np.empty((len(frames), rows, columns), np.int16)
    slices_of: dict[int, list[int]] = {}
    for k, frame in enumerate(frames):
        slices_of.setdefault(frame.source, []).append(k)

    def decode(source: int) -> int:
        its = [(k, frames[k]) for k in slices_of[source]]
        stored = stored_values(images[source], rows, columns, max(frame.number for _, frame in its))
        for k, frame in its:
            values, header = stored[frame.number - 1], images[source].header
            to_hu(values, header, slope=frame.slope, intercept=frame.intercept, out=hu[k])
        return len(its)

    done = 0
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        for count in pool.map(decode, slices_of):
            done += count
            if progress is not None:
                progress(done, len(frames))
    return hu
