"""``Estimates``: what slice classifiers make of a case, slice by slice and as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.volume import Lung, ModelIdentity

#: how a case's estimate is made of its key slices'
AGGREGATION = "mean of the key slices' probabilities"


@dataclass(frozen=True)
class KeySlice:
    """A slice that the classifiers saw: one of the axial view's (``pipelines.geometry.AxialView``).

    index: in the axial view, from foot to head.
    source_slice: the same in the volume, or None where the series isn't axial and the slice crosses all of
        its images.
    z_mm: LPS z of the slice's centre, mm.  lung_cm2: area of lung on it.
    """

    index: int
    source_slice: int | None
    z_mm: float
    lung_cm2: float


@dataclass(frozen=True)
class Estimate:
    """One classifier's answers.

    classes: in the order of its channels.  by_slice: float64 (key slices, classes), each row sums to 1.
    """

    model: ModelIdentity
    classes: tuple[str, ...]
    by_slice: NDArray[np.float64]

    @property
    def case(self) -> Mapping[str, float]:
        """Class -> mean of its probabilities over the key slices."""
        means = self.by_slice.mean(axis=0)
        return {name: float(p) for name, p in zip(self.classes, means, strict=True)}

    @property
    def votes(self) -> Mapping[str, int]:
        """Class -> number of key slices on which it has the largest probability."""
        best = self.by_slice.argmax(axis=1)
        return {name: int(np.count_nonzero(best == n)) for n, name in enumerate(self.classes)}

    @property
    def predicted(self) -> str:
        """The class with the largest mean, of equal ones the first."""
        case = self.case
        return max(self.classes, key=lambda name: case[name])


@dataclass(frozen=True)
class Estimates:
    """A case's estimates.

    lungs: uint8 (slices, rows, columns) on the volume's grid, 0 or ``Lung``.
    key_slices: from foot to head.  by_model: the first is the one that says the case's type.
    """

    lungs: NDArray[np.uint8]
    key_slices: tuple[KeySlice, ...]
    by_model: tuple[Estimate, ...]
    lung_volume_ml: Mapping[Lung, float]
    notes: tuple[str, ...] = ()

    @property
    def case_type(self) -> str:
        return self.by_model[0].predicted


def sentence(one: Estimate, listed: str) -> str:
    """What a model says. listed: its classes with their probabilities."""
    if one.model.is_random:
        return f"{one.model.name} has random weights, its estimates mean nothing: {listed}."
    return f"{one.model.name}: {one.predicted}; {listed}."


def conclusion(estimates: Estimates) -> str:
    """The case in a sentence or two of plain ASCII, which any character set of the input can hold."""
    count = len(estimates.key_slices)
    parts = []
    for one in estimates.by_model:
        listed = ", ".join(f"{name} {p:.3f} ({one.votes[name]})" for name, p in one.case.items())
        parts.append(sentence(one, listed))
    slices = "1 key slice" if count == 1 else f"{count} key slices"
    return f"{' '.join(parts)} Means over {slices}; in brackets, how many of them have most of the class."


def summarise(estimates: Estimates) -> dict[str, Any]:
    """The part of summary.json (DESIGN section 5) that depends on the estimates."""
    return {
        "findings": [],
        "noisy_or": {},
        "case_type": estimates.case_type,
        "conclusion": conclusion(estimates),
        "estimates": {one.model.name: dict(one.case) for one in estimates.by_model},
        "aggregation": AGGREGATION,
        "key_slices": [
            {
                "index": key.index,
                "source_slice": key.source_slice,
                "z_mm": key.z_mm,
                "lung_cm2": key.lung_cm2,
                "estimates": {
                    one.model.name: dict(zip(one.classes, map(float, one.by_slice[row]), strict=True))
                    for one in estimates.by_model
                },
            }
            for row, key in enumerate(estimates.key_slices)
        ],
        "lung_volume_ml": {lung.name.lower(): ml for lung, ml in estimates.lung_volume_ml.items()},
    }
