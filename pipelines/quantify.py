"""Quantities: HU, lungs and lesions in, volumes, densities and a severity grade out.

Severity is the class of the share of lung involved that Bernheim et al. 2020 (Radiology 295:200463) use for a
lobe, here of both lungs together: none 0 %, minimal up to 25 %, mild up to 50 %, moderate up to 75 %, severe
above.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.candidates import Chest
from pipelines.masks import bounding_box
from pipelines.volume import LESION_TYPES, Lung, LungMeasures

#: lesion is peripheral within this distance of the lungs' edge, in the axial plane
PERIPHERAL_MM = 20.0
#: grade -> the largest share of lung involved that it is given to, percent
SEVERITY: Mapping[str, float] = MappingProxyType(
    {"none": 0.0, "minimal": 25.0, "mild": 50.0, "moderate": 75.0, "severe": 100.0}
)
SEVERITY_METHOD = (
    "share of both lungs that is ground glass or consolidation: none 0 %, minimal up to 25 %, mild up to "
    "50 %, moderate up to 75 %, severe above (Bernheim et al. 2020's classes of a lobe)"
)
PERCENTILES = (5, 50, 95)
#: distances are measured on pixels of about this size
_WORKING_MM = 1.5
_LOWEST_HU, _HU_VALUES = -32768, 65536
#: counting takes eight bytes a value
_COUNTED_AT_ONCE = 1 << 18


def measure_lungs(chest: Chest) -> dict[Lung, LungMeasures]:
    """Each lung's volumes and densities, slice by slice, so that nothing of a volume's size is made."""
    return {lung: _measure(chest, lung) for lung in Lung}


def _measure(chest: Chest, lung: Lung) -> LungMeasures:
    histogram = np.zeros(_HU_VALUES, np.int64)
    by_type = dict.fromkeys(LESION_TYPES, 0)
    near = 0
    for hu, lungs, lesions in zip(chest.hu, chest.lungs, chest.lesions, strict=True):
        mask = lungs == lung
        if not mask.any():
            continue
        histogram += hu_histogram(hu[mask])
        found = lesions[mask]
        if not found.any():
            continue
        for name, label in LESION_TYPES.items():
            by_type[name] += np.count_nonzero(found == label)
        near += np.count_nonzero(near_edge(mask, chest.spacing_mm[1:])[mask] & (found > 0))
    lesions_count = sum(by_type.values())
    return LungMeasures(
        volume_ml=int(histogram.sum()) * chest.voxel_ml,
        lesion_volume_ml={name: count * chest.voxel_ml for name, count in by_type.items()},
        mean_hu=_mean(histogram),
        hu_percentiles=_percentiles(histogram),
        peripheral_percent=100.0 * near / lesions_count if lesions_count else 0.0,
    )


def near_edge(lung: NDArray[np.bool_], pixel_mm: tuple[float, float]) -> NDArray[np.bool_]:
    """The pixels of one axial slice of one lung within PERIPHERAL_MM of what isn't that lung.

    lung: bool (rows, columns).  Measured on pixels of about _WORKING_MM.
    """
    steps = [max(1, round(_WORKING_MM / mm)) for mm in pixel_mm]
    sampling = [mm * n for mm, n in zip(pixel_mm, steps, strict=True)]
    coarse = lung[:: steps[0], :: steps[1]]
    box = bounding_box(coarse[None])[1:]  # a lung fills a sixth of a slice
    near = np.zeros(coarse.shape, np.bool_)
    surrounded = np.pad(coarse[box], 1)
    near[box] = ndimage.distance_transform_edt(surrounded, sampling=sampling)[1:-1, 1:-1] <= PERIPHERAL_MM
    fine = near.repeat(steps[0], axis=0).repeat(steps[1], axis=1)
    return np.asarray(fine[: lung.shape[0], : lung.shape[1]] & lung)


def hu_percentiles(values: NDArray[np.int16]) -> dict[int, float]:
    """PERCENTILES of HU, linear between two values; 0 without any."""
    return _percentiles(hu_histogram(values))


def hu_histogram(values: NDArray[np.int16]) -> NDArray[np.int64]:
    """How many of ``values``, (n,), are -32768, -32767, …: int64 (65536,)."""
    if values.size > _COUNTED_AT_ONCE:
        starts = range(0, values.size, _COUNTED_AT_ONCE)
        histograms = [hu_histogram(values[start : start + _COUNTED_AT_ONCE]) for start in starts]
        return np.asarray(np.sum(histograms, axis=0))
    above = values.astype(np.intp)
    above -= _LOWEST_HU
    return np.bincount(above, minlength=_HU_VALUES)


def _mean(histogram: NDArray[np.int64]) -> float:
    count = int(histogram.sum())
    return float(histogram @ np.arange(_HU_VALUES)) / count + _LOWEST_HU if count else 0.0


def _percentiles(histogram: NDArray[np.int64]) -> dict[int, float]:
    up_to = np.cumsum(histogram)
    if not up_to[-1]:
        return dict.fromkeys(PERCENTILES, 0.0)
    ranks = np.array(PERCENTILES) / 100.0 * (up_to[-1] - 1)
    low, high = (np.searchsorted(up_to, whole, side="right") for whole in (np.floor(ranks), np.ceil(ranks)))
    values = low + (ranks - np.floor(ranks)) * (high - low) + _LOWEST_HU
    return dict(zip(PERCENTILES, values.tolist(), strict=True))


def severity(involved_percent: float) -> str:
    """The grade of a share of lung involved, 0 to 100."""
    return next((grade for grade, most in SEVERITY.items() if involved_percent <= most), "severe")
