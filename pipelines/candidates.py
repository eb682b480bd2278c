"""Candidate regions: a volume in, boxes that may hold an infection out, many of them falsely.

Three sources, one contract: Xu et al. 2020's 3D region proposals (``PROPOSALS``), Deng et al. 2021's Faster
R-CNN on slices whose boxes are joined from slice to slice (``SLICE_BOXES``), and the components of the lesion
labels (``COMPONENTS``), which need no model of their own. What a candidate is, is decided later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.boxes import OPERATIONS, chosen, overlaps
from pipelines.geometry import AxialView
from pipelines.masks import Box, bounding_box, moved, voxel_counts
from pipelines.triton import Arrays, Inference, ModelSpec, Progress, ServedModel, TensorSpec
from pipelines.volume import Volume

PROPOSALS_SPEC = ModelSpec(
    name="candidates",
    version="1",
    inputs=(TensorSpec("HU", "INT16", (-1, -1, -1)),),
    outputs=(TensorSpec("BOXES", "FP32", (64, 6)), TensorSpec("SCORES", "FP32", (64,))),
)
SLICE_BOXES_SPEC = ModelSpec(
    name="lesion_boxes",
    version="1",
    inputs=(TensorSpec("HU", "INT16", (-1, -1)),),
    outputs=(
        TensorSpec("BOXES", "FP32", (32, 4)),
        TensorSpec("SCORES", "FP32", (32,)),
        TensorSpec("TYPES", "FP32", (32, 2)),
    ),
)

#: what the proposals' network sees is made here, so that a message stays small whatever the series: the
#: graph averages rows and columns to half of this, and interpolates slices to this many
PROPOSAL_PIXELS, PROPOSAL_SLICES = 256, 64
#: Faster R-CNN looks at slices about so far apart; thinner ones show the same again
SLICE_BOXES_EVERY_MM = 5.0
#: boxes on neighbouring slices that overlap so much (intersection over union) are of one candidate
SLICE_BOXES_JOINED = 0.2
#: less lesion than this is noise: no component of that size is a candidate, and none is drawn by it
MINIMUM_VOLUME_ML = 0.3
#: the highest-ranked so many go on
MOST_CANDIDATES = 64
#: a box with a smaller share of lung is outside of them
SMALLEST_LUNG_SHARE = 0.05

Boxes = NDArray[np.float32]


@dataclass(frozen=True)
class Candidate:
    """box: half-open, ((slice, row, column) of start, then of stop) in voxels of the axial view.
    score: 0 to 1, of the source's own scale."""

    box: tuple[float, float, float, float, float, float]
    score: float


