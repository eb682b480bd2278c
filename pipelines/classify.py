"""Slice classifiers: a volume and its lungs in, each key slice's class probabilities out.

``pneumonia_class`` (ctcloud: ResNet-34; normal, bacterial, viral) and ``fusion`` (Ji et al. 2021: several
backbones' features; negative or positive for COVID-19 pneumonia) see axial slices by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.estimates import Estimate, KeySlice
from pipelines.geometry import AxialView
from pipelines.pipeline import Stages
from pipelines.triton import Inference, ModelSpec, Progress, ServedModel, TensorSpec
from pipelines.volume import Volume

SPEC = ModelSpec(
    name="pneumonia_class",
    version="1",
    inputs=(TensorSpec("HU", "INT16", (-1, -1)),),
    outputs=(TensorSpec("PROBABILITIES", "FP32", (3,)),),
    classes=("normal", "bacterial", "viral"),
)
FUSION_SPEC = ModelSpec(
    name="fusion",
    version="1",
    inputs=(TensorSpec("HU", "INT16", (-1, -1)),),
    outputs=(TensorSpec("PROBABILITIES", "FP32", (2,)),),
    classes=("negative", "positive"),
)

MOST_SLICES = 16
#: a slice with less lung than this share of the fullest one's shows mostly neck, liver or chest wall
SMALLEST_SHARE = 1 / 3


def choose_key_slices(volume: Volume, lungs: NDArray[np.uint8]) -> tuple[KeySlice, ...]:
    """Axial slices that show much lung, evenly spread over those that do; none that was interpolated.

    lungs: uint8 (slices, rows, columns), 0 or ``Lung``; not empty.
    Returns up to MOST_SLICES, from foot to head, out of the slices with at least SMALLEST_SHARE of the lung
    area of the slice that has most.
    """
    view = AxialView.of(volume.affine)
    areas = np.count_nonzero(view.view(lungs), axis=(1, 2))
    if view.permutation[0] == 0 and volume.source_slices:
        acquired = np.zeros(len(areas), np.bool_)
        acquired[list(volume.source_slices)] = True
        areas = np.where(acquired[::-1] if 0 in view.reversed_axes else acquired, areas, 0)
    full = np.flatnonzero(areas >= SMALLEST_SHARE * areas.max())
    steps = np.linspace(0, len(full) - 1, min(MOST_SLICES, len(full)))
    spacing = view.spacing_mm(volume.spacing_mm)
    slices = []
    for index in (int(full[round(float(step))]) for step in steps):
        at = _source_index(view, lungs.shape, index)
        slices.append(
            KeySlice(
                index=index,
                source_slice=int(at[0]) if view.permutation[0] == 0 else None,
                z_mm=float(volume.to_patient(at[None])[0, 2]),
                lung_cm2=float(areas[index]) * spacing[1] * spacing[2] / 100.0,
            )
        )
    return tuple(slices)


def _source_index(view: AxialView, shape: tuple[int, ...], index: int) -> NDArray[np.float64]:
    """(slice, row, column) in the volume of the centre of an axial view's slice."""
    centre = (np.array(shape, np.float64) - 1) / 2
    axis = view.permutation[0]
    centre[axis] = shape[axis] - 1 - index if 0 in view.reversed_axes else index
    return centre


def classify(
    volume: Volume,
    key_slices: tuple[KeySlice, ...],
    inference: Inference,
    model: ServedModel,
    *,
    progress: Progress | None = None,
) -> Estimate:
    """Ask a classifier about the key slices: int16 HU in the axial view, probabilities out."""
    slices = AxialView.of(volume.affine).view(volume.hu)[[key.index for key in key_slices]]
    return ask(slices, inference, model, progress=progress)


def ask(
    slices: NDArray[np.int16], inference: Inference, model: ServedModel, *, progress: Progress | None = None
) -> Estimate:
    """The same of int16 HU (n, rows, columns)."""
    answer = inference.run(model, {"HU": slices}, progress=progress)["PROBABILITIES"]
    return Estimate(model.identity, model.spec.classes, answer.astype(np.float64))


def ask_served(
    models: Mapping[str, ServedModel], stages: Stages, ask_one: Callable[..., Estimate]
) -> tuple[Estimate, ...]:
    """Each classifier that is served, in a stage of its name.

    ask_one: called with the model, and ``progress``.
    """
    answers = []
    for model in (models[spec.name] for spec in (SPEC, FUSION_SPEC) if spec.name in models):
        with stages(model.spec.name) as progress:
            answers.append(ask_one(model, progress=progress))
    return tuple(answers)


def random_notes(answers: Sequence[Estimate]) -> tuple[str, ...]:
    """A note on each model that was never trained."""
    return tuple(
        f"The weights of model {answer.model.name} are random ({answer.model.weights}): "
        "its estimates mean nothing."
        for answer in answers
        if answer.model.is_random
    )
