"""Lesions: a volume and its lungs in, ground glass and consolidation out.

The ``lesions`` model is COVSeg-NET (Zhang et al. 2021). Only slices that hold lung are sent, and nothing
outside of the lungs, with their notches closed, counts. The model's probabilities are asked for only where a
destination wants them in its segmentation: what a region is, ``infection_type`` says.
"""

from __future__ import annotations

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
    outputs=(TensorSpec("LABELS", "UINT8", (-1, -1)),),
)


PROBABILITY_SPEC = ModelSpec(
    name=SPEC.name,
    version=SPEC.version,
    inputs=SPEC.inputs,
    outputs=(TensorSpec("PROBABILITIES", "UINT8", (2, -1, -1)),),
)


def lesion_probabilities(
    volume: Volume, lungs: NDArray[np.uint8], inference: Inference, *, progress: Progress | None = None
) -> NDArray[np.uint8]:
    """The model's probability of each ``Lesion``, 255 for 1; zero where ``lungs`` (the volume's grid) is 0.

    Returns uint8 (2, slices, rows, columns). Raises ModelMismatch where the served model has none.
    """
    model = inference.check(PROBABILITY_SPEC)
    view = AxialView.of(volume.affine)
    probabilities = np.zeros((2, *lungs.shape), np.uint8)
    slices = bounding_box(view.view(lungs))[0]
    if slices.stop:
        answer = inference.run(model, {"HU": view.view(volume.hu)[slices]}, progress=progress)
        for channel in range(2):
            one = answer["PROBABILITIES"][:, channel] * (view.view(lungs)[slices] > 0)
            view.view(probabilities[channel])[slices] = one
    return np.stack([volume.as_acquired(one) for one in probabilities])


def segment_lesions(
    volume: Volume,
    within: NDArray[np.uint8],
    inference: Inference,
    model: ServedModel,
    *,
    progress: Progress | None = None,
) -> NDArray[np.uint8]:
    """Segment ground glass and consolidation where ``within`` (uint8, the volume's grid) isn't 0.

    Returns uint8 (slices, rows, columns), 0 or ``Lesion``; zero outside of ``within``.
    """
    view = AxialView.of(volume.affine)
    labels = np.zeros(within.shape, np.uint8)
    slices = bounding_box(view.view(within))[0]
    if slices.stop:
        answer = inference.run(model, {"HU": view.view(volume.hu)[slices]}, progress=progress)
        np.multiply(answer["LABELS"], view.view(within)[slices] > 0, out=view.view(labels)[slices])
    return volume.as_acquired(labels)
