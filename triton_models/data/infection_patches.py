"""Patches of candidate regions with the disease they come from, out of phantoms (Xu et al. 2020, Methods).

In: seeds.  Out: ``Patches``: HU, relative distance-from-edge and class. numpy and scipy only.

Placement and appearance by disease. The paper's introduction names what tells COVID-19 on CT (Kanne 2020;
Chung et al. 2020): ground glass, a striking peripheral distribution along the pleura, several independent
foci. Influenza-A pneumonia is drawn more central, along the bronchi and vessels, and more often
consolidated, which is what radiology reports say of it and not what the paper measured. **Both overlap, in
place and in look, on purpose**; the numbers of ``disease_pattern`` are ours:

============================  ==============================  ==============================
\\                            COVID-19                        influenza A
============================  ==============================  ==============================
distance from lung edge, mm   85 % N(11, 5), 15 % N(26, 8)    20 % N(11, 5), 80 % N(30, 7)
foci                          5-9 to 8-18                     4-8 to 7-17
radius of a focus, mm         5-8 to 10-19                    5-8 to 10-22
chance of a dense core        0.10-0.60                       0.40-0.95
its relative size             0.20 to 0.40-0.80               0.30 to 0.60-1.00
air replaced by ground glass  0.16-0.30 to 0.40-0.60          0.20-0.35 to 0.45-0.65
crazy paving                  40 % of cases                   15 % of cases
============================  ==============================  ==============================

Ranges of ranges: each case draws its own, uniformly. The distance is that in the axial plane, truncated by
the lung's shape; a focus that touches the pleura has its centre about its radius away. Both lungs are
affected alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.patches import PATCH, cut_patch, relative_distances
from triton_models.data.lesions import Pattern
from triton_models.data.phantom import Phantom, chest_phantom
from triton_models.data.phantom_cache import Arrays, cached_arrays, each_phantom

CLASSES = ("covid19", "iavp", "irrelevant")
COVID19, IAVP, IRRELEVANT = range(3)
#: seeds of the phantoms, met by no other set
TRAIN_SEEDS, VALIDATION_SEEDS, TEST_SEEDS = range(20000, 20240), range(28000, 28020), range(29200, 29400)
SLICES_PER_PHANTOM = 16
LESION_PATCHES, IRRELEVANT_PATCHES = 50, 12  # at most, of a phantom; twice the latter of a healthy one
SMALLEST_MM2 = 30.0  # a component's area
PATCH_EVERY_MM2 = 400.0  # of a large component
OFF_CENTRE_MM = 2.0  # standard deviation: no detector hits the centre
AWAY_MM = 12.0  # of irrelevant patches from lesions, roughly
VERSION = 5  # of cached patches


@dataclass(frozen=True)
class Patches:
    """n patches.

    hu: int16 (n, PATCH, PATCH).  distance: float32 (n, 1), relative distance-from-edge.
    label: int64 (n,), index into CLASSES.  group: int64 (n,), seed of the phantom.
    """

    hu: NDArray[np.int16]
    distance: NDArray[np.float32]
    label: NDArray[np.int64]
    group: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.hu)

    @staticmethod
    def concatenate(parts: Iterable[Patches]) -> Patches:
        rows = [(part.hu, part.distance, part.label, part.group) for part in parts]
        return Patches(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def disease_pattern(disease: int, rng: np.random.Generator) -> Pattern:
    """One case's lesions; disease: COVID19 or IAVP."""
    covid = disease == COVID19
    fewest = int(rng.integers(5, 10) if covid else rng.integers(4, 9))
    core = rng.uniform(0.10, 0.60) if covid else rng.uniform(0.40, 0.95)
    filling = [(0.16, 0.30), (0.40, 0.60)] if covid else [(0.20, 0.35), (0.45, 0.65)]
    return Pattern(
        foci=(fewest, fewest + int(rng.integers(3, 10))),
        radius=(rng.uniform(5.0, 8.0), rng.uniform(10.0, 19.0 if covid else 22.0)),
        core_chance=core,
        core_size=(0.2, rng.uniform(0.4, 0.8)) if covid else (0.3, rng.uniform(0.6, 1.0)),
        depth_mm=((0.85, 11.0, 5.0), (0.15, 26.0, 8.0)) if covid else ((0.2, 11.0, 5.0), (0.8, 30.0, 7.0)),
        filling=(rng.uniform(*filling[0]), rng.uniform(*filling[1])),
        paving_chance=0.40 if covid else 0.15,
    )


