"""Lesions: a volume and its lungs in, ground glass and consolidation with probabilities out.

The ``lesions`` model is COVSeg-NET (Zhang et al. 2021). Only slices that hold lung are sent, and nothing
outside of the lungs, with their notches closed, counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.geometry import AxialView
from pipelines.triton import Inference, ModelSpec, Progress, ServedModel, TensorSpec
from pipelines.volume import Volume

SPEC = ModelSpec(
    name="lesions",
    version="1",
    inputs=(TensorSpec("HU", "INT16", (-1, -1)),),
    outputs=(
        TensorSpec("LABELS", "UINT8", (-1, -1)),
        TensorSpec("PROBABILITIES", "UINT8", (2, -1, -1)),
    ),
)


@dataclass(frozen=True)
class LesionMaps:
    """labels: uint8 (slices, rows, columns), 0 or ``Lesion``. probabilities: uint8 (2, slices, rows,
    columns), probability * 255 of ground glass and of consolidation, which exclude each other. Both zero
    outside ``within``."""

    labels: NDArray[np.uint8]
    probabilities: NDArray[np.uint8]


def segment_lesions(
    volume: Volume,
    within: NDArray[np.uint8],
    inference: Inference,
    model: ServedModel,
    *,
    progress: Progress | None = None,
) -> LesionMaps:
    """Segment ground glass and consolidation where ``within`` (uint8, the volume's grid) isn't 0."""
    view = AxialView.of(volume.affine)
    axial_within = view.apply(within)
    slices = np.flatnonzero(axial_within.any(axis=(1, 2)))
    labels = np.zeros(axial_within.shape, np.uint8)
    probabilities = np.zeros((2, *axial_within.shape), np.uint8)
    if slices.size:
        answer = inference.run(model, {"HU": view.apply(volume.hu)[slices]}, progress=progress)
        inside = axial_within[slices] > 0
        labels[slices] = answer["LABELS"] * inside
        for channel in range(2):
            probabilities[channel, slices] = answer["PROBABILITIES"][:, channel] * inside
    return LesionMaps(
        volume.as_acquired(view.restore(labels)),
        np.stack([volume.as_acquired(view.restore(channel)) for channel in probabilities]),
    )
