"""Regions: lesion maps in, connected components with their confidence and measurements out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.geometry import AxialView
from pipelines.lesions import LesionMaps
from pipelines.masks import Box, bounding_box
from pipelines.volume import FINDING_TYPES, Lung, Region, Volume

#: a component smaller than this is left out of the Noisy-OR (and said so in the notes)
MINIMUM_VOLUME_ML = 0.3
#: a component whose mean probability is below this is left out likewise
MINIMUM_PROBABILITY = 0.5
#: a component that is on average at most so many axial slices high, and over at least this share of its
#: footprint rests on what isn't lung, is the diaphragm's dome, partly inside of its slices; left out likewise
DOME_SLICES, DOME_SHARE = 2.0, 0.7
#: the largest so many enter the Noisy-OR: each becomes a segment and a measurement group
MAXIMUM_REGIONS = 30

PROBABILITY_METHOD = (
    "mean over the region's voxels of the lesions model's probability of ground glass or consolidation"
)


@dataclass(frozen=True)
class FoundRegions:
    """labels: uint16 (slices, rows, columns), 0 or ``Region.number``; notes: what was left out and why."""

    labels: NDArray[np.uint16]
    regions: tuple[Region, ...]
    notes: tuple[str, ...]


def find_regions(volume: Volume, lungs: NDArray[np.uint8], maps: LesionMaps) -> FoundRegions:
    """Connected components (26 neighbours) of ground glass and consolidation together, inside the lungs.

    Ordered by descending volume; ties by position, so the numbering is reproducible.
    """
    crop = bounding_box(maps.labels)
    found = (maps.labels[crop] > 0) & (lungs[crop] > 0)
    components, count = ndimage.label(found, np.ones((3, 3, 3)))
    sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
    cropped_boxes = ndimage.find_objects(components)
    boxes = [_moved(box, crop) for box in cropped_boxes]
    by_size = sorted(range(count), key=lambda i: (-int(sizes[i]), i))
    small = [i for i in by_size if sizes[i] * volume.voxel_volume_ml < MINIMUM_VOLUME_ML]
    labels = np.zeros(maps.labels.shape, np.uint16)
    regions: list[Region] = []
    unsure = domes = left_out = 0
    for i in by_size[: len(by_size) - len(small)]:
        inside = components[cropped_boxes[i]] == i + 1
        probabilities = maps.probabilities[(slice(None), *boxes[i])][:, inside] / 255.0
        if _of_either_type(probabilities) < MINIMUM_PROBABILITY:
            unsure += 1
        elif _is_dome(volume, lungs, boxes[i], inside):
            domes += 1
        elif len(regions) >= MAXIMUM_REGIONS:
            left_out += 1
        else:
            component = _Component(len(regions) + 1, boxes[i], inside, probabilities)
            labels[boxes[i]][inside] = component.number
            regions.append(_describe(volume, lungs, maps, component))
    notes = [
        f"{n} component(s) {why}, left out of the Noisy-OR"
        for n, why in (
            (len(small), f"smaller than {MINIMUM_VOLUME_ML} ml"),
            (unsure, f"with a mean probability below {MINIMUM_PROBABILITY}"),
            (domes, "that are the diaphragm's dome, only partly inside of their slices"),
            (left_out, f"beyond the {MAXIMUM_REGIONS} largest"),
        )
        if n
    ]
    return FoundRegions(labels, tuple(regions), tuple(notes))


def _moved(box: Box, crop: Box) -> Box:
    """A box of the crop as one of the volume."""
    sides = [slice(b.start + c.start, b.stop + c.start) for b, c in zip(box, crop, strict=True)]
    return sides[0], sides[1], sides[2]


@dataclass(frozen=True)
class _Component:
    """box: its bounding box; inside: (slices, rows, columns) of the box, its voxels; probabilities:
    (2, voxels), of ground glass and of consolidation."""

    number: int
    box: tuple[slice, slice, slice]
    inside: NDArray[np.bool_]
    probabilities: NDArray[np.float64]


def _describe(volume: Volume, lungs: NDArray[np.uint8], maps: LesionMaps, component: _Component) -> Region:
    box, inside = component.box, component.inside
    values = maps.labels[box][inside]
    finding_type = max(FINDING_TYPES, key=lambda t: int(np.count_nonzero(values == FINDING_TYPES[t])))
    centre = np.argwhere(inside).mean(axis=0) + np.array([s.start for s in box], np.float64)
    in_right = np.count_nonzero(lungs[box][inside] == Lung.RIGHT)
    x, y, z = volume.to_patient(centre[None])[0]
    return Region(
        number=component.number,
        finding_type=finding_type,
        probability=_of_either_type(component.probabilities),
        type_probabilities={
            t: float(component.probabilities[label - 1].mean()) for t, label in FINDING_TYPES.items()
        },
        volume_ml=values.size * volume.voxel_volume_ml,
        mean_hu=float(volume.hu[box][inside].mean()),
        laterality=Lung.RIGHT if in_right * 2 >= values.size else Lung.LEFT,
        relative_distance_from_edge=relative_distance_from_edge(volume, lungs, centre),
        bounding_box=tuple((s.start, s.stop) for s in box),  # type: ignore[arg-type]
        centroid_lps_mm=(float(x), float(y), float(z)),
        key_slice=int(box[0].start + np.argmax(inside.sum(axis=(1, 2)))),
    )


def _of_either_type(probabilities: NDArray[np.float64]) -> float:
    """The types exclude each other, so that theirs add up (to more than 1 by the rounding to 8 bits only)."""
    return float(probabilities.sum(axis=0).clip(max=1.0).mean())


def _is_dome(
    volume: Volume, lungs: NDArray[np.uint8], box: tuple[slice, slice, slice], inside: NDArray[np.bool_]
) -> bool:
    """Whether a component is only partial volume at the diaphragm (see DOME_SLICES).

    A model that sees one slice at a time can't tell that from ground glass; the slice below can.
    """
    view = AxialView.of(volume.affine)
    axis = view.permutation[0]
    margins = [(0, 0)] * 3
    margins[axis] = (min(1, box[axis].start), min(1, lungs.shape[axis] - box[axis].stop))
    grown = tuple(slice(b.start - low, b.stop + high) for b, (low, high) in zip(box, margins, strict=True))
    component, lung = view.apply(np.pad(inside, margins)), view.apply(lungs[grown] > 0)
    rows, columns = np.nonzero(component.any(axis=0))
    lowest = component.argmax(axis=0)[rows, columns]  # slices ascend towards the head
    rests_on_tissue = (lowest > 0) & ~lung[np.maximum(lowest - 1, 0), rows, columns]
    return inside.sum() <= DOME_SLICES * len(rows) and float(rests_on_tissue.mean()) >= DOME_SHARE


def relative_distance_from_edge(
    volume: Volume, lungs: NDArray[np.uint8], centre: NDArray[np.float64]
) -> float:
    """Xu et al. 2020: distance from the lung mask's edge to the centre, over the lungs' diagonal.

    On the axial slice through ``centre`` (voxel indices (slice, row, column) of the volume): the minimum
    distance (mm) from the edge of the lung mask to the centre, divided by the diagonal (mm) of the minimum
    circumscribed rectangle of the mask. 0 if that slice has no lung.
    """
    axial_axis = AxialView.of(volume.affine).permutation[0]
    in_plane = [axis for axis in range(3) if axis != axial_axis]
    mask = np.take(lungs, round(float(centre[axial_axis])), axis=axial_axis) > 0
    if not mask.any():
        return 0.0
    spacing = np.array(volume.spacing_mm)[in_plane]
    edge = np.argwhere(mask & ~ndimage.binary_erosion(mask)) * spacing
    distance = float(np.linalg.norm(edge - centre[in_plane] * spacing, axis=1).min())
    sides = (np.array([np.ptp(indices) + 1 for indices in np.nonzero(mask)])) * spacing
    return distance / float(np.hypot(*sides))
