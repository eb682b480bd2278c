"""What segmentation and detection are measured against: labelled pictures, or a DICOM series with a mask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from triton_models.data.dicom_folder import Series, read_folder
from triton_models.data.folds import inside
from triton_models.data.labelled_2d import LabelledImage, read_labelled_2d
from triton_models.evaluation.source import Source


def chosen_pictures(source: Source) -> Iterator[LabelledImage]:
    """All labelled pictures of a source's folder, or those of its fold. Raises as ``read_labelled_2d``."""
    assert source.data is not None  # noqa: S101 - by the caller
    images = list(read_labelled_2d(source.data))
    chosen = inside([image.name for image in images], source.fold) if source.fold else [True] * len(images)
    yield from (image for image, is_chosen in zip(images, chosen, strict=True) if is_chosen)


def masked_series(source: Source) -> tuple[Series, NDArray[np.int16]]:
    """The one series of a source's folder, and its mask's labels on the series' grid.

    Raises FileNotFoundError for a missing mask, ValueError for several series, for none named, or for a mask
    that doesn't fit.
    """
    assert source.data is not None  # noqa: S101 - by the caller
    found = read_folder(source.data)
    if len(found) != 1:
        raise ValueError(f"{source.data}: has {len(found)} axial CT series, evaluate one at a time")
    if source.mask is None:
        raise ValueError(f"{source.data}: is a DICOM series; --mask must name its labels (NIfTI)")
    if not source.mask.is_file():
        raise FileNotFoundError(f"{source.mask}: no such mask")
    return found[0], mask_on_series(found[0], source.mask)


def mask_on_series(series: Series, mask: Path) -> NDArray[np.int16]:
    """A NIfTI label image resampled to the series' grid (nearest neighbour), (slices, rows, columns).

    SimpleITK gives NIfTI's RAS affine in LPS, as DICOM has it. Raises ValueError when the mask covers less
    than half of the series: it is taken for another patient's.
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
