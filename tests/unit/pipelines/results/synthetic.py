"""Small synthetic chest volumes with DICOM headers, in any orientation.

Not the project's phantom: this one is a few ellipsoids whose place in patient space is known exactly, so
that a test can say where each voxel of a result must land.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, generate_uid

from pipelines.infection import PROBABILITY_METHOD
from pipelines.quantify import hu_percentiles
from pipelines.volume import (
    INFECTION_TYPES,
    LESION_TYPES,
    NO_FINDING,
    Findings,
    InpaintedSlice,
    Lesion,
    Lung,
    LungMeasures,
    ModelIdentity,
    Region,
    ResultContext,
    Volume,
)
from tests.unit.pipelines.examples import votes

#: name -> (slice step, row step, column step) as LPS unit vectors; a row step goes one row down
_TILT = np.deg2rad(20.0)
ORIENTATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]] = {
    "axial": ((0, 0, 1), (0, 1, 0), (1, 0, 0)),
    "reversed": ((0, 0, -1), (0, 1, 0), (1, 0, 0)),
    "prone_flipped": ((0, 0, 1), (0, -1, 0), (-1, 0, 0)),
    "coronal": ((0, 1, 0), (0, 0, -1), (1, 0, 0)),
    "sagittal": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "oblique": (
        (0, -float(np.sin(_TILT)), float(np.cos(_TILT))),
        (0, float(np.cos(_TILT)), float(np.sin(_TILT))),
        (1, 0, 0),
    ),
    # a tilted gantry: the table moves along z, the planes are not across it
    "tilted": (
        (0, 0, 1),
        (0, float(np.cos(_TILT)), float(-np.sin(_TILT))),
        (1, 0, 0),
    ),
}


def context(**changes: object) -> ResultContext:
    values: dict[str, object] = {
        "pipeline": "chest_ct_pneumonia",
        "pipeline_version": "1.0",
        "software_version": "0.1.0",
        "models": (
            ModelIdentity("lungs", "1", "a1" * 32, "lung segmentation"),
            ModelIdentity("lesions", "3", "b2" * 32, "lesion segmentation"),
        ),
        "content_datetime": datetime(2026, 11, 20, 12, 34, 56),
    }
    return ResultContext(**{**values, **changes})  # type: ignore[arg-type]


def affine_for(
    orientation: str, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> NDArray[np.float64]:
    """An affine whose grid is centred on the patient-space origin."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(ORIENTATIONS[orientation]).T * np.array(spacing)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def headers(
    affine: NDArray[np.float64], shape: tuple[int, int, int], *, enhanced: bool = False, **changes: object
) -> tuple[Dataset, ...]:
    """CT headers of a series on this grid; ``changes`` sets attributes, or removes them where None."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    row, column = affine[:3, 2] / spacing[2], affine[:3, 1] / spacing[1]
    common = Dataset()
    common.SpecificCharacterSet = "ISO_IR 100"
    common.SOPClassUID = EnhancedCTImageStorage if enhanced else CTImageStorage
    common.StudyInstanceUID, common.SeriesInstanceUID = _uid("study"), _uid("series")
    common.FrameOfReferenceUID = _uid("frame")
    common.PatientName, common.PatientID = "Müller^Jörg", "4711"
    common.PatientBirthDate, common.PatientSex, common.PatientAge = "19500102", "M", "076Y"
    common.StudyDate, common.StudyTime, common.StudyID = "20261119", "081500", "77"
    common.AccessionNumber, common.ReferringPhysicianName = "ACC1", "Doe^Jane"
    common.StudyDescription, common.SeriesNumber, common.Modality = "CT Thorax", 3, "CT"
    common.Manufacturer, common.ManufacturerModelName = "ACME", "Scanner 1"
    common.BodyPartExamined, common.PositionReferenceIndicator = "CHEST", "SN"
    common.Rows, common.Columns = shape[1], shape[2]
    for keyword, value in changes.items():
        if value is None:
            common.pop(keyword, None)
        else:
            setattr(common, keyword, value)
    positions = [(affine @ [s, 0, 0, 1])[:3] for s in range(shape[0])]
    if enhanced:
        return (_enhanced(common, spacing, row, column, positions),)
    sources = []
    for number, position in enumerate(positions, start=1):
        source = Dataset()
        source.update(common)
        source.SOPInstanceUID = _uid(f"instance-{number}")
        source.InstanceNumber = number
        source.ImagePositionPatient = [round(float(x), 6) for x in position]
        source.ImageOrientationPatient = [round(float(x), 9) for x in (*row, *column)]
        source.PixelSpacing = [float(spacing[1]), float(spacing[2])]
        source.SliceThickness = float(spacing[0])
        sources.append(source)
    return tuple(sources)


def _enhanced(
    common: Dataset,
    spacing: NDArray[np.float64],
    row: NDArray[np.float64],
    column: NDArray[np.float64],
    positions: list[NDArray[np.float64]],
) -> Dataset:
    """One instance; its frames run from the last slice to the first, as some scanners write them."""
    source = Dataset()
    source.update(common)
    source.SOPInstanceUID = _uid("enhanced")
    shared = Dataset()
    measures, plane = Dataset(), Dataset()
    measures.PixelSpacing = [float(spacing[1]), float(spacing[2])]
    measures.SliceThickness = float(spacing[0])
    plane.ImageOrientationPatient = [round(float(x), 9) for x in (*row, *column)]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    source.SharedFunctionalGroupsSequence = [shared]
    source.PerFrameFunctionalGroupsSequence = []
    for position in reversed(positions):
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = [round(float(x), 6) for x in position]
        frame.PlanePositionSequence = [place]
        source.PerFrameFunctionalGroupsSequence.append(frame)
    source.NumberOfFrames = len(positions)
    return source


def _uid(name: str) -> str:
    return str(generate_uid(prefix="1.2.826.0.1.3680043.10.543.", entropy_srcs=[name]))


def _grid(volume: Volume) -> NDArray[np.float64]:
    """(slices, rows, columns, 3) LPS mm of every voxel centre."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in volume.hu.shape), indexing="ij"), axis=-1)
    return volume.to_patient(index.reshape(-1, 3).astype(np.float64)).reshape(*volume.hu.shape, 3)


