"""Lesions: a volume and its lungs in, ground glass and consolidation out.

The ``lesions`` model is COVSeg-NET (Zhang et al. 2021). Only slices that hold lung are sent, and nothing
outside of the lungs, with their notches closed, counts. The model's probabilities are asked for only where a
destination wants them in its segmentation: what a region is, ``infection_type`` says.

Which slices these will be, the ``lungs`` model's answer mostly tells before it is cleaned: they can be asked
for meanwhile (``likely_slices``, ``ask_lesions``). What was asked for in vain costs time only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.geometry import AxialView
from pipelines.lungs import ClosedLungs
from pipelines.masks import bounding_box
from pipelines.triton import Inference, ModelSpec, Progress, ServedModel, TensorSpec
from pipelines.volume import Volume

SPEC = ModelSpec(
    name="lesions",
    version="1",
    inputs=(TensorSpec("HU", "INT16", (-1, -1)),),
    outputs=(TensorSpec("LABELS", "UINT8", (-1, -1)),),
)


#: a slice on which the ``lungs`` model marks less than this may be stray marks alone
LIKELY_MM2 = 100.0

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Answer:
    """What the model says of some axial slices.

    labels: uint8 (slices, rows, columns) on the volume's grid, 0 or ``Lesion``; 0 on the other slices.
    """

    slices: slice
    labels: Labels


def likely_slices(volume: Volume, mask: NDArray[np.bool_]) -> slice:
    """The longest run of axial slices that show lung.

    mask: bool (slices, rows, columns) in the axial view, the ``lungs`` model's answer.
    """
    _, row_mm, column_mm = AxialView.of(volume.affine).spacing_mm(volume.spacing_mm)
    fewest = LIKELY_MM2 / (row_mm * column_mm)
    shown = np.array([np.count_nonzero(plane) >= fewest for plane in mask])
    edges = np.flatnonzero(np.diff(shown, prepend=False, append=False)).reshape(-1, 2)  # start, stop of runs
    if not edges.size:
        return slice(0, 0)
    start, stop = edges[np.argmax(edges[:, 1] - edges[:, 0])].tolist()
    return slice(start, stop)


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


def ask_lesions(
    volume: Volume,
    slices: slice,
    inference: Inference,
    model: ServedModel,
    *,
    labels: Labels | None = None,
    progress: Progress | None = None,
) -> Answer:
    """Ask the model about a run of axial slices, none or more. labels: written into, instead of new ones."""
    if labels is None:
        labels = np.zeros(volume.hu.shape, np.uint8)
    if slices.start < slices.stop:
        view = AxialView.of(volume.affine)
        out = {"LABELS": view.view(labels)[slices]}
        inference.run(model, {"HU": view.view(volume.hu)[slices]}, progress=progress, out=out)
    return Answer(slices, labels)


def segment_lesions(
    volume: Volume,
    within: ClosedLungs,
    inference: Inference,
    model: ServedModel,
    *,
    known: Answer | None = None,
    progress: Progress | None = None,
) -> Labels:
    """Segment ground glass and consolidation within the closed lungs.

    known: what the model said already; its labels' memory becomes the result's.
    Returns uint8 (slices, rows, columns), 0 or ``Lesion``; zero outside of ``within``.
    """
    if known is None:
        known = ask_lesions(volume, slice(0, 0), inference, model)
    for part in _without(within.slices, known.slices):
        ask_lesions(volume, part, inference, model, labels=known.labels, progress=progress)
    for number, plane in enumerate(AxialView.of(volume.affine).view(known.labels)):
        if plane.any():  # the memory of planes that are never written isn't taken
            np.multiply(plane, within.plane(number) > 0, out=plane)
    return volume.as_acquired(known.labels)


def _without(wanted: slice, known: slice) -> list[slice]:
    """What of ``wanted`` isn't in ``known``."""
    if known.stop <= wanted.start or wanted.stop <= known.start:
        parts = [wanted]
    else:
        parts = [slice(wanted.start, known.start), slice(known.stop, wanted.stop)]
    return [part for part in parts if part.start < part.stop]
