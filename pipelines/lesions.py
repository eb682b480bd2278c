"""Lesions: a volume and its lungs in, ground glass and consolidation out.

The ``lesions`` model is COVSeg-NET (Zhang et al. 2021). Only slices that hold lung are sent, and nothing
outside of the lungs, with their notches closed, counts. The model's probabilities aren't asked for: what a
region is, ``infection_type`` says.
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