def _ball(
    grid: NDArray[np.float64], centre: tuple[float, ...], radii: tuple[float, ...]
) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = (((grid - centre) / radii) ** 2).sum(axis=-1) <= 1.0
    return inside


def chest(
    orientation: str = "axial",
    *,
    shape: tuple[int, int, int] = (24, 96, 112),
    spacing: tuple[float, float, float] = (8.0, 2.8, 2.4),
    lesions: bool = True,
    enhanced: bool = False,
    **changes: object,
) -> tuple[Volume, Findings]:
    """A chest: right lung at LPS x -60, left at +60, lesions of both types on known sides.

    With ``lesions``: ground glass in the right lung (two regions), consolidation in the left (one).
    """
    if orientation == "coronal":
        shape, spacing = (shape[1], shape[0] * 3, shape[2]), (spacing[1], spacing[0] / 3, spacing[2])
    if orientation == "sagittal":
        shape, spacing = (shape[2], shape[0] * 3, shape[1]), (spacing[2], spacing[0] / 3, spacing[1])
    affine = affine_for(orientation, shape, spacing)
    sources = headers(affine, shape, enhanced=enhanced, **changes)
    frames = tuple((0, shape[0] - s) if enhanced else (s, 1) for s in range(shape[0]))
    volume = Volume(np.full(shape, -1000, np.int16), affine, sources, frames)
    grid = _grid(volume)
    body = _ball(grid, (0, 0, 0), (128, 98, 400))
    lungs = np.zeros(shape, np.uint8)
    lungs[_ball(grid, (-58, 0, 0), (42, 62, 84))] = Lung.RIGHT
    lungs[_ball(grid, (58, 0, 0), (40, 62, 84))] = Lung.LEFT
    blobs = {
        1: (_ball(grid, (-60, 30, 20), (26, 22, 26)), "ground_glass", "covid19", 0.91),
        2: (_ball(grid, (52, 26, -30), (18, 18, 22)), "consolidation", "iavp", 0.873456789012),
        3: (_ball(grid, (-50, -28, -36), (13, 13, 18)), "ground_glass", "covid19", 0.5),
    }
    labels, kinds = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for number, (mask, kind, _, _) in blobs.items() if lesions else ():
        inside = mask & (lungs > 0)
        labels[inside], kinds[inside] = number, LESION_TYPES[kind]
    hu = volume.hu
    hu[body] = 40
    hu[lungs > 0] = -850
    hu[_ball(grid, (0, 78, 0), (16, 16, 400))] = 500  # the spine is posterior
    hu[kinds == Lesion.GROUND_GLASS], hu[kinds == Lesion.CONSOLIDATION] = -550, 10
    hu += np.random.default_rng(0).integers(-15, 15, shape).astype(np.int16)
    regions = tuple(
        region_of(volume, labels, lungs, number, kind, infection, probability)
        for number, (_, kind, infection, probability) in blobs.items()
        if lesions
    )
    return volume, findings_of(volume, lungs, kinds, labels, regions)


