"""Measures the served model.onnx, exactly the file that Triton loads.

In: a DICOM folder with a NIfTI mask, or seeds of phantoms.  Out: an ``Evaluation`` that prints as JSON.
Needs ONNX Runtime, not torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import SimpleITK as sitk
from numpy.typing import NDArray

from triton_models.data.dicom_folder import Series, read_folder
from triton_models.data.phantom import chest_phantom
from triton_models.metrics import Counts, Estimate, estimates
from triton_models.registry import ModelEntry, weights_sha256

#: class -> mask values; for lungs those of TotalSegmentator's five lobes
DEFAULT_MASK_LABELS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "lungs": {"lung": (10, 11, 12, 13, 14)},
    "lesions": {"ground_glass": (1,), "consolidation": (2,), "any_lesion": (1, 2)},
}
#: class -> values in the model's label output
OUTPUT_LABELS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "lungs": {"lung": (1,)},
    "lesions": DEFAULT_MASK_LABELS["lesions"],
}
BATCH = 8


@dataclass(frozen=True)
class Evaluation:
    """n: number of images (axial slices).  metrics: class -> metric -> estimate."""

    model: str
    weights_sha256: str
    n: int
    metrics: Mapping[str, Mapping[str, Estimate]]

    def to_json(self) -> str:
        """{"model", "weights_sha256", "n", "metrics": {class: {metric: {"value", "low", "high"}}}}.

        Six decimals; undefined values are null.
        """

        def number(value: float) -> float | None:
            return round(value, 6) if math.isfinite(value) else None

        metrics = {
            name: {
                key: {"value": number(e.value), "low": number(e.low), "high": number(e.high)}
                for key, e in rows.items()
            }
            for name, rows in self.metrics.items()
        }
        return json.dumps(
            {"model": self.model, "weights_sha256": self.weights_sha256, "n": self.n, "metrics": metrics},
            indent=1,
        )


def served_labels(entry: ModelEntry, hu: NDArray[np.int16]) -> Iterator[NDArray[np.uint8]]:
    """The model's label output for each slice of hu (slices, rows, columns)."""
    session = ort.InferenceSession(str(entry.onnx_path), providers=["CPUExecutionProvider"])
    for start in range(0, len(hu), BATCH):
        (labels,) = session.run([entry.outputs[0].name], {entry.inputs[0].name: hu[start : start + BATCH]})
        yield from labels


def evaluate_folder(
    entry: ModelEntry, data: Path, mask: Path, *, mask_labels: Mapping[str, Sequence[int]] | None = None
) -> Evaluation:
    """Compare with a NIfTI mask of the folder's one axial series.

    The mask is brought onto the DICOM grid through both affines (nearest neighbour); a mask that covers less
    than half of the series is taken for another patient's. Raises FileNotFoundError for a missing file,
    ValueError for a folder with several series or a mask that doesn't fit.
    """
    found = read_folder(data)
    if len(found) != 1:
        raise ValueError(f"{data}: has {len(found)} axial CT series, evaluate one at a time")
    if not mask.is_file():
        raise FileNotFoundError(f"{mask}: no such mask")
    truth = mask_on_series(found[0], mask)
    wanted = mask_labels or DEFAULT_MASK_LABELS[entry.name]
    predicted = list(served_labels(entry, found[0].hu))
    counts = {
        name: Counts.of(
            (np.isin(p, OUTPUT_LABELS[entry.name][name]), np.isin(t, list(values)))
            for p, t in zip(predicted, truth, strict=True)
        )
        for name, values in wanted.items()
    }
    return _evaluation(entry, counts)


def evaluate_phantoms(entry: ModelEntry, seeds: Sequence[int], *, slices: int = 24) -> Evaluation:
    """Compare with the exact labels of phantoms at full resolution (512 x 512)."""
    counts: dict[str, Counts] = {}
    for seed in seeds:
        phantom = chest_phantom(seed, slices=slices)
        truth = (phantom.lungs > 0).astype(np.uint8) if entry.name == "lungs" else phantom.lesions
        predicted = list(served_labels(entry, phantom.hu))
        for name, values in OUTPUT_LABELS[entry.name].items():
            one = Counts.of(
                (np.isin(p, values), np.isin(t, values)) for p, t in zip(predicted, truth, strict=True)
            )
            counts[name] = counts[name] + one if name in counts else one
    return _evaluation(entry, counts)


def mask_on_series(series: Series, mask: Path) -> NDArray[np.int16]:
    """A NIfTI label image resampled to the series' grid, (slices, rows, columns).

    SimpleITK gives NIfTI's RAS affine in LPS, as DICOM has it. Raises ValueError when the two barely overlap.
    """
    image = sitk.ReadImage(str(mask), sitk.sitkInt16)
    grid = sitk.Image([int(n) for n in series.hu.shape[::-1]], sitk.sitkUInt8)
    directions = series.affine[:3, :3] / np.asarray(series.spacing_mm)
    # ITK's index order is column, row, slice
    grid.SetOrigin([float(v) for v in series.affine[:3, 3]])
    grid.SetSpacing([float(v) for v in series.spacing_mm[::-1]])
    grid.SetDirection([float(v) for v in directions[:, ::-1].ravel()])
    inside = sitk.Resample(image * 0 + 1, grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    if sitk.GetArrayViewFromImage(inside).mean() < 0.5:
        raise ValueError(f"{mask}: covers less than half of series {series.series_instance_uid}")
    resampled = sitk.Resample(image, grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    return np.asarray(sitk.GetArrayFromImage(resampled), dtype=np.int16)


def _evaluation(entry: ModelEntry, counts: Mapping[str, Counts]) -> Evaluation:
    return Evaluation(
        model=entry.name,
        weights_sha256=weights_sha256(entry),
        n=len(next(iter(counts.values()))),
        metrics={name: estimates(one) for name, one in counts.items()},
    )
