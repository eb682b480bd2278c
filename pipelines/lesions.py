"""Lesions: a volume and its lungs in, ground glass and consolidation with probabilities out.

The ``lesions`` model is COVSeg-NET (Zhang et al. 2021). Only slices that hold lung are sent, and nothing
outside of the lungs, with their notches closed, counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.geometry import AxialView
from pipelines.masks import bounding_box
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
    maps = LesionMaps(np.zeros(within.shape, np.uint8), np.zeros((2, *within.shape), np.uint8))
    slices = bounding_box(view.view(within))[0]
    if slices.stop:
        answer = inference.run(model, {"HU": view.view(volume.hu)[slices]}, progress=progress)
        inside = view.view(within)[slices] > 0
        np.multiply(answer.pop("LABELS"), inside, out=view.view(maps.labels)[slices])
        for channel, probabilities in enumerate(maps.probabilities):
            axial = view.view(probabilities)
            np.multiply(answer["PROBABILITIES"][:, channel], inside, out=axial[slices])
    return maps
