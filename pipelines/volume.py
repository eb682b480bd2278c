"""The types that pass between stages: a volume in patient space and what was found in it.

Axis order is (slice, row, column) everywhere; an affine maps (slice, row, column, 1) to patient LPS
coordinates in millimetres (PS3.3 C.7.6.2.1.1). Nothing here flips or guesses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from pipelines.encoding import Encoding

if TYPE_CHECKING:  # who only passes findings on needn't load what draws
    from pipelines.render import Drawing

Scalar = TypeVar("Scalar", bound=np.generic)


class Lung(IntEnum):
    """Values in a lung label array. Right is the patient's right (smaller LPS x)."""

    RIGHT = 1
    LEFT = 2


class Lesion(IntEnum):
    """Values in a lesion label array and of the ``lesions`` model's LABELS output."""

    GROUND_GLASS = 1
    CONSOLIDATION = 2


#: what a lesion looks like: the key in summary.json  ->  lesion label
LESION_TYPES: Mapping[str, Lesion] = {
    "ground_glass": Lesion.GROUND_GLASS,
    "consolidation": Lesion.CONSOLIDATION,
}
#: what Noisy-OR is taken of (Xu et al. 2020): COVID-19 and influenza A viral pneumonia; the key in
#: ``noisy_or``, summary.json and the SR
INFECTION_TYPES = ("covid19", "iavp")
#: the type of a candidate that is neither, and isn't a region then
IRRELEVANT = "irrelevant"
NO_FINDING = "no_infection_found"