@dataclass(frozen=True)
class Chest:
    """What a source may look at, all in the axial view, (slices, rows, columns).

    hu: int16.  lungs: uint8, 0 or ``Lung``.  lesions: uint8, 0 or ``Lesion``.  volume: what it is a view of.
    """

    hu: NDArray[np.int16]
    lungs: NDArray[np.uint8]
    lesions: NDArray[np.uint8]
    volume: Volume

    @classmethod
    def of(cls, volume: Volume, lungs: NDArray[np.uint8], lesions: NDArray[np.uint8]) -> Chest:
        """lungs, lesions: on the volume's grid. Nothing is copied: that takes more memory, and more time than
        it then saves where axes are exchanged."""
        view = AxialView.of(volume.affine).view
        return cls(view(volume.hu), view(lungs), view(lesions), volume)

    @property
    def view(self) -> AxialView:
        return AxialView.of(self.volume.affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Along (slice, row, column) of the axial view."""
        return self.view.spacing_mm(self.volume.spacing_mm)

    @property
    def voxel_ml(self) -> float:
        """Millilitres of a voxel: less than the spacings' product where the gantry was tilted."""
        return self.volume.voxel_volume_ml

    def as_acquired(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """``Volume.as_acquired`` of labels in the axial view."""
        return self.view.apply(self.volume.as_acquired(self.view.restore(labels)))


#: a model's outputs by name
Answer = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class CandidateSource:
    """title: for people.  spec: of the model that it asks, if any.

    asks: what it asks the model, of the chest, if anything; asks_of_hu: instead, where HU in the axial
    view say all, so that it can be asked before lungs and lesions are known.
    find: the candidates of chest and answer (empty without a model).
    """

    title: str
    spec: ModelSpec | None
    find: Callable[[Chest, Answer], list[Candidate]]
    asks: Callable[[Chest], Arrays] | None = None
    asks_of_hu: Callable[[NDArray[np.int16]], Arrays] | None = None


def ask_early(
    source: CandidateSource,
    volume: Volume,
    inference: Inference,
    models: Mapping[str, ServedModel],
    threads: Executor,
) -> Future[Answer] | None:
    """Begin to ask the source's model on another thread, if HU are all that it is asked about."""
    spec, asks = source.spec, source.asks_of_hu
    if spec is None or asks is None:
        return None
    hu = AxialView.of(volume.affine).view(volume.hu)
    return threads.submit(lambda: inference.run(models[spec.name], asks(hu)))


def find_candidates(
    source: CandidateSource,
    chest: Chest,
    inference: Inference,
    models: Mapping[str, ServedModel],
    *,
    early: Future[Answer] | None = None,
    progress: Progress | None = None,
) -> list[Candidate]:
    """The source's candidates inside of the lungs, by descending score; at most MOST_CANDIDATES.

    early: of ``ask_early``.
    """
    answer: Answer = {}
    if early is not None:
        answer = early.result()
    elif source.spec is not None and (inputs := _asked(source, chest)):
        answer = inference.run(models[source.spec.name], inputs, progress=progress)
    found = [one for one in source.find(chest, answer) if _in_lungs(one, chest)]
    return sorted(found, key=lambda one: (-one.score, one.box))[:MOST_CANDIDATES]


def _asked(source: CandidateSource, chest: Chest) -> Arrays:
    if source.asks_of_hu is not None:
        return source.asks_of_hu(chest.hu)
    return source.asks(chest) if source.asks is not None else {}


def _proposals_asked(hu: NDArray[np.int16]) -> Arrays:
    return {"HU": _working_volume(hu)[None]}


def _proposals(chest: Chest, answer: Answer) -> list[Candidate]:
    boxes, scores = answer["BOXES"][0], answer["SCORES"][0]
    kept = chosen(boxes, scores, OPERATIONS["candidates"])
    scale = np.tile(np.divide(chest.hu.shape, _working_shape(chest.hu.shape)), 2)
    return [_candidate(boxes[i] * scale, float(scores[i])) for i in kept]


def _working_factors(shape: tuple[int, ...]) -> list[int]:
    """How many rows, and columns, are averaged to one."""
    return [max(1, n // PROPOSAL_PIXELS) for n in shape[1:]]


def _working_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of ``_working_volume``."""
    rows, columns = (n // factor for n, factor in zip(shape[1:], _working_factors(shape), strict=True))
    return min(shape[0], PROPOSAL_SLICES), rows, columns


def _working_volume(hu: NDArray[np.int16]) -> NDArray[np.int16]:
    """hu averaged over whole pixels to about PROPOSAL_PIXELS, and to PROPOSAL_SLICES if it has more.

    Slices are averaged over what each of the fewer ones covers, which the graph alone would skip.
    """
    shape, factors = _working_shape(hu.shape), _working_factors(hu.shape)
    planes = (_averaged(plane, factors, shape[1:]) for plane in hu)
    if len(hu) <= PROPOSAL_SLICES:
        return np.asarray(np.rint(np.stack(list(planes))), dtype=np.int16)
    out = np.zeros(shape, np.float32)
    step = len(hu) / PROPOSAL_SLICES
    for index, plane in enumerate(planes):
        first = int(index / step)
        share = min(1.0, (first + 1) * step - index)  # a slice may reach into two
        out[first] += plane * share
        if share < 1.0 and first + 1 < PROPOSAL_SLICES:
            out[first + 1] += plane * (1.0 - share)
    return np.asarray(np.rint(out / step), dtype=np.int16)


def _averaged(plane: NDArray[np.int16], factors: Sequence[int], shape: Sequence[int]) -> NDArray[np.float32]:
    """A plane's mean over blocks of pixels, ``shape`` of them: what is left over at the ends isn't used.

    The sum is of whole numbers, pixel by pixel of the blocks, which is much faster than a mean over axes.
    """
    total = np.zeros(shape, np.int32)
    for row in range(factors[0]):
        for column in range(factors[1]):
            total += plane[row :: factors[0], column :: factors[1]][: shape[0], : shape[1]]
    return total.astype(np.float32) / np.float32(factors[0] * factors[1])


def _asked_slices(chest: Chest) -> tuple[NDArray[np.intp], int]:
    """The slices that Faster R-CNN looks at, and how many slices each of them stands for."""
    every = max(1, round(SLICE_BOXES_EVERY_MM / chest.spacing_mm[0]))
    shown = np.flatnonzero(chest.lungs.any(axis=(1, 2)))
    return shown[every // 2 :: every] if len(shown) > every // 2 else shown, every


def _slice_boxes_asked(chest: Chest) -> Arrays:
    slices, _ = _asked_slices(chest)
    return {"HU": chest.hu[slices]} if slices.size else {}


def _slice_boxes(chest: Chest, answer: Answer) -> list[Candidate]:
    if not answer:  # there was no slice to ask about
        return []
    slices, every = _asked_slices(chest)
    found = []
    for boxes, scores in zip(answer["BOXES"], answer["SCORES"], strict=True):
        kept = chosen(boxes, scores, OPERATIONS["lesion_boxes"])
        found.append((boxes[kept], scores[kept]))
    return joined(found, [int(i) for i in slices], every, len(chest.hu))


def joined(
    found: Sequence[tuple[Boxes, NDArray[np.float32]]], slices: Sequence[int], every: int, count: int
) -> list[Candidate]:
    """Boxes on slices -> boxes in the volume: chains of boxes that overlap from one slice to the next.

    found: of each of ``slices``, boxes (n, 4) and scores (n,).  every: slices that one of them stands for.
    A chain's box holds all of its boxes; its score is the largest.
    """
    chains: list[tuple[NDArray[np.float64], float]] = []
    open_chains: list[tuple[int, Boxes]] = []  # index in chains, its last box
    for index, (boxes, scores) in zip(slices, found, strict=True):
        low, high = max(0, index - every // 2), min(count, index - every // 2 + every)
        table = overlaps(boxes, np.array([box for _, box in open_chains], np.float32).reshape(-1, 4))
        continued: list[tuple[int, Boxes]] = []
        for number, (box, score) in enumerate(zip(boxes, scores, strict=True)):
            best = int(table[number].argmax()) if table.shape[1] else -1
            whole = np.array([low, *box[:2], high, *box[2:]], np.float64)
            if best >= 0 and table[number, best] >= SLICE_BOXES_JOINED:
                table[:, best] = 0.0  # one box continues a chain
                chain = open_chains[best][0]
                old, old_score = chains[chain]
                start, stop = np.minimum(old[:3], whole[:3]), np.maximum(old[3:], whole[3:])
                chains[chain] = (np.concatenate([start, stop]), max(old_score, float(score)))
            else:
                chain = len(chains)
                chains.append((whole, float(score)))
            continued.append((chain, box))
        open_chains = continued
    return [_candidate(box, score) for box, score in chains]


def _components(chest: Chest, _answer: Answer) -> list[Candidate]:
    crop, components = lesion_components(chest)
    boxes = [moved(box, crop) for box in ndimage.find_objects(components)]
    sizes = voxel_counts(components, len(boxes))
    smallest = MINIMUM_VOLUME_ML / chest.voxel_ml
    largest = float(sizes.max(initial=1))
    return [
        _candidate(np.array([s.start for s in box] + [s.stop for s in box], np.float64), size / largest)
        for box, size in zip(boxes, sizes.tolist(), strict=True)
        if size >= smallest
    ]


def lesion_components(chest: Chest) -> tuple[Box, NDArray[np.uint16] | NDArray[np.int32]]:
    """Where lesions are, and in that crop 1 + index of each component (26 neighbours) in the lungs, or 0."""
    crop = bounding_box(chest.lesions)
    found = chest.lesions[crop] > 0
    np.logical_and(found, chest.lungs[crop], out=found)
    components: NDArray[np.uint16] | NDArray[np.int32] = np.zeros(found.shape, np.uint16)
    try:
        ndimage.label(found, np.ones((3, 3, 3)), output=components)
    except RuntimeError:  # more than it can count, which needs twice the memory
        components, _ = ndimage.label(found, np.ones((3, 3, 3)))
    return crop, components


def _candidate(box: NDArray[np.float64] | NDArray[np.float32], score: float) -> Candidate:
    return Candidate(tuple(float(v) for v in box), score)  # type: ignore[arg-type]


def _in_lungs(candidate: Candidate, chest: Chest) -> bool:
    start, stop = np.array(candidate.box[:3]), np.array(candidate.box[3:])
    low = np.clip(np.floor(start), 0, None).astype(int)
    high = np.maximum(np.minimum(np.ceil(stop).astype(int), chest.lungs.shape), low + 1)
    inside = chest.lungs[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    return inside.size > 0 and float(np.count_nonzero(inside)) >= SMALLEST_LUNG_SHARE * inside.size


PROPOSALS = CandidateSource("3D region proposals", PROPOSALS_SPEC, _proposals, asks_of_hu=_proposals_asked)
SLICE_BOXES = CandidateSource("boxes on slices", SLICE_BOXES_SPEC, _slice_boxes, asks=_slice_boxes_asked)
COMPONENTS = CandidateSource("lesion components", None, _components)
