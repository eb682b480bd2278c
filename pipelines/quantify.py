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


def measure_lungs(chest: Chest) -> dict[Lung, LungMeasures]:
    """Each lung's volumes and densities."""
    voxel_ml = chest.voxel_ml
    near = peripheral(chest)
    measures = {}
    for lung in Lung:
        mask = chest.lungs == lung
        values = chest.hu[mask]
        of_lesion = chest.lesions[mask]
        lesions = np.count_nonzero(of_lesion)
        measures[lung] = LungMeasures(
            volume_ml=values.size * voxel_ml,
            lesion_volume_ml={
                name: np.count_nonzero(of_lesion == label) * voxel_ml for name, label in LESION_TYPES.items()
            },
            mean_hu=float(values.mean()) if values.size else 0.0,
            hu_percentiles=hu_percentiles(values),
            peripheral_percent=100.0 * np.count_nonzero(near[mask] & (of_lesion > 0)) / lesions
            if lesions
            else 0.0,
        )
    return measures


def hu_percentiles(values: NDArray[np.int16]) -> dict[int, float]:
    """PERCENTILES of HU; 0 without any."""
    if not values.size:
        return dict.fromkeys(PERCENTILES, 0.0)
    return dict(zip(PERCENTILES, (float(v) for v in np.percentile(values, PERCENTILES)), strict=True))


def peripheral(chest: Chest) -> NDArray[np.bool_]:
    """Where lesion lies within PERIPHERAL_MM of the edge of its lung: bool (slices, rows, columns).

    Measured on each axial slice from what isn't that lung, on pixels of about _WORKING_MM.
    """
    out = np.zeros(chest.lesions.shape, np.bool_)
    steps = [max(1, round(_WORKING_MM / mm)) for mm in chest.spacing_mm[1:]]
    sampling = [mm * n for mm, n in zip(chest.spacing_mm[1:], steps, strict=True)]
    rows, columns = chest.lesions.shape[1:]
    for index in np.flatnonzero((chest.lesions > 0).any(axis=(1, 2))):
        for lung in np.unique(chest.lungs[index][chest.lesions[index] > 0]).tolist():
            if lung == 0:
                continue
            coarse = np.pad(chest.lungs[index, :: steps[0], :: steps[1]] == lung, 1)
            depth = ndimage.distance_transform_edt(coarse, sampling=sampling)[1:-1, 1:-1]
            near = (depth <= PERIPHERAL_MM).repeat(steps[0], axis=0).repeat(steps[1], axis=1)
            out[index] |= near[:rows, :columns] & (chest.lungs[index] == lung) & (chest.lesions[index] > 0)
    return out


def severity(involved_percent: float) -> str:
    """The grade of a share of lung involved, 0 to 100."""
    return next((grade for grade, most in SEVERITY.items() if involved_percent <= most), "severe")
