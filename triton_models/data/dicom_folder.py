"""A small reader of one classic CT series for training and evaluation.

In: a folder of DICOM files.  Out: a ``Series`` in Hounsfield units, slices sorted along the slice normal.
The node's own loader (``pipelines.load``) has the geometry gate; this one trusts the folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.errors import InvalidDicomError

AIR_HU = -1024


@dataclass(frozen=True)
class Series:
    """hu: int16 (slices, rows, columns), padding replaced by AIR_HU.

    affine: (4, 4), (slice, row, column, 1) -> LPS mm.
    """

    hu: NDArray[np.int16]
    affine: NDArray[np.float64]
    series_instance_uid: str

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        steps = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(steps[0]), float(steps[1]), float(steps[2])


def read_folder(folder: Path) -> list[Series]:
    """Every axial CT series in ``folder`` (searched one level deep), by Series Instance UID.

    Slices that are not axial (normal more than 10 degrees off the z axis) are left out. Raises
    FileNotFoundError when no axial CT is found.
    """
    groups: dict[str, list[Dataset]] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        try:
            ds = pydicom.dcmread(path)
        except InvalidDicomError:
            continue
        if ds.get("Modality") == "CT" and "PixelData" in ds and _normal(ds)[2] > np.cos(np.radians(10)):
            groups.setdefault(str(ds.SeriesInstanceUID), []).append(ds)
    if not groups:
        raise FileNotFoundError(f"{folder}: no axial CT image was found")
    return [_stack(uid, groups[uid]) for uid in sorted(groups)]


def _normal(ds: Dataset) -> NDArray[np.float64]:
    orientation = np.asarray(ds.ImageOrientationPatient, dtype=np.float64)
    return np.cross(orientation[:3], orientation[3:])


def _stack(uid: str, slices: list[Dataset]) -> Series:
    normal = _normal(slices[0])
    slices.sort(key=lambda ds: float(np.dot(np.asarray(ds.ImagePositionPatient, dtype=float), normal)))
    first = slices[0]
    orientation = np.asarray(first.ImageOrientationPatient, dtype=np.float64)
    spacing = np.asarray(first.PixelSpacing, dtype=np.float64)
    positions = np.array([np.asarray(ds.ImagePositionPatient, dtype=np.float64) for ds in slices])
    step = (positions[-1] - positions[0]) / (len(slices) - 1) if len(slices) > 1 else normal
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = orientation[3:] * spacing[0]
    affine[:3, 2] = orientation[:3] * spacing[1]
    affine[:3, 3] = positions[0]
    return Series(np.stack([_hu(ds) for ds in slices]), affine, uid)


def _hu(ds: Dataset) -> NDArray[np.int16]:
    stored = ds.pixel_array.astype(np.int32)
    hu = stored * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0))
    if "PixelPaddingValue" in ds:
        padding = int(ds.PixelPaddingValue)
        # some writers give the value unsigned although pixels are signed (63536 for -2000)
        hu[(stored == padding) | (stored == padding - 65536)] = AIR_HU
    return np.asarray(np.clip(np.rint(hu), AIR_HU, 3071), dtype=np.int16)