def without_plane(volume: Volume, findings: Findings, missing: int) -> tuple[Volume, Findings]:
    """The same where slice ``missing`` was never sent: interpolated, with its neighbour's labels."""
    kept = [k for k in range(len(volume.hu)) if k != missing]
    repaired = replace(
        volume,
        sources=tuple(volume.sources[k] for k in kept),
        source_frames=tuple((k, 1) for k in range(len(kept))),
        source_slices=tuple(kept),
    )
    return repaired, replace(
        findings,
        lungs=repaired.as_acquired(findings.lungs),
        lesions=repaired.as_acquired(findings.lesions),
        region_labels=repaired.as_acquired(findings.region_labels),
    )


def region_of(  # noqa: PLR0917
    volume: Volume,
    labels: NDArray[np.uint8],
    lungs: NDArray[np.uint8],
    number: int,
    lesion_type: str,
    infection_type: str,
    p: float,
) -> Region:
    mask = labels == number
    where = np.argwhere(mask)
    box = tuple((int(a), int(b) + 1) for a, b in zip(where.min(0), where.max(0), strict=True))
    ml = float(mask.sum() * volume.voxel_volume_ml)
    return Region(
        number=number,
        infection_type=infection_type,
        probability=p,
        votes=votes(infection_type, p),
        candidate_score=0.4,
        lesion_type=lesion_type,
        lesion_volume_ml={name: ml * (name == lesion_type) for name in LESION_TYPES},
        volume_ml=ml,
        mean_hu=float(volume.hu[mask].mean()),
        hu_percentiles=hu_percentiles(volume.hu[mask]),
        laterality=Lung(int(np.bincount(lungs[mask]).argmax())),
        relative_distance_from_edge=0.06,
        bounding_box=(box[0], box[1], box[2]),
        centroid_lps_mm=tuple(volume.to_patient(where.astype(np.float64)).mean(0)),
        key_slice=int(mask.sum(axis=(1, 2)).argmax()),
    )


def findings_of(
    volume: Volume,
    lungs: NDArray[np.uint8],
    kinds: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    regions: tuple[Region, ...],
) -> Findings:
    noisy_or = {
        kind: 1.0 - float(np.prod([1.0 - r.probability for r in regions if r.infection_type == kind]))
        for kind in INFECTION_TYPES
    }
    return Findings(
        lungs=lungs,
        lesions=kinds,
        region_labels=labels,
        regions=regions,
        noisy_or=noisy_or,
        case_type=max(noisy_or, key=lambda kind: noisy_or[kind]) if regions else NO_FINDING,
        measures={lung: _measures(volume, lungs == lung, kinds) for lung in Lung},
        probability_method=PROBABILITY_METHOD,
        inpainted=_inpainted(volume, labels) if regions else (),
    )


def _measures(volume: Volume, lung: NDArray[np.bool_], kinds: NDArray[np.uint8]) -> LungMeasures:
    ml = volume.voxel_volume_ml
    return LungMeasures(
        volume_ml=float(lung.sum() * ml),
        lesion_volume_ml={
            name: float((lung & (kinds == label)).sum() * ml) for name, label in LESION_TYPES.items()
        },
        mean_hu=float(volume.hu[lung].mean()),
        hu_percentiles=hu_percentiles(volume.hu[lung]),
        peripheral_percent=40.0,
    )


def _inpainted(volume: Volume, labels: NDArray[np.uint8]) -> tuple[InpaintedSlice, ...]:
    """The slice of the volume that has most of region 1, filled with lung."""
    index = int((labels == 1).sum(axis=(1, 2)).argmax())
    side = min(volume.hu.shape[1:])
    original, mask = volume.hu[index, :side, :side].copy(), labels[index, :side, :side] > 0
    return (InpaintedSlice(index, original, np.where(mask, np.int16(-850), original), mask),)
