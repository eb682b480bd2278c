"""Candidates in, their infection type by vote out (Xu et al. 2020, Methods).

A candidate is represented by three patches: of its centre slice and of both neighbours. The
``infection_type`` model gives each a confidence per type from what it shows and from its relative
distance-from-edge; ``vote`` makes one type and one confidence of the three.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.candidates import Candidate, Chest
from pipelines.patches import cut_patch, relative_distances
from pipelines.triton import Inference, ModelSpec, Progress, ServedModel, TensorSpec
from pipelines.volume import INFECTION_TYPES, IRRELEVANT, PatchVote

SPEC = ModelSpec(
    name="infection_type",
    version="1",
    inputs=(TensorSpec("HU", "INT16", (64, 64)), TensorSpec("DISTANCE", "FP32", (1,))),
    outputs=(TensorSpec("PROBABILITIES", "FP32", (3,)),),
)
#: the model's classes, in the order of its output
CLASSES = (*INFECTION_TYPES, IRRELEVANT)
PATCHES = 3

PROBABILITY_METHOD = (
    "three patches of a candidate vote (centre slice and neighbours): the largest confidence among those of "
    "the type that two or more agree on, else the largest of all three"
)


def classify(
    candidates: Sequence[Candidate],
    chest: Chest,
    inference: Inference,
    model: ServedModel,
    *,
    progress: Progress | None = None,
) -> list[tuple[PatchVote, ...]]:
    """The three votes on each candidate."""
    places = [place for candidate in candidates for place in patch_places(candidate, chest)]
    if not places:
        return []
    pixel_mm = chest.spacing_mm[1:]
    of_slice = {index: relative_distances(chest.lungs[index] > 0, pixel_mm) for index, _, _ in places}
    distances = [float(of_slice[index][_nearest(row, column, chest)]) for index, row, column in places]
    hu = np.stack([cut_patch(chest.hu[index], (row, column), pixel_mm) for index, row, column in places])
    answer = inference.run(
        model, {"HU": hu, "DISTANCE": np.array(distances, np.float32)[:, None]}, progress=progress
    )["PROBABILITIES"]
    votes = [
        PatchVote(place, distance, dict(zip(CLASSES, (float(p) for p in probabilities), strict=True)))
        for place, distance, probabilities in zip(places, distances, answer, strict=True)
    ]
    return [tuple(votes[i : i + PATCHES]) for i in range(0, len(votes), PATCHES)]


def vote(votes: Sequence[PatchVote]) -> tuple[str, float]:
    """The type of a region and its confidence.

    Where two or more patches agree on a type: that type, with the largest confidence among them. Otherwise
    the one patch with the largest confidence decides (the earlier one of equals).
    """
    types = [one.infection_type for one in votes]
    agreed = [name for name in CLASSES if types.count(name) >= 2]
    deciding = [one for one in votes if not agreed or one.infection_type == agreed[0]]
    winner = max(deciding, key=lambda one: one.confidence)
    return winner.infection_type, winner.confidence


def patch_places(candidate: Candidate, chest: Chest) -> list[tuple[int, float, float]]:
    """(slice, row, column) of the three patches' centres in the axial view.

    On each slice the centre is the pixel of lesion nearest to the middle of the candidate's lesion there, as
    the model was taught, so that a crescent along the pleura isn't represented by the healthy lung that it
    surrounds; without lesion the middle of the box. At the volume's end both neighbours are on one side.
    """
    start, stop = np.array(candidate.box[:3]), np.array(candidate.box[3:])
    middle = (start + stop) / 2.0
    count = len(chest.hu)
    centre = int(np.clip(np.floor(middle[0]), min(1, count - 1), max(count - 2, 0)))
    return [
        (index, *_centre(index, candidate, chest))
        for index in np.clip(range(centre - 1, centre + 2), 0, count - 1).tolist()
    ]


def _centre(index: int, candidate: Candidate, chest: Chest) -> tuple[float, float]:
    low = np.clip(np.floor(candidate.box[1:3]), 0, None).astype(int)
    high = np.ceil(candidate.box[4:6]).astype(int)
    lesion: NDArray[np.intp] = np.argwhere(chest.lesions[index, low[0] : high[0], low[1] : high[1]]) + low
    if len(lesion):
        nearest = lesion[np.argmin(((lesion - lesion.mean(axis=0)) ** 2).sum(axis=1))]
        return float(nearest[0]), float(nearest[1])
    # voxel i covers i to i + 1, and its centre is at i
    row, column = (np.add(candidate.box[1:3], candidate.box[4:6]) / 2.0 - 0.5).tolist()
    return row, column


def _nearest(row: float, column: float, chest: Chest) -> tuple[int, int]:
    rows, columns = chest.hu.shape[1:]
    return min(max(round(row), 0), rows - 1), min(max(round(column), 0), columns - 1)
