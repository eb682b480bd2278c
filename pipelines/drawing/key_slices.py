"""Which slices to show a doctor, and each as a picture with its lesions outlined and its regions boxed.

In: a Volume and its Findings.  Out: up to four RGB pictures in radiological convention, head first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipelines.drawing import palette, text
from pipelines.drawing.planes import AxialGrid, axial_grid, axial_plane, heights_mm, slice_picture
from pipelines.geometry import plane_normal
from pipelines.masks import voxels
from pipelines.volume import Findings, Region, Volume

_APART_MM = 9.0  # two key slices nearer than this show the same
_MAX_LABELS = 6
_AXIAL_COSINE = 0.9
_Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class KeySlice:
    """One slice: its LPS z in mm and the picture (rows, columns, 3) RGB."""

    z_mm: float
    picture: NDArray[np.uint8]


def key_slices(volume: Volume, findings: Findings, *, count: int = 4, width: int = 488) -> list[KeySlice]:
    """The slices that show the largest regions; others spread over the lungs make their number even, and are
    all where there are no regions."""
    chest = findings.lungs
    grid = axial_grid(volume, chest, columns=width)
    levels = _levels(volume, findings, count)
    for z in _spread(volume, chest, count):
        if (not levels or len(levels) % 2 or not findings.regions) and _is_apart(z, levels):
            levels.append(z)
    slices = []
    for z in sorted(levels, reverse=True):
        picture = Image.fromarray(slice_picture(volume, findings, grid, z))
        taken = _write_around(picture, _caption(volume, grid, z))
        _mark_regions(picture, volume, findings, grid, z_mm=z, taken=taken)
        slices.append(KeySlice(z, np.asarray(picture)))
    return slices


def _levels(volume: Volume, findings: Findings, count: int) -> list[float]:
    levels: list[float] = []
    for region in sorted(findings.regions, key=lambda r: -r.volume_ml):
        z = _level_of(volume, findings, region)
        if _is_apart(z, levels):
            levels.append(z)
        if len(levels) == count:
            break
    return levels


def _is_apart(z: float, levels: list[float]) -> bool:
    return all(abs(z - other) >= _APART_MM for other in levels)


def _level_of(volume: Volume, findings: Findings, region: Region) -> float:
    """LPS z where the region is largest, snapped to the source's planes where these are axial."""
    box = tuple(slice(a, b) for a, b in region.bounding_box)
    (first, _), (row, _), (column, _) = region.bounding_box
    z = np.concatenate(
        [
            volume.to_patient(voxels(plane == region.number, (index, row, column)).astype(np.float64))[:, 2]
            for index, plane in enumerate(findings.region_labels[box], start=first)
        ]
    )
    if not len(z):
        return region.centroid_lps_mm[2]
    step = float(np.abs(volume.affine[2, :3]).max())
    bins = np.round((z - z.min()) / step).astype(np.intp)
    return float(np.median(z[bins == np.bincount(bins).argmax()]))


def _spread(volume: Volume, chest: NDArray[np.uint8], count: int) -> list[float]:
    levels = np.quantile(heights_mm(volume, chest), np.linspace(0.85, 0.15, count))
    return [float(level) for level in levels]


def _caption(volume: Volume, grid: AxialGrid, z: float) -> str:
    """The image's number where the source is axial, so that it can be found on the workstation."""
    axial = abs(plane_normal(volume.affine)[2]) >= _AXIAL_COSINE
    if not axial or len(volume.sources) != len(volume.source_frames):
        return f"z {z:.0f} mm"
    middle = np.array([grid.origin_mm[0], grid.origin_mm[1], z, 1.0])
    middle[:2] += np.array(grid.shape[::-1]) * grid.pixel_mm / 2
    index = int(np.clip(round(float((np.linalg.inv(volume.affine) @ middle)[0])), 0, len(volume.hu) - 1))
    if volume.source_slices:
        if index not in volume.source_slices:
            return f"z {z:.0f} mm"
        index = volume.source_slices.index(index)
    number = volume.sources[index].get("InstanceNumber")
    return f"z {z:.0f} mm" if number is None else f"Image {number}"


def _mark_regions(
    picture: Image.Image,
    volume: Volume,
    findings: Findings,
    grid: AxialGrid,
    *,
    z_mm: float,
    taken: list[_Box],
) -> None:
    labels = axial_plane(volume, grid, z_mm, findings.region_labels)
    areas = np.bincount(labels.ravel().astype(np.intp))
    shown = [r for r in findings.regions if r.number < len(areas) and areas[r.number] > 0]
    shown.sort(key=lambda r: -int(areas[r.number]))
    draw, face = ImageDraw.Draw(picture), text.font(20)
    for region in shown[:_MAX_LABELS]:
        where = np.argwhere(labels == region.number)
        (top, left), (bottom, right) = where.min(0) - 4, where.max(0) + 4
        color = palette.INFECTION[region.infection_type]
        draw.rectangle([left, top, right, bottom], outline=color, width=1)
        words = f"#{region.number}  {region.probability:.2f}"
        size = (draw.textlength(words, font=face) + 10, float(text.line_height(face)) + 2)
        place = _free_place((left, top, right, bottom), size, picture.size, taken)
        taken.append((place[0], place[1], place[0] + size[0], place[1] + size[1]))
        draw.rectangle(taken[-1], fill=color)
        draw.text((place[0] + 5, place[1] + 1), words, font=face, fill=palette.BACKGROUND)


def _free_place(
    box: _Box,
    size: tuple[float, float],
    page: tuple[int, int],
    taken: list[_Box],
) -> tuple[float, float]:
    """Where a label fits beside its box: above, below, right or left of it, and on no other label."""
    left, top, right, bottom = box
    choices = [(left, top - size[1]), (left, bottom), (right, top), (left - size[0], top)]
    choices += [(left, top - 2 * size[1]), (left, bottom + size[1])]
    clipped = [
        (min(max(x, 0), page[0] - size[0] - 1), min(max(y, 0), page[1] - size[1] - 1)) for x, y in choices
    ]
    for x, y in clipped:
        if all(x + size[0] < a or x > c or y + size[1] < b or y > d for a, b, c, d in taken):
            return x, y
    return clipped[0]


def _write_around(picture: Image.Image, caption: str) -> list[_Box]:
    """Write the caption and the direction letters; returns the boxes that they take."""
    draw, face = ImageDraw.Draw(picture), text.font(22)
    width, height = picture.size
    taken = []
    for words, place, anchor in (
        (caption, (8.0, 6.0), "la"),
        ("R", (8.0, height / 2), "lm"),
        ("L", (width - 8.0, height / 2), "rm"),
        ("A", (width / 2, 6.0), "ma"),
        ("P", (width / 2, height - 6.0), "md"),
    ):
        text.outlined(draw, place, words, face, anchor=anchor)
        taken.append(draw.textbbox(place, words, font=face, anchor=anchor, stroke_width=2))
    return taken
