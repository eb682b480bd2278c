"""Real CC BY chest CT as training data, labelled by level sets as Deng et al. 2021 did (section 2.1).

In: folders with axial CT series.  Out: ``RealSeries`` with lung and lesion labels at full resolution, and
training ``Slices`` into which synthetic lesions may be pasted.

Lungs: a threshold seeds a Chan-Vese level set on every slice; bowel gas, airways and air around the patient
are removed; vessels are closed over. Where that can't be trusted (tumour, consolidation at the pleura) the
label is IGNORE. Lesions: none, other than IGNORE in the regions of ``NOT_NORMAL``. In series that are
diseased all over only what lies inside the level set is labelled: hazy lung in it counts as ground glass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from triton_models.data.dicom_folder import AIR_HU, Series, read_folder
from triton_models.data.lesions import lesion_field, paint
from triton_models.data.slices import IGNORE, Slices, to_network_size

Mask = NDArray[np.bool_]
LUNG_THRESHOLD_HU, DISEASED_THRESHOLD_HU = -400.0, -250.0
BAND_MM = 4.0  # the level set may move this far from its threshold seed
GROUND_GLASS_HU = (-680.0, -250.0)
SMALLEST_LUNG_MM2 = 250.0
AIRWAY_MM2, AIRWAY_MIDLINE_MM = 800.0, 38.0


@dataclass(frozen=True)
class Ellipsoid:
    """A region in patient space: centre and half-axes, LPS mm."""

    centre: tuple[float, float, float]
    half_axes: tuple[float, float, float]


#: read by eye: a tumour in the right lower lobe and the collapsed lung above it (lungdx A0002)
NOT_NORMAL: Mapping[str, tuple[Ellipsoid, ...]] = {
    "1.3.6.1.4.1.14519.5.2.1.6655.2359.207154000096236603057216610983": (
        Ellipsoid((-50.0, -103.0, 193.0), (46.0, 36.0, 40.0)),
        Ellipsoid((-40.0, -97.0, 240.0), (32.0, 36.0, 44.0)),
    ),
    # a hand that lies on the chest (Stony Brook A046441, Toshiba)
    "1.3.6.1.4.1.14519.5.2.1.99.1071.25337533316712571980846091289688": (
        Ellipsoid((-112.0, -78.0, 1718.5), (85.0, 45.0, 10.0)),
    ),
}
#: series with widespread COVID-19 (Stony Brook A046441): hazy lung in them is a lesion
DISEASED = frozenset(
    {
        "1.3.6.1.4.1.14519.5.2.1.99.1071.40820951334848080397389076029877",
        "1.3.6.1.4.1.14519.5.2.1.99.1071.25337533316712571980846091289688",
    }
)


@dataclass(frozen=True)
class RealSeries:
    """A labelled series, arrays (slices, rows, columns); labels as in ``Slices``."""

    series: Series
    lungs: NDArray[np.uint8]
    lesions: NDArray[np.uint8]


def load_real(folders: list[Path]) -> list[RealSeries]:
    """Read and label every axial CT series in the folders. Raises FileNotFoundError as ``read_folder``."""
    return [label_series(series) for folder in folders for series in read_folder(folder)]


def label_series(series: Series) -> RealSeries:
    """Make lung and lesion labels for one series."""
    spacing = series.spacing_mm
    diseased = series.series_instance_uid in DISEASED
    threshold = DISEASED_THRESHOLD_HU if diseased else LUNG_THRESHOLD_HU
    aerated = np.stack([_level_set(plane, spacing[1], threshold) for plane in series.hu])
    aerated = _lungs_only(aerated, series)
    closed = np.stack([_close(plane, 5.0 / spacing[1]) for plane in aerated])
    lungs = closed.astype(np.uint8)
    abnormal = _inside_ellipsoids(series)
    lungs[abnormal & ~closed] = IGNORE
    lesions = np.zeros(lungs.shape, dtype=np.uint8)
    lesions[abnormal] = IGNORE
    if diseased:
        # what isn't aerated may be consolidated lung or chest wall: thresholds can't tell
        lungs[~closed | abnormal] = IGNORE
        lesions = np.stack([_hazy(hu, lung, spacing[1]) for hu, lung in zip(series.hu, closed, strict=True)])
        lesions[abnormal] = IGNORE
    return RealSeries(series, lungs, lesions)


def real_slices(
    real: RealSeries, rng: np.random.Generator | None = None, *, pattern: str | None = None
) -> Slices:
    """Training slices of one series; with ``rng``, synthetic lesions are pasted into its lungs first."""
    hu, lesions = real.series.hu, real.lesions
    if rng is not None:
        hu, lesions = paste_lesions(real, rng, pattern=pattern)
    return to_network_size(hu, real.lungs, lesions)


def paste_lesions(
    real: RealSeries, rng: np.random.Generator, *, pattern: str | None = None
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """HU and lesion labels of the series with synthetic lesions in its lungs."""
    spacing = real.series.spacing_mm
    lungs = real.lungs == 1
    step = max(round(2.6 / spacing[1]), 1)
    depth = np.stack([ndimage.distance_transform_edt(plane) * spacing[1] for plane in lungs])
    coarse = (-depth[:, ::step, ::step]).astype(np.float32)
    field = lesion_field(rng, coarse, (spacing[0], step * spacing[1], step * spacing[2]), pattern=pattern)
    hu, lesions = real.series.hu.copy(), real.lesions.copy()
    for index in range(len(hu)):
        if not (field.ground_glass[index] > -field.edge_mm).any() or not lungs[index].any():
            continue
        levels = [
            ndimage.zoom(part[index], step, order=1, grid_mode=True, mode="nearest")[
                : hu.shape[1], : hu.shape[2]
            ]
            for part in (field.ground_glass, field.consolidation, field.filling)
        ]
        levels = [np.pad(p, [(0, n - m) for n, m in zip(hu.shape[1:], p.shape, strict=True)]) for p in levels]
        plane = hu[index].astype(np.float32)
        mesh = None
        if field.paving > 0:
            noise = ndimage.gaussian_filter(rng.standard_normal(plane.shape, dtype=np.float32), 2.2)
            mesh = np.exp(-((noise / noise.std() / 0.16) ** 2))
        painted, ground, dense = paint(plane, (levels[0], levels[1], levels[2]), field, mesh)
        share = ndimage.gaussian_filter(lungs[index].astype(np.float32), 0.7)
        # open airways keep their air, or every bronchus would be flooded
        share *= plane > -985 if field.bronchograms else 1.0
        new = plane + (painted - plane) * share
        grain = ndimage.gaussian_filter(rng.standard_normal(plane.shape, dtype=np.float32), 0.8)
        new += np.maximum(ground, dense) * share * grain / max(float(grain.std()), 1e-6) * rng.uniform(5, 25)
        label = np.where(dense > 0.5, 2, np.where(ground > 0.5, 1, 0)) * lungs[index]
        hu[index] = np.clip(np.rint(new), AIR_HU, 3071).astype(np.int16)
        lesions[index] = np.where((label > 0) & (lesions[index] != IGNORE), label, lesions[index])
    return hu, lesions


def _level_set(hu: NDArray[np.int16], pixel_mm: float, threshold: float) -> Mask:
    """Air inside the body of one slice: thresholded, then refined by a Chan-Vese level set."""
    smooth = ndimage.gaussian_filter(hu.astype(np.float32), 0.6)
    tissue = ndimage.binary_opening(smooth > threshold, iterations=2)
    labels, count = ndimage.label(tissue)
    if count == 0:
        return np.zeros(hu.shape, dtype=bool)
    body = labels == 1 + int(np.argmax(ndimage.sum_labels(tissue, labels, np.arange(1, count + 1))))
    body = ndimage.binary_fill_holes(ndimage.binary_closing(body, iterations=3))
    seed = body & (smooth < threshold)
    seed = ndimage.binary_opening(seed)
    if seed.sum() * pixel_mm**2 < SMALLEST_LUNG_MM2:
        return np.zeros(hu.shape, dtype=bool)
    inside = np.where(body, np.clip(smooth, -1000.0, 50.0), 50.0).astype(np.float32)
    level = np.where(seed, -1.0, 1.0).astype(np.float32)
    chan_vese = sitk.ScalarChanAndVeseDenseLevelSetImageFilter()
    chan_vese.SetNumberOfIterations(30)
    chan_vese.SetMaximumRMSError(0.005)
    chan_vese.SetLambda1(1.0)
    chan_vese.SetLambda2(1.0)
    chan_vese.SetCurvatureWeight(0.3)
    chan_vese.UseImageSpacingOff()
    refined = chan_vese.Execute(sitk.GetImageFromArray(level), sitk.GetImageFromArray(inside))
    mask = sitk.GetArrayFromImage(refined) > 0
    if (mask & seed).sum() < 0.5 * seed.sum():
        mask = ~mask  # the filter's sign follows its initialisation, which has no documented convention
    band = ndimage.distance_transform_edt(~seed) * pixel_mm < BAND_MM
    return np.asarray(mask & body & band & (smooth < threshold + 150.0))


def _lungs_only(air: Mask, series: Series) -> Mask:
    """Drop bowel gas (not connected to the lungs) and airways (small, near the midline)."""
    spacing = series.spacing_mm
    pixel_mm2 = spacing[1] * spacing[2]
    labels, count = ndimage.label(air)
    volumes = ndimage.sum_labels(air, labels, np.arange(1, count + 1)) * pixel_mm2 * spacing[0]
    if len(air) > 3:
        air = np.isin(labels, 1 + np.flatnonzero(volumes > max(0.1 * volumes.max(), 1.0)))
    else:  # single slices: the lungs are the two large parts
        air = np.isin(labels, 1 + np.flatnonzero(volumes > max(0.35 * volumes.max(), 1.0)))
    out = np.zeros_like(air)
    where = np.argwhere(air)
    midline = 0.5 * (where[:, 2].min() + where[:, 2].max()) * spacing[2] if len(where) else 0.0
    for index, plane in enumerate(air):
        parts, number = ndimage.label(plane)
        for part in range(1, number + 1):
            mask = parts == part
            area = mask.sum() * pixel_mm2
            across = np.argwhere(mask)[:, 1].mean() * spacing[2]
            if area > AIRWAY_MM2 or (area > 40.0 and abs(across - midline) > AIRWAY_MIDLINE_MM):
                out[index] |= mask
    return out


def _close(mask: Mask, radius: float) -> Mask:
    """Morphological closing by distance, and filled holes, part by part so that the lungs don't merge."""
    out = np.zeros_like(mask)
    labels, count = ndimage.label(mask)
    pad = int(radius) + 2
    for part in range(1, count + 1):
        padded = np.pad(labels == part, pad)
        grown = ndimage.distance_transform_edt(~padded) <= radius
        closed = ndimage.distance_transform_edt(grown) > radius
        out |= ndimage.binary_fill_holes(closed)[pad:-pad, pad:-pad]
    return np.asarray(out | mask)


