"""Slices of generated pneumonias, for a classifier whose weights may be given away.

In: seeds.  Out: ``PneumoniaSlice``s of the classes normal, bacterial and viral.

Bacterial: consolidation of a lobe or of dense foci. Viral: ground glass, peripheral or diffuse. That is the
schoolbook's difference, drawn: who learns it has learned these phantoms, not pneumonia.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triton_models.data.phantom import chest_phantom
from triton_models.data.phantom_cache import Arrays, cached_arrays, each_phantom

#: class -> lesion patterns of its phantoms; none for normal ones
PATTERNS: Mapping[str, tuple[str, ...]] = {
    "normal": (),
    "bacterial": ("lobar", "dense"),
    "viral": ("peripheral", "diffuse"),
}
#: seeds; the three sets never meet, nor any of other models
TRAIN_SEEDS, VALIDATION_SEEDS, TEST_SEEDS = range(60000, 60120), range(68000, 68018), range(69000, 69100)
SLICES, SIDE = 12, 256
SEEN_SHARE = 0.02  # of the lungs' pixels; a slice with less disease shows none
SMALLEST_LUNG = 0.04  # share of the slice


@dataclass(frozen=True)
class PneumoniaSlice:
    """One slice of a phantom. pixels: int16 (rows, columns), HU.  group: the phantom."""

    pixels: NDArray[np.int16]
    label: str
    group: str

    def hu(self) -> NDArray[np.int16]:
        return self.pixels


#: what a model that asks for COVID-19 calls them: generated viral pneumonia has its look
COVID_CLASSES = {"normal": "negative", "bacterial": "negative", "viral": "positive"}


def class_of(seed: int) -> str:
    """Seeds take turns."""
    return list(PATTERNS)[seed % len(PATTERNS)]


def slices_of(seed: int) -> list[PneumoniaSlice]:
    """The slices of one phantom that show its class."""
    label = class_of(seed)
    patterns = PATTERNS[label]
    pattern: str | bool = patterns[seed // len(PATTERNS) % len(patterns)] if patterns else False
    phantom = chest_phantom(seed, slices=SLICES, rows=SIDE, columns=SIDE, lesions=pattern)
    lungs = (phantom.lungs > 0).sum(axis=(1, 2))
    diseased = (phantom.lesions > 0).sum(axis=(1, 2))
    shown = (diseased >= SEEN_SHARE * lungs) | (label == "normal")
    kept = np.flatnonzero((lungs > SMALLEST_LUNG * SIDE**2) & shown)
    return [PneumoniaSlice(phantom.hu[index], label, f"phantom {seed}") for index in kept]


def pneumonia_slices(
    seeds: Sequence[int], cache: Path | None = None, *, processes: int = 2
) -> list[PneumoniaSlice]:
    """Of several phantoms, made by ``processes`` processes or read from ``cache``."""
    found = each_phantom(_cached, seeds, cache, processes=processes)
    return [one for phantom in found for one in phantom]


def _cached(seed: int, cache: Path | None) -> list[PneumoniaSlice]:
    def make() -> Arrays:
        return {"hu": np.array([one.pixels for one in slices_of(seed)], dtype=np.int16)}

    arrays = cached_arrays(cache, f"pneumonia_{seed}", make)
    return [PneumoniaSlice(hu, class_of(seed), f"phantom {seed}") for hu in arrays["hu"]]


def held_out_cases(count: int) -> Iterator[tuple[dict[str, NDArray[Any]], list[str], list[str]]]:
    """Inputs, labels and groups of ``count`` test phantoms, a phantom at a time, in turn of each class."""
    for seed in range(TEST_SEEDS.start, TEST_SEEDS.start + count):
        slices = slices_of(seed)
        if slices:
            hu = np.stack([one.pixels for one in slices])
            yield {"HU": hu}, [one.label for one in slices], [one.group for one in slices]


def held_out_covid_cases(count: int) -> Iterator[tuple[dict[str, NDArray[Any]], list[str], list[str]]]:
    """The same, labelled by COVID_CLASSES."""
    for inputs, labels, groups in held_out_cases(count):
        yield inputs, [COVID_CLASSES[label] for label in labels], groups
