"""The types that pass between stages: a volume in patient space and what was found in it.

Axis order is (slice, row, column) everywhere; an affine maps (slice, row, column, 1) to patient LPS
coordinates in millimetres (PS3.3 C.7.6.2.1.1). Nothing here flips or guesses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

Scalar = TypeVar("Scalar", bound=np.generic)


class Lung(IntEnum):
    """Values in a lung label array. Right is the patient's right (smaller LPS x)."""

    RIGHT = 1
    LEFT = 2


class Lesion(IntEnum):
    """Values in a lesion label array and of the ``lesions`` model's LABELS output."""

    GROUND_GLASS = 1
    CONSOLIDATION = 2


#: finding types: the key in ``noisy_or``, summary.json and the SR  ->  lesion label
FINDING_TYPES: Mapping[str, Lesion] = {
    "ground_glass": Lesion.GROUND_GLASS,
    "consolidation": Lesion.CONSOLIDATION,
}
NO_FINDING = "no_infection_found"


@dataclass(frozen=True)
class Volume:
    """A CT volume.

    hu: int16, (slices, rows, columns), Hounsfield units, padding replaced by air.
    affine: float64 (4, 4), (slice, row, column, 1) -> LPS mm; consecutive slices are one column step apart.
    sources: the instances' headers without pixel data, in slice order (one per slice for classic CT,
        one in all for enhanced multi-frame CT).
    source_frames: for each acquired plane in slice order, (index into ``sources``, 1-based frame number).
    notes: what a reader of the results should know of the input.
    source_slices: the slice at each acquired plane, where slices were interpolated between them (a missing
        one, uneven spacing); empty where slices and acquired planes are the same.
    """

    hu: NDArray[np.int16]
    affine: NDArray[np.float64]
    sources: tuple[Dataset, ...]
    source_frames: tuple[tuple[int, int], ...]
    notes: tuple[str, ...] = ()
    source_slices: tuple[int, ...] = ()

    def on_source_planes(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """(slices, rows, columns) -> (acquired planes, rows, columns), for results on the source images."""
        return array[list(self.source_slices)] if self.source_slices else array

    def as_acquired(self, labels: NDArray[Scalar]) -> NDArray[Scalar]:
        """Give every slice the labels of the one at the nearest acquired plane.

        Nothing can be found on interpolated slices then that no image shows: halfway between lung and
        diaphragm, pixels look like ground glass. ``labels`` is (slices, rows, columns).
        """
        if not self.source_slices:
            return labels
        acquired = np.array(self.source_slices)
        nearest = np.abs(np.arange(len(labels))[:, None] - acquired).argmin(axis=1)
        as_acquired: NDArray[Scalar] = labels[acquired[nearest]]
        return as_acquired

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along (slice, row, column), mm."""
        steps = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(steps[0]), float(steps[1]), float(steps[2])

    @property
    def plane_distance_mm(self) -> float:
        """Distance from plane to plane: less than ``spacing_mm[0]`` where the gantry was tilted."""
        return self.voxel_volume_ml * 1000.0 / (self.spacing_mm[1] * self.spacing_mm[2])

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def series_instance_uid(self) -> str:
        return str(self.sources[0].SeriesInstanceUID)

    def to_patient(self, index: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map (n, 3) voxel indices (slice, row, column) to (n, 3) LPS mm."""
        mapped: NDArray[np.float64] = index @ self.affine[:3, :3].T + self.affine[:3, 3]
        return mapped


@dataclass(frozen=True)
class Region:
    """One connected lesion component inside the lungs that entered the Noisy-OR.

    number: 1-based, ordered by descending volume; the value in ``Findings.region_labels``.
    finding_type: key of FINDING_TYPES with the most voxels in the region.
    probability: p_i of the Noisy-OR, in [0, 1]: how it was made is said in ``Findings.probability_method``.
    type_probabilities: finding type -> probability in [0, 1].
    relative_distance_from_edge: distance from the lung mask's edge to the region's centre divided by the
        diagonal of the lungs' bounding rectangle on the key slice (Xu et al. 2020), dimensionless.
    bounding_box: half-open voxel ranges ((s0, s1), (r0, r1), (c0, c1)).
    centroid_lps_mm: centre of mass in patient coordinates, mm.
    key_slice: slice index with the region's largest area.
    """

    number: int
    finding_type: str
    probability: float
    type_probabilities: Mapping[str, float]
    volume_ml: float
    mean_hu: float
    laterality: Lung
    relative_distance_from_edge: float
    bounding_box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    centroid_lps_mm: tuple[float, float, float]
    key_slice: int


@dataclass(frozen=True)
class Findings:
    """Everything the pipeline concluded about one volume; arrays are (slices, rows, columns).

    lungs: uint8, 0 or ``Lung``.  lesions: uint8, 0 or ``Lesion``, zero outside the lungs.
    region_labels: uint16, 0 or ``Region.number``.
    noisy_or: finding type -> 1 - prod(1 - p_i) over the type's regions (types without regions: 0.0).
    case_type: the type with the largest Noisy-OR, or ``NO_FINDING``.
    lung_volume_ml, lesion_volume_ml: per ``Lung``, millilitres.
    """

    lungs: NDArray[np.uint8]
    lesions: NDArray[np.uint8]
    region_labels: NDArray[np.uint16]
    regions: tuple[Region, ...]
    noisy_or: Mapping[str, float]
    case_type: str
    lung_volume_ml: Mapping[Lung, float]
    lesion_volume_ml: Mapping[Lung, float]
    probability_method: str
    notes: tuple[str, ...] = ()

    @property
    def involved_percent(self) -> float:
        """Share of the lung volume that is ground glass or consolidation, percent."""
        total = sum(self.lung_volume_ml.values())
        return 100.0 * sum(self.lesion_volume_ml.values()) / total if total > 0 else 0.0


@dataclass(frozen=True)
class ModelIdentity:
    """A model as it was served: sha256 is of its ``model.onnx`` (or engine) file, hex."""

    name: str
    version: str
    sha256: str
    description: str = ""


@dataclass(frozen=True)
class ResultContext:
    """Who made a result set, from what and when. Result UIDs are a function of this and the input UIDs.

    content_datetime: the job's creation time (not the clock's), so that a re-run is byte-identical.
    predecessors: SOP Instance UIDs of the SR that this result set supersedes.
    """

    pipeline: str
    pipeline_version: str
    software_version: str
    models: tuple[ModelIdentity, ...]
    content_datetime: datetime
    clinical_use: bool = False
    uid_root: str | None = None
    predecessors: tuple[str, ...] = field(default=())
