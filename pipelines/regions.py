"""Regions: candidates with their votes and the lesion labels in, what entered the Noisy-OR out.

A region is drawn by the lesion labels: Xu et al. 2020 have boxes only, and expect many of them to be false. A
candidate in which the ``lesions`` model sees nothing is left out, and said so; so both models must agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.candidates import MINIMUM_VOLUME_ML, Candidate, Chest, lesion_components
from pipelines.infection import vote
from pipelines.masks import Box, bounding_box, moved, voxels
from pipelines.quantify import hu_percentiles
from pipelines.volume import IRRELEVANT, LESION_TYPES, Lung, PatchVote, Region

#: lesion that is on average at most so many axial slices high, and over at least this share of its footprint
#: rests on what isn't lung, is the diaphragm's dome, partly inside of its slices
DOME_SLICES, DOME_SHARE = 2.0, 0.7
#: the largest so many enter the Noisy-OR: each becomes a segment and a measurement group
MAXIMUM_REGIONS = 30

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Drawn:
    """A candidate with what the lesion labels draw of it.

    box: where ``inside`` (bool, the box's shape) lies in the axial view.
    """

    candidate: Candidate
    box: Box
    inside: Mask


@dataclass(frozen=True)
class FoundRegions:
    """labels: uint8 (slices, rows, columns), 0 or ``Region.number``; entered: what draws each of
    ``regions``; notes: what was left out and why."""

    labels: NDArray[np.uint8]
    regions: tuple[Region, ...]
    entered: tuple[Drawn, ...]
    notes: tuple[str, ...]


def draw(candidates: Sequence[Candidate], chest: Chest) -> tuple[list[Drawn], tuple[str, ...]]:
    """The candidates that hold lesion, with their voxels, and notes on the others.

    candidates: by descending rank. A voxel of lesion is the first candidate's whose box holds it; lesion that
    hangs together (26 neighbours) with a candidate's, and lies in no box, is the nearest box's.
    """
    crop, owner = _owners(candidates, chest)
    if chest.volume.source_slices:  # a box may end between an acquired slice and an interpolated one
        whole = np.zeros(chest.lesions.shape, np.uint8)
        whole[crop] = owner
        whole = chest.as_acquired(whole)
        crop = bounding_box(whole)
        owner = whole[crop]
    drawn: list[Drawn] = []
    empty = domes = 0
    for number, cropped in enumerate(ndimage.find_objects(owner, len(candidates))):
        inside = owner[cropped] == number + 1 if cropped is not None else np.zeros(0, np.bool_)
        box = moved(cropped, crop) if cropped is not None else crop
        if np.count_nonzero(inside) * chest.voxel_ml < MINIMUM_VOLUME_ML:
            empty += 1
        elif _is_dome(chest, box, inside):
            domes += 1
        else:
            drawn.append(Drawn(candidates[number], box, inside))
    notes = [
        f"{count} candidate(s) {why}, left out"
        for count, why in (
            (empty, f"with less than {MINIMUM_VOLUME_ML} ml of lesion"),
            (domes, "that are the diaphragm's dome, only partly inside of their slices"),
        )
        if count
    ]
    return drawn, tuple(notes)


def _owners(candidates: Sequence[Candidate], chest: Chest) -> tuple[Box, NDArray[np.uint8]]:
    """Where the lesions are, and in that crop 1 + index of the candidate that each voxel belongs to, or 0."""
    crop, components = lesion_components(chest)
    owner = np.zeros(components.shape, np.uint8)
    corner = [part.start for part in crop]
    for number, candidate in reversed(list(enumerate(candidates, start=1))):
        box = _voxels(candidate, corner)
        owner[box][components[box] > 0] = number
    for number, box in enumerate(ndimage.find_objects(components), start=1):
        component = components[box] == number
        owners = np.unique(owner[box][component])
        claimed = owners[owners > 0]
        if claimed.size and owners[0] == 0:
            first, row, column = (part.start + start for part, start in zip(box, corner, strict=True))
            loose = component & (owner[box] == 0)
            for index in np.flatnonzero(loose.any(axis=(1, 2))):  # of all slices, indices take much memory
                where = voxels(loose[index], (first + index, row, column))
                away = np.stack([_distance(where, candidates[i - 1], chest.spacing_mm) for i in claimed])
                owner[box][index][loose[index]] = claimed[away.argmin(axis=0)]
    return crop, owner


def _voxels(candidate: Candidate, corner: Sequence[int]) -> Box:
    """The voxels of a candidate's box, counted from ``corner``."""
    sides = [
        slice(max(int(np.floor(start)) - first, 0), max(int(np.ceil(stop)) - first, 0))
        for start, stop, first in zip(candidate.box[:3], candidate.box[3:], corner, strict=True)
    ]
    return sides[0], sides[1], sides[2]


def _distance(
    where: NDArray[np.intp], candidate: Candidate, spacing_mm: tuple[float, float, float]
) -> NDArray[np.float64]:
    """mm from voxels (n, 3) to a box."""
    centre = where + 0.5
    outside = np.maximum(np.array(candidate.box[:3]) - centre, centre - np.array(candidate.box[3:]))
    distance: NDArray[np.float64] = np.linalg.norm(outside.clip(min=0.0) * spacing_mm, axis=1)
    return distance


class _Voted(NamedTuple):
    drawn: Drawn
    votes: tuple[PatchVote, ...]
    infection_type: str
    probability: float


def find_regions(
    chest: Chest, drawn: Sequence[Drawn], votes: Sequence[tuple[PatchVote, ...]]
) -> FoundRegions:
    """The drawn candidates that were voted an infection, measured.

    votes: of each of ``drawn``. Ordered by descending volume; ties by rank, so the numbering is reproducible.
    """
    voted = [_Voted(one, patches, *vote(patches)) for one, patches in zip(drawn, votes, strict=True)]
    infected = [one for one in voted if one.infection_type != IRRELEVANT]
    infected.sort(key=lambda one: -np.count_nonzero(one.drawn.inside))
    entered = infected[:MAXIMUM_REGIONS]
    labels = np.zeros(chest.volume.hu.shape, np.uint8)
    axial = chest.view.view(labels)
    for number, one in enumerate(entered, start=1):
        axial[one.drawn.box][one.drawn.inside] = number
    crop = bounding_box(labels)
    boxes = [moved(box, crop) for box in ndimage.find_objects(labels[crop])] if entered else []
    regions = tuple(
        _describe(number, one, chest, labels[box] == number, box)
        for number, (one, box) in enumerate(zip(entered, boxes, strict=True), start=1)
    )
    notes = [
        f"{count} candidate(s) {why}, left out of the Noisy-OR"
        for count, why in (
            (len(voted) - len(infected), "voted irrelevant to infection"),
            (len(infected) - len(entered), f"beyond the {MAXIMUM_REGIONS} largest"),
        )
        if count
    ]
    return FoundRegions(labels, regions, tuple(one.drawn for one in entered), tuple(notes))


def _describe(number: int, voted: _Voted, chest: Chest, inside: Mask, box: Box) -> Region:
    """inside, box: where the region is on the volume's own grid."""
    place = voted.drawn.box
    hu = chest.hu[place][voted.drawn.inside]
    lungs, lesions = (array[place][voted.drawn.inside] for array in (chest.lungs, chest.lesions))
    by_type = {
        name: np.count_nonzero(lesions == label) * chest.voxel_ml for name, label in LESION_TYPES.items()
    }
    start = np.array([part.start for part in box])
    centre = _mean_index(inside) + start
    x, y, z = chest.volume.to_patient(centre[None])[0].tolist()
    return Region(
        number=number,
        infection_type=voted.infection_type,
        probability=voted.probability,
        votes=voted.votes,
        candidate_score=voted.drawn.candidate.score,
        lesion_type=max(by_type, key=lambda name: by_type[name]),
        lesion_volume_ml=by_type,
        volume_ml=lesions.size * chest.voxel_ml,
        mean_hu=float(hu.mean()),
        hu_percentiles=hu_percentiles(hu),
        laterality=Lung.RIGHT if 2 * np.count_nonzero(lungs == Lung.RIGHT) >= lungs.size else Lung.LEFT,
        relative_distance_from_edge=voted.votes[len(voted.votes) // 2].relative_distance_from_edge,
        bounding_box=tuple((part.start, part.stop) for part in box),  # type: ignore[arg-type]
        centroid_lps_mm=(x, y, z),
        key_slice=int(start[0] + np.argmax(inside.sum(axis=(1, 2)))),
    )


def _mean_index(inside: Mask) -> NDArray[np.float64]:
    """(slice, row, column), the mean of those that are set."""
    along = [inside.sum(axis=axes) for axes in ((1, 2), (0, 2), (0, 1))]
    return np.array([np.arange(len(counts)) @ counts / counts.sum() for counts in along])


def _is_dome(chest: Chest, box: Box, inside: Mask) -> bool:
    """Whether what is drawn is only partial volume at the diaphragm (see DOME_SLICES).

    A model that sees one slice at a time can't tell that from ground glass; the slice below can.
    """
    rows, columns = np.nonzero(inside.any(axis=0))
    lowest = inside.argmax(axis=0)[rows, columns] + box[0].start  # slices ascend towards the head
    below = chest.lungs[np.maximum(lowest - 1, 0), rows + box[1].start, columns + box[2].start]
    rests_on_tissue = (lowest > 0) & (below == 0)
    return inside.sum() <= DOME_SLICES * len(rows) and float(rests_on_tissue.mean()) >= DOME_SHARE
