"""Measures detectors by FROC: on phantoms, a DICOM series with a mask, or (slices only) labelled pictures.

A case is a scan for ``candidates``, a slice for ``lesion_boxes``. What is a true box, a hit and a false
positive stands in ``data.boxes`` and ``evaluation.froc``; boxes are thinned as ``pipelines.boxes`` has it,
and the curve goes on below its threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipelines.boxes import OPERATIONS, chosen
from triton_models.data.boxes import Components, components
from triton_models.data.labelled_2d import is_labelled_2d
from triton_models.data.phantom import chest_phantom
from triton_models.data.slices import SLICES_PER_PHANTOM, TEST_SEEDS
from triton_models.data.volumes import volume_phantom
from triton_models.evaluation.froc import Found, froc
from triton_models.evaluation.labelled import chosen_pictures, masked_series
from triton_models.evaluation.predictor import Predictor
from triton_models.evaluation.result import Metrics
from triton_models.evaluation.segmentation import MASK_LABELS
from triton_models.evaluation.source import Source
from triton_models.registry import ModelEntry

#: width in mm that a picture without pixel spacing is taken to show
PICTURE_MM = 350.0
#: boxes below this score are left out of the curve
LOWEST_SCORE = 0.005

#: HU (slices, rows, columns), labels as those of a phantom, mm per (slice, row, column)
Scan = tuple[NDArray[np.int16], NDArray[np.uint8] | NDArray[np.int16], tuple[float, float, float]]


@dataclass(frozen=True)
class DetectionCases:
    """Of each class, what was found in each case.  unit: scan or slice.  threshold: the score in use."""

    found: Mapping[str, tuple[Found, ...]]
    unit: str
    threshold: float

    def __len__(self) -> int:
        return min(len(one) for one in self.found.values())

    def joined(self, others: Sequence[DetectionCases]) -> DetectionCases:
        everything = (self, *others)
        together = {
            name: tuple(one for cases in everything for one in cases.found[name]) for name in self.found
        }
        return replace(self, found=together)

    def metrics(self) -> Metrics:
        return {name: froc(images, self.threshold, self.unit) for name, images in self.found.items()}


def collect(entry: ModelEntry, predictor: Predictor, source: Source) -> DetectionCases:
    """Raises FileNotFoundError for a missing file, ValueError for a folder with several series, a series
    without a mask, or a mask that doesn't fit."""
    volumes = len(entry.inputs[0].dims) == 3
    found: dict[str, list[Found]] = {}
    for hu, lesions, spacing in _scans(source, volumes=volumes):
        if volumes:
            cases = [(hu, components(lesions, spacing))]
        else:
            cases = [(plane, components(mask, spacing[1:])) for plane, mask in zip(hu, lesions, strict=True)]
        for image, truth in cases:
            for name, one in found_in(entry, predictor, image, truth).items():
                found.setdefault(name, []).append(one)
    everything = {name: tuple(images) for name, images in found.items()}
    return DetectionCases(everything, "scan" if volumes else "slice", OPERATIONS[entry.name].score)


def found_in(
    entry: ModelEntry, predictor: Predictor, image: NDArray[np.int16], truth: Components
) -> dict[str, Found]:
    """One case: ``lesion`` of any type, and where the model tells types each of them by itself.

    image: as the model takes it, without the batch axis.
    """
    answer = {name: array[0] for name, array in predictor({entry.inputs[0].name: image[None]}).items()}
    boxes, scores = answer["BOXES"], answer["SCORES"]
    kept = chosen(boxes, scores, replace(OPERATIONS[entry.name], score=LOWEST_SCORE))
    boxes, scores = boxes[kept], scores[kept]
    out = {"lesion": Found.of(boxes, scores, truth.boxes, truth.counts)}
    if "TYPES" in answer:
        types = answer["TYPES"][kept]
        for index, name in enumerate(entry.classes):
            of_type = (truth.dense_share > 0.5) == (name == "consolidation")
            out[name] = Found.of(boxes, scores * types[:, index], truth.boxes[of_type], truth.counts[of_type])
    return out


def _scans(source: Source, *, volumes: bool) -> Iterator[Scan]:
    if source.data is None:
        for seed in range(TEST_SEEDS.start, TEST_SEEDS.start + source.phantoms):
            phantom = volume_phantom(seed) if volumes else chest_phantom(seed, slices=SLICES_PER_PHANTOM)
            yield phantom.hu, phantom.lesions, phantom.spacing_mm
    elif is_labelled_2d(source.data):
        if volumes:
            raise ValueError(f"{source.data}: has slices; a detector in volumes needs a series with a mask")
        yield from _pictures(source)
    else:
        yield _series(source)


def _pictures(source: Source) -> Iterator[Scan]:
    for image in chosen_pictures(source):
        pixel = PICTURE_MM / image.hu.shape[1]
        yield image.hu[None], image.labels[None], (1.0, pixel, pixel)


def _series(source: Source) -> Scan:
    series, mask = masked_series(source)
    labels = np.where(np.isin(mask, MASK_LABELS["lesions"]["infection"]), mask, 0)
    return series.hu, labels, series.spacing_mm
