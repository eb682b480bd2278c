"""Measures filling in: normal slices with parts masked, against what was there.

Windows of held-out phantoms, or of a DICOM series (whose lungs the model ``lungs`` finds): ``windows``, 128
pixels wide as they are, and ``slices``, whole slices averaged to 128 x 128. Beside the model stand trivial
fillings under the same definitions: ``mean`` (of the lung that isn't masked), ``smooth`` (Laplace's equation
from the mask's border) and ``air``. Values are scaled from HU_LOW..HU_HIGH to 0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import spsolve

from triton_models.data.dicom_folder import read_folder
from triton_models.data.normal_slices import (
    TEST_SEEDS,
    NormalSlices,
    Windows,
    phantom_normals,
    random_windows,
)
from triton_models.evaluation.class_metrics import group_weights
from triton_models.evaluation.image_metrics import bounding_box, discrepancy_terms, psnr, region, ssim_map
from triton_models.evaluation.predictor import OnnxPredictor, Predictor
from triton_models.evaluation.result import Estimate, Metrics
from triton_models.evaluation.segmentation import served_labels
from triton_models.evaluation.source import Source
from triton_models.registry import MODELS, ModelEntry

HU_LOW, HU_HIGH = -1024.0, 400.0
SEED = 7
BATCH = 16
WINDOWS_PER_SLICE = 2
SIDES: Mapping[str, tuple[int, int] | None] = {"windows": (128, 128), "slices": (512, 512)}

Hu = NDArray[np.int16]


@dataclass(frozen=True)
class FilledCases:
    """real, filled: HU int16 (n, size, size).  mask: uint8.  kinds: keys of SIDES.  groups: patients."""

    real: Hu
    filled: Hu
    mask: NDArray[np.uint8]
    kinds: tuple[str, ...]
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.real)

    def joined(self, others: Sequence[Self]) -> Self:
        parts = [self, *others]
        return type(self)(
            np.concatenate([part.real for part in parts]),
            np.concatenate([part.filled for part in parts]),
            np.concatenate([part.mask for part in parts]),
            tuple(kind for part in parts for kind in part.kinds),
            tuple(group for part in parts for group in part.groups),
        )

    def of_kind(self, kind: str) -> FilledCases:
        keep = np.asarray(self.kinds) == kind
        groups = tuple(group for group, kept in zip(self.groups, keep, strict=True) if kept)
        return FilledCases(self.real[keep], self.filled[keep], self.mask[keep], (kind,) * len(groups), groups)

    def metrics(self) -> Metrics:
        """The model's and the trivial fillings' of each kind of window (``windows``, ``windows_mean``, …)."""
        out: dict[str, Mapping[str, Estimate]] = {}
        for kind in dict.fromkeys(self.kinds):
            cases = self.of_kind(kind)
            out[kind] = _estimates(cases)
            for name, fill in TRIVIAL.items():
                pairs = zip(cases.real, cases.mask, strict=True)
                filled = np.stack([fill(real, mask > 0) for real, mask in pairs])
                out[f"{kind}_{name}"] = _estimates(replace(cases, filled=filled))
        return out


def collect(entry: ModelEntry, predictor: Predictor, source: Source) -> FilledCases:
    """Raises FileNotFoundError, ValueError for a folder without one axial series of 512 x 512 pixels."""
    slices = _phantoms(source.phantoms) if source.data is None else _series(source.data)
    cases: list[FilledCases] = []
    for kind, sides in SIDES.items():
        count = WINDOWS_PER_SLICE * len(slices) if kind == "windows" else len(slices)
        windows, groups = random_windows(slices, count, np.random.default_rng(SEED), sides)
        filled = _answers(entry, predictor, windows)
        cases.append(FilledCases(windows.hu, filled, windows.mask, (kind,) * count, groups))
    return cases[0].joined(cases[1:])


def _answers(entry: ModelEntry, predictor: Predictor, windows: Windows) -> Hu:
    answers = []
    for start in range(0, len(windows.hu), BATCH):
        part = slice(start, start + BATCH)
        answer = predictor({"HU": windows.hu[part], "MASK": windows.mask[part]})
        answers.append(answer[entry.outputs[0].name])
    return np.concatenate(answers)


def _phantoms(count: int) -> NormalSlices:
    if count > len(TEST_SEEDS):
        raise ValueError(f"there are {len(TEST_SEEDS)} normal test phantoms, not {count}")
    return phantom_normals(TEST_SEEDS[:count])


def _series(folder: Path) -> NormalSlices:
    """Each slice counts as a patient of its own for lack of more: the intervals hold for this patient."""
    found = read_folder(folder)
    if len(found) != 1 or found[0].hu.shape[1:] != (512, 512):
        shapes = [series.hu.shape for series in found]
        raise ValueError(f"{folder}: wants one axial CT series of 512 x 512 pixels, has {shapes}")
    hu = np.maximum(found[0].hu, np.int16(HU_LOW))
    lungs = np.stack(list(served_labels(MODELS["lungs"], OnnxPredictor(MODELS["lungs"]), hu))) == 1
    slices = NormalSlices.with_lungs(hu, lungs, "")
    return replace(slices, group=tuple(str(number) for number in range(len(slices))))


def _unit(hu: Hu) -> NDArray[np.float32]:
    return np.asarray((np.clip(hu, HU_LOW, HU_HIGH) - HU_LOW) / (HU_HIGH - HU_LOW), dtype=np.float32)


def _estimates(cases: FilledCases) -> dict[str, Estimate]:
    """``region`` is the mask's bounding box, in which the mask's surroundings show too."""
    real, filled = _unit(cases.real), _unit(cases.filled)
    rows = []
    for truth, image, mask in zip(real, filled, cases.mask, strict=True):
        box = bounding_box(mask)
        alike = ssim_map(truth, image)
        inside = mask > 0
        rows.append(
            (
                alike.mean(),
                alike[box].mean(),
                psnr(truth, image),
                psnr(truth[box], image[box]),
                np.abs(truth - image)[inside].mean() * (HU_HIGH - HU_LOW),
            )
        )
    weights = group_weights(cases.groups)
    table = np.asarray(rows)
    with np.errstate(invalid="ignore"):  # infinite PSNR of what was filled in exactly
        spread = weights @ table / weights.sum(axis=1, keepdims=True)
    names = ("ssim", "ssim_region", "psnr", "psnr_region", "absolute_error_hu")
    out = {name: Estimate.of(float(table[:, i].mean()), spread[:, i]) for i, name in enumerate(names)}
    regions = [
        np.stack([region(image, mask) for image, mask in zip(images, cases.mask, strict=True)])
        for images in (real, filled)
    ]
    for name, sets in (("kmmd", (real, filled)), ("kmmd_region", regions)):
        terms = discrepancy_terms(sets[0], sets[1])
        share = weights / weights.sum(axis=1, keepdims=True)
        out[name] = Estimate.of(
            float(terms.mean()), np.einsum("si,ij,sj->s", share, terms, share, optimize=True)
        )
    return out


def _mean_fill(real: Hu, inside: NDArray[np.bool_]) -> Hu:
    lung = real[~inside & (real < -500) & (real > -1000)]
    return np.where(inside, np.int16(lung.mean() if len(lung) else -850), real).astype(np.int16)


def _air_fill(real: Hu, inside: NDArray[np.bool_]) -> Hu:
    return np.where(inside, np.int16(HU_LOW), real).astype(np.int16)


def _smooth_fill(real: Hu, inside: NDArray[np.bool_]) -> Hu:
    """Each masked pixel is the mean of its neighbours; beyond the border of the image there are none."""
    number = np.cumsum(inside).reshape(inside.shape) - 1
    count = int(inside.sum())
    rows, columns = np.nonzero(inside)
    right = np.zeros(count)
    degree = np.zeros(count)
    entries: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for dr, dc in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        r, c = rows + dr, columns + dc
        there = (r >= 0) & (r < inside.shape[0]) & (c >= 0) & (c < inside.shape[1])
        degree += there
        r, c, mine = r[there], c[there], np.flatnonzero(there)
        masked = inside[r, c]
        np.add.at(right, mine[~masked], real[r[~masked], c[~masked]])
        entries.append((mine[masked], number[r[masked], c[masked]]))
    i, j = (np.concatenate(part) for part in zip(*entries, strict=True))
    matrix = sparse.diags(degree) - sparse.coo_matrix((np.ones(len(i)), (i, j)), shape=(count, count))
    out = real.copy()
    out[inside] = np.rint(spsolve(matrix.tocsc(), right)).astype(np.int16)
    return out


TRIVIAL: Mapping[str, Callable[[Hu, NDArray[np.bool_]], Hu]] = {
    "mean": _mean_fill,
    "smooth": _smooth_fill,
    "air": _air_fill,
}
