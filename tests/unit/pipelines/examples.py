"""Small volumes, regions and an inference that knows the answer, for the stages' tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from pipelines.lungs import ClosedLungs
from pipelines.triton import Arrays, ModelSpec, Progress, ServedModel, put_into
from pipelines.volume import (
    INFECTION_TYPES,
    IRRELEVANT,
    Lung,
    ModelIdentity,
    PatchVote,
    Region,
    Volume,
)


def votes(infection_type: str, probability: float) -> tuple[PatchVote, ...]:
    """Three patches that agree, the second with ``probability``, the others with less."""
    return tuple(
        PatchVote((n, 10.0, 20.0), 0.05 + n / 100, _probabilities(infection_type, share * probability))
        for n, share in enumerate((0.95, 1.0, 0.9))
    )


def _probabilities(infection_type: str, p: float) -> dict[str, float]:
    return {name: p if name == infection_type else (1 - p) / 2 for name in (*INFECTION_TYPES, IRRELEVANT)}


def region(number: int, infection_type: str, probability: float) -> Region:
    return Region(
        number=number,
        infection_type=infection_type,
        probability=probability,
        votes=votes(infection_type, probability),
        candidate_score=0.5,
        lesion_type="ground_glass",
        lesion_volume_ml={"ground_glass": 1.0, "consolidation": 0.0},
        volume_ml=1.0,
        mean_hu=-600.0,
        hu_percentiles={5: -700.0, 50: -600.0, 95: -500.0},
        laterality=Lung.RIGHT,
        relative_distance_from_edge=0.1,
        bounding_box=((0, 1), (0, 1), (0, 1)),
        centroid_lps_mm=(0.0, 0.0, 0.0),
        key_slice=0,
    )


def volume(hu: NDArray[np.int16], affine: NDArray[np.float64]) -> Volume:
    header = Dataset()
    header.SeriesInstanceUID = "1.2.3"
    return Volume(
        hu=hu,
        affine=affine,
        sources=tuple(header for _ in range(len(hu))),
        source_frames=tuple((k, 1) for k in range(len(hu))),
    )


def axial_affine(spacing_mm: tuple[float, float, float] = (2.0, 1.0, 1.0)) -> NDArray[np.float64]:
    """(slice, row, column) -> LPS for a plain axial series: slices up, rows back, columns left."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = (*spacing_mm, 1.0)
    return affine


def within(lungs: NDArray[np.uint8]) -> ClosedLungs:
    """Lungs, (slices, rows, columns) in the axial view, that have nothing to close."""
    return ClosedLungs(lungs, np.zeros_like(lungs), (1, 1))


class ByRule:
    """An ``Inference`` that computes outputs by a rule on HU: the stages' own work is what is tested.

    others: rules on all inputs of models by name; ``rule`` answers for all else. The models' behaviour behind
    a real Triton is tested in tests/integration.
    """

    def __init__(
        self,
        rule: Callable[[NDArray[Any]], dict[str, NDArray[Any]]],
        **others: Callable[[Arrays], dict[str, NDArray[Any]]],
    ) -> None:
        self._rule = rule
        self._others = others
        self.slices_sent = 0

    def check(self, spec: ModelSpec) -> ServedModel:
        return ServedModel(spec, ModelIdentity(spec.name, spec.version, "00"), 16)

    def run(
        self,
        model: ServedModel,
        inputs: Arrays,
        *,
        progress: Progress | None = None,
        out: Arrays | None = None,
    ) -> dict[str, NDArray[Any]]:
        if model.spec.name in self._others:
            return put_into(out, self._others[model.spec.name](inputs))
        self.slices_sent += len(inputs["HU"])
        return put_into(out, self._rule(inputs["HU"]))
