"""Lungs: a volume in, a label array (0, ``Lung.RIGHT``, ``Lung.LEFT``) out.

The ``lungs`` model (Deng et al. 2021: 2D V-Net with attention on the skip connections) marks lung tissue
slice by slice; here its mask is cleaned in 3D and split into the patient's right and left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.errors import SeriesRefused
from pipelines.geometry import AxialView
from pipelines.masks import Box, bounding_box, grown
from pipelines.triton import Inference, ModelSpec, Progress, ServedModel, TensorSpec
from pipelines.volume import Lung, Volume

SPEC = ModelSpec(
    name="lungs",
    version="1",
    inputs=(TensorSpec("HU", "INT16", (-1, -1)),),
    outputs=(TensorSpec("LUNGS", "UINT8", (-1, -1)),),
)

#: cleaning and splitting work on a grid about this coarse: lungs are large, and 3D morphology is slow
WORKING_MM = 3.0
#: less lung with air in it than this isn't a chest; a newborn's total lung volume is about 75 ml. Sinuses and
#: what the model takes for lung in other bodies' parts have less
MINIMUM_LUNG_ML, AERATED_HU = 50.0, -500
#: a component smaller than this share of the largest one is bowel gas, trachea or noise
SMALLEST_COMPONENT = 0.05
#: when one component holds both lungs, each part must have at least this share of it to count as a lung
SMALLEST_LUNG = 0.15
#: … and their centres must lie at least this share of its width apart
SIDE_BY_SIDE = 0.3

#: a lesion that fills the lung up to the pleura opens a notch in the mask; notches up to twice as wide are
#: closed to look for lesions in them
CLOSING_MM = 15.0

Labels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class _Coarse:
    """A strided copy of a mask and the way back: coarse voxel (i, j, k) samples fine (i, j, k) * stride."""

    mask: Mask
    stride: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, mask: Mask, spacing_mm: tuple[float, float, float]) -> _Coarse:
        stride = tuple(max(1, round(WORKING_MM / mm)) for mm in spacing_mm)
        sampled = mask[:: stride[0], :: stride[1], :: stride[2]]
        coarse_mm = tuple(mm * n for mm, n in zip(spacing_mm, stride, strict=True))
        return cls(sampled, stride, coarse_mm, mask.shape)  # type: ignore[arg-type]

    def fine(self, labels: Labels) -> Labels:
        for axis, n in enumerate(self.stride):
            index = np.minimum((np.arange(self.shape[axis]) + n // 2) // n, labels.shape[axis] - 1)
            labels = np.take(labels, index, axis=axis)
        return labels


def segment_lungs(
    volume: Volume, inference: Inference, model: ServedModel, *, progress: Progress | None = None
) -> Labels:
    """Segment the lungs: ``label_lungs`` of what ``ask_lungs`` answers."""
    return label_lungs(volume, ask_lungs(volume, inference, model, progress=progress))


def ask_lungs(
    volume: Volume, inference: Inference, model: ServedModel, *, progress: Progress | None = None
) -> Mask:
    """What the model takes for lung: bool (slices, rows, columns) in the axial view, not cleaned."""
    view = AxialView.of(volume.affine)
    answer = inference.run(model, {"HU": view.view(volume.hu)}, progress=progress)["LUNGS"]
    return np.greater(answer, 0, out=answer.view(np.bool_))


def label_lungs(volume: Volume, mask: Mask) -> Labels:
    """Clean the model's mask, and tell right from left.

    mask: of ``ask_lungs``. Returns uint8 (slices, rows, columns) on the volume's grid, 0 or ``Lung``.
    Raises SeriesRefused (no_lungs_found) when less than MINIMUM_LUNG_ML below AERATED_HU is found.
    """
    view = AxialView.of(volume.affine)
    labels = volume.as_acquired(view.restore(split_lungs(mask, view.spacing_mm(volume.spacing_mm))))
    aerated = sum(
        np.count_nonzero(hu[lung > 0] < AERATED_HU) for hu, lung in zip(volume.hu, labels, strict=True)
    )
    found_ml = aerated * volume.voxel_volume_ml
    if found_ml < MINIMUM_LUNG_ML:
        raise SeriesRefused(
            f"{found_ml:.0f} ml of aerated lung found in series {volume.series_instance_uid}, "
            f"at least {MINIMUM_LUNG_ML:.0f} ml wanted",
            code="no_lungs_found",
            hint="does the series show the chest?",
        )
    return labels


@dataclass(frozen=True)
class ClosedLungs:
    """Where a lesion of each lung may lie: the lungs with their notches and holes closed.

    lungs: uint8 (slices, rows, columns) of the axial view, 0 or ``Lung``.  coarse: the same closed, of each
    ``stride``-th row and column. A plane is made when it is asked for: all of them are as large as the lungs.
    """

    lungs: Labels
    coarse: Labels
    stride: tuple[int, int]

    def plane(self, number: int) -> Labels:
        """uint8 (rows, columns) of an axial slice; where ``lungs`` has a lung, the same."""
        lung = self.lungs[number]
        rows = self.coarse[number].repeat(self.stride[0], axis=0)[: lung.shape[0]]
        fine: Labels = rows.repeat(self.stride[1], axis=1)[:, : lung.shape[1]]
        np.copyto(fine, lung, where=lung > 0)
        return fine

    @property
    def slices(self) -> slice:
        """From the first axial slice that has any to the last."""
        return bounding_box(self.lungs)[0]  # no closing goes beyond them


def close_lungs(volume: Volume, lungs: Labels) -> ClosedLungs:
    """Close each lung on its axial slices by a disc of CLOSING_MM, on a grid of about WORKING_MM.

    The ``lungs`` model leaves out what is as dense as the chest wall, so consolidation at the pleura, too.
    lungs: uint8 (slices, rows, columns) on the volume's grid; the result looks at this array.
    """
    view = AxialView.of(volume.affine)
    labels = view.view(lungs)
    _, *pixel_mm = view.spacing_mm(volume.spacing_mm)
    rows, columns = (max(1, round(WORKING_MM / mm)) for mm in pixel_mm)
    coarse = labels[:, ::rows, ::columns]
    disc = _disc((pixel_mm[0] * rows, pixel_mm[1] * columns))
    closed = np.zeros_like(coarse)
    for lung in reversed(Lung):  # where both close, the first stays
        box = bounding_box(coarse == lung)
        if box[0].stop:
            closed[box][_closed(coarse[box] == lung, disc)] = lung
    return ClosedLungs(labels, closed, (rows, columns))


def include_lesions(volume: Volume, lungs: Labels, within: ClosedLungs, lesions: Labels) -> None:
    """Lesions are part of the lungs: where they are, ``lungs`` become what ``within`` says.

    lungs, lesions: uint8 (slices, rows, columns) on the volume's grid.
    """
    view = AxialView.of(volume.affine)
    for number, (lung, lesion) in enumerate(zip(view.view(lungs), view.view(lesions), strict=True)):
        if lesion.any():
            np.copyto(lung, within.plane(number), where=lesion > 0)
    if volume.source_slices:
        lungs[:] = volume.as_acquired(lungs)


def _disc(spacing_mm: tuple[float, ...]) -> list[tuple[int, int]]:
    """Steps (rows, columns) to the pixels of a disc of CLOSING_MM."""
    reach = [int(CLOSING_MM / mm) for mm in spacing_mm]
    steps = np.mgrid[-reach[0] : reach[0] + 1, -reach[1] : reach[1] + 1].reshape(2, -1)
    inside = np.linalg.norm(steps.T * spacing_mm, axis=1) <= CLOSING_MM
    return [(int(row), int(column)) for row, column in steps.T[inside]]


def _closed(mask: Mask, disc: list[tuple[int, int]]) -> Mask:
    """Each slice closed by a disc, its holes filled. mask: (slices, rows, columns), cropped to what is set:
    no closing goes beyond that. All slices take a step of the disc at once, which beats a distance
    transform of each slice tenfold."""
    rows, columns = mask.shape[1:]
    down, across = (max(step[axis] for step in disc) for axis in range(2))
    around = ((0, 0), (down, down), (across, across))
    twice = np.pad(mask, [(n * 2, m * 2) for n, m in around])
    grown = np.zeros((len(mask), rows + 2 * down, columns + 2 * across), bool)
    for row, column in disc:
        grown |= twice[:, down + row :, across + column :][:, : grown.shape[1], : grown.shape[2]]
    shrunk = np.ones(mask.shape, bool)
    for row, column in disc:
        shrunk &= grown[:, down + row :, across + column :][:, :rows, :columns]
    filled: Mask = ndimage.binary_fill_holes(shrunk, ndimage.generate_binary_structure(2, 1)[None])
    return filled


def split_lungs(mask: Mask, spacing_mm: tuple[float, float, float]) -> Labels:
    """Drop what isn't lung and tell right from left.

    mask: (slices, rows, columns) in the axial view, columns towards the patient's left; spacing likewise.
    """
    coarse = _Coarse.of(mask, spacing_mm)
    components, count = ndimage.label(coarse.mask, np.ones((3, 3, 3)))
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    sizes[0] = 0
    kept = np.flatnonzero(sizes > SMALLEST_COMPONENT * sizes.max(initial=0))
    if not kept.size:
        return np.zeros(mask.shape, np.uint8)
    lungs: Mask = np.isin(components, kept)
    seeds = _seeds(components, sizes, kept, coarse)
    box = grown(bounding_box(lungs), lungs.shape)
    near_lungs = ndimage.binary_dilation(lungs[box], np.ones((3, 3, 3)))
    # every coarse voxel takes the label of its nearest seed, so that the fine mask finds one everywhere
    nearest = ndimage.distance_transform_edt(
        seeds[box] == 0, sampling=coarse.spacing_mm, return_distances=False, return_indices=True
    )
    assigned = np.zeros_like(seeds)
    assigned[box] = seeds[box][tuple(nearest)] * near_lungs
    labels = coarse.fine(assigned)
    labels *= mask
    return labels


def _seeds(
    components: NDArray[np.int32], sizes: NDArray[np.int64], kept: NDArray[np.int64], coarse: _Coarse
) -> Labels:
    """Coarse labels of the voxels whose side is sure."""
    main = [int(i) for i in kept if sizes[i] > SMALLEST_LUNG * sizes.max()]
    seeds = np.zeros(components.shape, np.uint8)
    parts: list[Mask] = [components == i for i in main]
    if len(parts) == 1:
        parts = _pull_apart(parts[0], coarse.spacing_mm)
    if len(parts) == 1:
        return np.where(parts[0], _side_of_body(parts[0]), 0).astype(np.uint8)
    centres = [float(np.mean(np.nonzero(part)[2])) for part in parts]
    # the two lungs lie either side of the midline of all parts; a further part goes where it lies
    middle = (min(centres) + max(centres)) / 2
    for part, centre in zip(parts, centres, strict=True):
        seeds[part] = Lung.RIGHT if centre < middle else Lung.LEFT
    return seeds


def _pull_apart(lungs: Mask, spacing_mm: tuple[float, float, float]) -> list[Mask]:
    """Erode until two parts are left; lungs that touch do so along thin junction lines."""
    tight = bounding_box(lungs)
    box = grown(tight, lungs.shape)  # with the tissue next to them, which depth is measured from
    depth = ndimage.distance_transform_edt(lungs[box], sampling=spacing_mm)
    width = tight[2].stop - tight[2].start - 1
    for radius_mm in np.arange(2.0, float(depth.max()), 2.0):
        components, count = ndimage.label(depth > radius_mm)
        sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
        large = [int(i) + 1 for i in np.flatnonzero(sizes > SMALLEST_LUNG * sizes.sum())]
        centres = [float(np.mean(np.nonzero(components == i)[2])) for i in large]
        # parts above or below each other are lobes of one lung
        if len(large) >= 2 and max(centres) - min(centres) > SIDE_BY_SIDE * width:
            return [_placed(components == i, box, lungs.shape) for i in large]
    return [lungs]


def _placed(part: Mask, box: Box, shape: tuple[int, ...]) -> Mask:
    whole = np.zeros(shape, bool)
    whole[box] = part
    return whole


def _side_of_body(lung: Mask) -> Lung:
    """A single lung: right if most of it lies in the right half of the image."""
    columns = np.nonzero(lung)[2]
    return Lung.RIGHT if float(np.mean(columns)) < (lung.shape[2] - 1) / 2 else Lung.LEFT