def case_patches(seed: int) -> Patches:
    """The patches of one phantom: COVID-19, influenza A (42 % each) or healthy."""
    rng = np.random.default_rng([0x494E46, seed])
    case = int(rng.choice([COVID19, IAVP, IRRELEVANT], p=[0.42, 0.42, 0.16]))
    lesions = disease_pattern(case, rng) if case != IRRELEVANT else False
    thickness = float(rng.choice([1.0, 1.25, 2.0, 2.5, 3.0, 5.0]))
    phantom = chest_phantom(seed, slices=SLICES_PER_PHANTOM, thickness_mm=thickness, lesions=lesions)
    found = list(_lesion_centres(phantom, rng))
    chosen = [found[i] for i in rng.permutation(len(found))[:LESION_PATCHES]]
    labels = [case] * len(chosen)
    elsewhere = list(_other_centres(phantom, rng))
    count = IRRELEVANT_PATCHES * (2 if case == IRRELEVANT else 1)
    chosen += [elsewhere[i] for i in rng.permutation(len(elsewhere))[:count]]
    labels += [IRRELEVANT] * (len(chosen) - len(labels))
    pixel = phantom.spacing_mm[1:]
    distances = {index: relative_distances(phantom.lungs[index] > 0) for index in {c[0] for c in chosen}}
    hu, distance = [], []
    for index, row, column in chosen:
        centre = np.array([row, column]) + rng.normal(0.0, OFF_CENTRE_MM / pixel[0], 2)
        hu.append(cut_patch(phantom.hu[index], (centre[0], centre[1]), pixel))
        nearest = np.clip(np.rint(centre).astype(int), 0, np.subtract(phantom.hu.shape[1:], 1))
        distance.append(distances[index][tuple(nearest)])
    return Patches(
        np.asarray(hu, dtype=np.int16).reshape(-1, PATCH, PATCH),
        np.asarray(distance, dtype=np.float32).reshape(-1, 1),
        np.asarray(labels, dtype=np.int64),
        np.full(len(hu), seed, dtype=np.int64),
    )


def _lesion_centres(phantom: Phantom, rng: np.random.Generator) -> Iterator[tuple[int, float, float]]:
    """(slice, row, column) of the lesions' components, slice by slice; large ones have several."""
    pixel_mm2 = phantom.spacing_mm[1] * phantom.spacing_mm[2]
    for index, plane in enumerate(phantom.lesions):
        labels, _ = ndimage.label(plane > 0)
        for number, box in enumerate(ndimage.find_objects(labels), start=1):
            where = np.argwhere(labels[box] == number) + [part.start for part in box]
            area = len(where) * pixel_mm2
            if area < SMALLEST_MM2:
                continue
            middle = where[np.argmin(((where - where.mean(0)) ** 2).sum(1))]
            more = where[rng.integers(len(where), size=int(min(area / PATCH_EVERY_MM2, 3)))]
            yield from ((index, float(row), float(column)) for row, column in [middle, *more])


def _other_centres(phantom: Phantom, rng: np.random.Generator) -> Iterator[tuple[int, float, float]]:
    """Points of the lungs away from lesions: dense spots (vessels, hila, fissures, domes of the diaphragm,
    dependent lung), which is what a sensitive detector proposes; the pleura; and anywhere."""
    pixel = phantom.spacing_mm[1]
    for index in range(int(rng.integers(2)), len(phantom.hu), 2):
        lung = phantom.lungs[index] > 0
        if lung.sum() * pixel**2 < 400.0:
            continue
        box = ndimage.find_objects(lung.astype(np.uint8))[0]
        lung, sick = lung[box], phantom.lesions[index][box] > 0
        free = lung & (ndimage.gaussian_filter(sick.astype(np.float32), 0.5 * AWAY_MM / pixel) < 0.02)
        smooth = ndimage.gaussian_filter(
            phantom.hu[index][box].astype(np.float32), rng.uniform(1.5, 4.0) / pixel, truncate=2.5
        )
        peaks = smooth == ndimage.maximum_filter(smooth, round(10.0 / pixel))
        inner = ndimage.binary_erosion(lung, iterations=round(5.0 / pixel))
        for mask, count in ((peaks & free & (smooth > -750.0), 6), (free & ~inner, 2), (free, 2)):
            where = np.argwhere(mask)
            for row, column in where[rng.permutation(len(where))[:count]]:
                yield index, float(row + box[0].start), float(column + box[1].start)


def patches_of(seed: int, cache: Path | None = None) -> Patches:
    """``case_patches``, read from ``cache`` when an earlier run left them there."""

    def make() -> Arrays:
        patches = case_patches(seed)
        return {
            "hu": patches.hu,
            "distance": patches.distance,
            "label": patches.label,
            "group": patches.group,
        }

    return Patches(**cached_arrays(cache, f"infection_{VERSION}_{seed}", make))


def patch_set(seeds: Iterable[int], cache: Path | None = None, *, processes: int = 2) -> Patches:
    """The patches of several phantoms, made by ``processes`` processes."""
    return Patches.concatenate(each_phantom(patches_of, seeds, cache, processes=processes))


def held_out_cases(phantoms: int) -> Iterator[tuple[dict[str, NDArray[np.generic]], list[str], list[str]]]:
    """Inputs, classes and groups of the first test phantoms, one by one. Raises ValueError for too many."""
    if phantoms > len(TEST_SEEDS):
        raise ValueError(f"there are {len(TEST_SEEDS)} test phantoms, not {phantoms}")
    for seed in TEST_SEEDS[:phantoms]:
        patches = case_patches(seed)
        inputs: dict[str, NDArray[np.generic]] = {"HU": patches.hu, "DISTANCE": patches.distance}
        yield inputs, [CLASSES[label] for label in patches.label], [str(seed)] * len(patches)