class SourceImages(Protocol):
    """What results say of their input, whatever it was: a ``Volume``, or a picture (``ct_picture``)."""

    @property
    def sources(self) -> tuple[Dataset, ...]:
        """The instances' headers without pixel data."""

    @property
    def source_frames(self) -> tuple[tuple[int, int], ...]:
        """Of each frame used: (index into ``sources``, 1-based frame number)."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the results should know of the input."""

    @property
    def instance_uids(self) -> tuple[str, ...]:
        """SOP Instance UIDs of the sources, sorted: every UID of a result is made of them."""

    @property
    def series_instance_uid(self) -> str: ...


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

    @cached_property
    def instance_uids(self) -> tuple[str, ...]:
        """SOP Instance UIDs of the sources, sorted: every UID of a result is made of them."""
        return tuple(sorted(str(source.SOPInstanceUID) for source in self.sources))

    def on_source_planes(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """(slices, rows, columns) -> (acquired planes, rows, columns), for results on the source images."""
        return array[list(self.source_slices)] if self.source_slices else array

    def acquired_plane(self, slice_index: int) -> int:
        """Index into ``source_frames`` of the acquired plane at a slice, or nearest to it."""
        if not self.source_slices:
            return slice_index
        return int(np.abs(np.array(self.source_slices) - slice_index).argmin())

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

    def by_lung_ml(self, labels: NDArray[np.uint8]) -> dict[Lung, float]:
        """Millilitres of each ``Lung`` in labels (slices, rows, columns) on this grid."""
        return {lung: float(np.count_nonzero(labels == lung)) * self.voxel_volume_ml for lung in Lung}

    def to_patient(self, index: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map (n, 3) voxel indices (slice, row, column) to (n, 3) LPS mm."""
        mapped: NDArray[np.float64] = index @ self.affine[:3, :3].T + self.affine[:3, 3]
        return mapped


@dataclass(frozen=True)
class PatchVote:
    """One of the three patches that represent a candidate.

    place: its centre, (slice, row, column) in voxels of the axial view.
    relative_distance_from_edge: of its centre, dimensionless (``pipelines.patches``).
    probabilities: type (INFECTION_TYPES and IRRELEVANT) -> what ``infection_type`` answered, in [0, 1].
    """

    place: tuple[int, float, float]
    relative_distance_from_edge: float
    probabilities: Mapping[str, float]

    @property
    def infection_type(self) -> str:
        """The likeliest type; the first named wins a tie."""
        return max(self.probabilities, key=lambda name: self.probabilities[name])

    @property
    def confidence(self) -> float:
        return self.probabilities[self.infection_type]


@dataclass(frozen=True)
class Region:
    """One candidate that was voted an infection, and so entered the Noisy-OR.

    number: 1-based, ordered by descending volume; the value in ``Findings.region_labels``.
    infection_type: of INFECTION_TYPES, as voted.
    probability: p_i of the Noisy-OR, in [0, 1]: how it was made is said in ``Findings.probability_method``.
    votes: of its three patches, by ascending slice.
    candidate_score: of the source of candidates, on its own scale.
    lesion_type: key of LESION_TYPES with the most voxels in the region.
    lesion_volume_ml: key of LESION_TYPES -> millilitres; their sum is volume_ml.
    mean_hu, hu_percentiles: of its voxels; percentile (5, 50, 95) -> HU.
    relative_distance_from_edge: of its middle patch (Xu et al. 2020), dimensionless.
    bounding_box: half-open voxel ranges ((s0, s1), (r0, r1), (c0, c1)).
    centroid_lps_mm: centre of mass in patient coordinates, mm.
    key_slice: slice index with the region's largest area.
    """

    number: int
    infection_type: str
    probability: float
    votes: tuple[PatchVote, ...]
    candidate_score: float
    lesion_type: str
    lesion_volume_ml: Mapping[str, float]
    volume_ml: float
    mean_hu: float
    hu_percentiles: Mapping[int, float]
    laterality: Lung
    relative_distance_from_edge: float
    bounding_box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    centroid_lps_mm: tuple[float, float, float]
    key_slice: int


@dataclass(frozen=True)
class LungMeasures:
    """What was measured of one lung.

    volume_ml: with its lesions.  lesion_volume_ml: key of LESION_TYPES -> millilitres.
    mean_hu, hu_percentiles: of all its voxels; percentile (5, 50, 95) -> HU.
    peripheral_percent: share of its lesions that lies near the edge (``pipelines.quantify``), percent; 0
        without lesions.
    """

    volume_ml: float
    lesion_volume_ml: Mapping[str, float]
    mean_hu: float
    hu_percentiles: Mapping[int, float]
    peripheral_percent: float

    @property
    def lesions_ml(self) -> float:
        return sum(self.lesion_volume_ml.values())

    @property
    def involved_percent(self) -> float:
        """Share of the lung that is ground glass or consolidation, percent."""
        return 100.0 * self.lesions_ml / self.volume_ml if self.volume_ml > 0 else 0.0


@dataclass(frozen=True)
class InpaintedSlice:
    """A window of a key slice, and as it might look without its lesions; arrays are (rows, columns).

    index: slice of the axial view, whose rows run to the back and columns to the patient's left.
    original, inpainted: int16 HU, equal outside of ``mask``.  The window is as wide as high in mm.
    """

    index: int
    original: NDArray[np.int16]
    inpainted: NDArray[np.int16]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Findings:
    """Everything the pipeline concluded about one volume; arrays are (slices, rows, columns).

    lungs: uint8, 0 or ``Lung``.  lesions: uint8, 0 or ``Lesion``, zero outside the lungs.
    region_labels: uint8, 0 or ``Region.number``.
    noisy_or: infection type -> 1 - prod(1 - p_i) over the type's regions (types without regions: 0.0).
    case_type: the type with the largest Noisy-OR, or ``NO_FINDING``.
    measures: of each lung.
    inpainted: key slices as if without their lesions, by ascending slice.
    drawing: of lungs and lesions in 3D, if it began already.
    lesion_probabilities: uint8 (2, slices, rows, columns), of each ``Lesion`` in its order, 255 for 1, zero
        outside of the lungs; None unless a destination wants FRACTIONAL segmentations.
    """

    lungs: NDArray[np.uint8]
    lesions: NDArray[np.uint8]
    region_labels: NDArray[np.uint8]
    regions: tuple[Region, ...]
    noisy_or: Mapping[str, float]
    case_type: str
    measures: Mapping[Lung, LungMeasures]
    probability_method: str
    inpainted: tuple[InpaintedSlice, ...] = ()
    notes: tuple[str, ...] = ()
    drawing: Drawing | None = field(default=None, compare=False, repr=False)
    lesion_probabilities: NDArray[np.uint8] | None = None

    @property
    def involved_percent(self) -> float:
        """Share of the lung volume that is ground glass or consolidation, percent."""
        total = sum(one.volume_ml for one in self.measures.values())
        return 100.0 * sum(one.lesions_ml for one in self.measures.values()) / total if total > 0 else 0.0

    @property
    def peripheral_percent(self) -> float:
        """Share of the lesions' volume that lies near the lungs' edge, percent; 0 without lesions."""
        lesions = sum(one.lesions_ml for one in self.measures.values())
        near = sum(one.lesions_ml * one.peripheral_percent for one in self.measures.values())
        return near / lesions if lesions > 0 else 0.0


@dataclass(frozen=True)
class ModelIdentity:
    """A model as it was served: sha256 is of its ``model.onnx`` (or engine) file, hex.

    weights: where they come from, if its configuration says so; ``seeded`` ones are random numbers.
    instead_of: the model whose place this one takes, as a candidate.
    """

    name: str
    version: str
    sha256: str
    description: str = ""
    weights: str = ""
    instead_of: str = ""

    @property
    def role(self) -> str:
        """The name that its pipeline knows it by."""
        return self.instead_of or self.name

    @property
    def is_random(self) -> bool:
        """Whether its answers mean nothing, because it was never trained."""
        return "seeded" in self.weights


@dataclass(frozen=True)
class ResultContext:
    """Who made a result set, from what and when. Result UIDs are a function of this and the input UIDs.

    content_datetime: the job's creation time (not the clock's), so that a re-run is byte-identical.
    predecessors: SOP Instance UIDs of the SR that this result set supersedes.
    encodings: how destinations want segmentations beside the default (``pipelines.encoding``), each with the
        SOP Instance UIDs of the SR that the one in this encoding supersedes.
    """

    pipeline: str
    pipeline_version: str
    software_version: str
    models: tuple[ModelIdentity, ...]
    content_datetime: datetime
    clinical_use: bool = False
    uid_root: str | None = None
    predecessors: tuple[str, ...] = field(default=())
    encodings: Mapping[Encoding, tuple[str, ...]] = field(default_factory=dict)