def _hazy(hu: NDArray[np.int16], lung: Mask, pixel_mm: float) -> NDArray[np.uint8]:
    """Ground glass of a diseased slice; uncertain where the HU is near a bound or the tissue is dense."""
    smooth = ndimage.gaussian_filter(hu.astype(np.float32), 1.6 / pixel_mm)
    low, high = GROUND_GLASS_HU
    edge = lung & (ndimage.distance_transform_edt(lung) * pixel_mm < 3.0)
    label = np.where(lung & (smooth > low) & (smooth < high), 1, 0).astype(np.uint8)
    unsure = (np.abs(smooth - low) < 60.0) & lung
    label[unsure | edge | (smooth >= high) | ~lung] = IGNORE
    return label


def _inside_ellipsoids(series: Series) -> Mask:
    """True in the regions of ``NOT_NORMAL`` of this series."""
    out = np.zeros(series.hu.shape, dtype=bool)
    inverse = np.linalg.inv(series.affine)
    for region in NOT_NORMAL.get(series.series_instance_uid, ()):
        centre = (inverse @ [*region.centre, 1.0])[:3]
        # the series here are axial without tilt, so half-axes (x, y, z) lie along (column, row, slice)
        half = np.asarray(region.half_axes)[::-1] / series.spacing_mm
        axes = np.ogrid[tuple(slice(0, n) for n in out.shape)]
        out |= sum(((axis - c) / h) ** 2 for axis, c, h in zip(axes, centre, half, strict=True)) < 1.0
    return out
