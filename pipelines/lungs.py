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
#: less lung than this isn't a chest; a newborn's total lung volume is about 75 ml
MINIMUM_LUNG_ML = 50.0
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
    """Segment the lungs.

    Returns uint8 (slices, rows, columns) on the volume's grid, 0 or ``Lung``.
    Raises SeriesRefused (no_lungs_found) when less than MINIMUM_LUNG_ML is found.
    """
    view = AxialView.of(volume.affine)
    mask = inference.run(model, {"HU": view.apply(volume.hu)}, progress=progress)["LUNGS"].astype(bool)
    spacing = tuple(volume.spacing_mm[axis] for axis in view.permutation)
    labels = volume.as_acquired(view.restore(split_lungs(mask, spacing)))  # type: ignore[arg-type]
    found_ml = float(np.count_nonzero(labels)) * volume.voxel_volume_ml
    if found_ml < MINIMUM_LUNG_ML:
        raise SeriesRefused(
            f"{found_ml:.0f} ml of lung found in series {volume.series_instance_uid}, "
            f"at least {MINIMUM_LUNG_ML:.0f} ml wanted",
            code="no_lungs_found",
            hint="does the series show the chest?",
        )
    return labels


def closed_lungs(volume: Volume, lungs: Labels) -> Labels:
    """Where a lesion of each lung may lie: the lungs with their notches and holes closed.

    The ``lungs`` model leaves out what is as dense as the chest wall, so consolidation at the pleura, too.
    Each lung is closed on its axial slices by a disc of CLOSING_MM, on a grid of about WORKING_MM.
    Returns uint8 (slices, rows, columns) like ``lungs``, which it contains.
    """
    view = AxialView.of(volume.affine)
    labels = view.apply(lungs)
    spacing = [volume.spacing_mm[axis] for axis in view.permutation]
    stride = tuple(max(1, round(WORKING_MM / mm)) for mm in spacing[1:])
    sampling = tuple(mm * n for mm, n in zip(spacing[1:], stride, strict=True))
    margin = tuple(int(CLOSING_MM / mm) + 2 for mm in sampling)
    closed = np.zeros_like(labels)
    for index in np.flatnonzero(labels.any(axis=(1, 2))):
        for lung in Lung:
            coarse = np.pad((labels[index] == lung)[:: stride[0], :: stride[1]], [(m, m) for m in margin])
            if not coarse.any():
                continue
            grown = ndimage.distance_transform_edt(~coarse, sampling=sampling) <= CLOSING_MM
            shrunk = ndimage.distance_transform_edt(grown, sampling=sampling) > CLOSING_MM
            filled = ndimage.binary_fill_holes(shrunk)[margin[0] : -margin[0], margin[1] : -margin[1]]
            fine = filled.repeat(stride[0], axis=0).repeat(stride[1], axis=1)
            rows, columns = labels.shape[1:]
            closed[index][fine[:rows, :columns] & (closed[index] == 0)] = lung
    return volume.as_acquired(view.restore(np.where(labels > 0, labels, closed)))


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
    # every coarse voxel takes the label of its nearest seed, so that the fine mask finds one everywhere
    nearest = ndimage.distance_transform_edt(
        seeds == 0, sampling=coarse.spacing_mm, return_distances=False, return_indices=True
    )
    assigned = seeds[tuple(nearest)]
    near_lungs = ndimage.binary_dilation(lungs, np.ones((3, 3, 3)))
    labels: Labels = coarse.fine(np.where(near_lungs, assigned, 0).astype(np.uint8))
    labels[~mask] = 0
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
    depth = ndimage.distance_transform_edt(lungs, sampling=spacing_mm)
    width = np.ptp(np.nonzero(lungs)[2])
    for radius_mm in np.arange(2.0, float(depth.max()), 2.0):
        components, count = ndimage.label(depth > radius_mm)
        sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
        large = [int(i) + 1 for i in np.flatnonzero(sizes > SMALLEST_LUNG * sizes.sum())]
        centres = [float(np.mean(np.nonzero(components == i)[2])) for i in large]
        # parts above or below each other are lobes of one lung
        if len(large) >= 2 and max(centres) - min(centres) > SIDE_BY_SIDE * width:
            return [components == i for i in large]
    return [lungs]


def _side_of_body(lung: Mask) -> Lung:
    """A single lung: right if most of it lies in the right half of the image."""
    columns = np.nonzero(lung)[2]
    return Lung.RIGHT if float(np.mean(columns)) < (lung.shape[2] - 1) / 2 else Lung.LEFT
