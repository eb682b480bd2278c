"""Measures segmentation against masks: of a DICOM series, of labelled 2D images, or of phantoms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triton_models.data.labelled_2d import UNTYPED, is_labelled_2d
from triton_models.data.phantom import chest_phantom
from triton_models.data.slices import SLICES_PER_PHANTOM, TEST_SEEDS
from triton_models.evaluation.labelled import chosen_pictures, masked_series
from triton_models.evaluation.level_metrics import LEVELS, LevelCounts, level_estimates
from triton_models.evaluation.pixel_metrics import Counts, estimates
from triton_models.evaluation.predictor import Predictor
from triton_models.evaluation.result import Metrics
from triton_models.evaluation.source import Source
from triton_models.registry import ModelEntry

#: class -> values of a NIfTI mask; for lungs those of TotalSegmentator's five lobes
MASK_LABELS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "lungs": {"lungs": (10, 11, 12, 13, 14)},
    "lesions": {"ground_glass": (1,), "consolidation": (2,), "infection": (1, 2)},
}
#: class -> values in the model's label output, which are also those of phantoms
OUTPUT_LABELS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "lungs": {"lungs": (1,)},
    "lesions": MASK_LABELS["lesions"],
}
#: class -> values of labelled pictures
PICTURE_LABELS = {**OUTPUT_LABELS["lesions"], "infection": (1, 2, UNTYPED)}
BATCH = 8


@dataclass(frozen=True)
class Answer:
    """Of one image. labels: (rows, columns).  probabilities: x 255, (types, rows, columns) of types that
    exclude each other, in the order of their labels (1, 2, …), where the model tells them."""

    labels: NDArray[np.uint8]
    probabilities: NDArray[np.uint8] | None


def level_of(probabilities: NDArray[np.uint8], labels: tuple[int, ...]) -> NDArray[np.uint8]:
    """Probability x 255 of any of the labels, (rows, columns)."""
    total: NDArray[np.int64] = probabilities[[label - 1 for label in labels]].sum(axis=0, dtype=np.int64)
    return np.minimum(total, LEVELS - 1).astype(np.uint8)


#: what was answered of one image, and its true label values
Labelled = tuple[Answer, NDArray[np.uint8] | NDArray[np.int16]]


def served_answers(entry: ModelEntry, predictor: Predictor, hu: NDArray[np.int16]) -> Iterator[Answer]:
    """The model's answer for each slice of hu (slices, rows, columns)."""
    for start in range(0, len(hu), BATCH):
        outputs = predictor({entry.inputs[0].name: hu[start : start + BATCH]})
        labels = outputs[entry.outputs[0].name]
        probabilities = outputs.get("PROBABILITIES", [None] * len(labels))
        yield from (Answer(*one) for one in zip(labels, probabilities, strict=True))


def served_labels(
    entry: ModelEntry, predictor: Predictor, hu: NDArray[np.int16]
) -> Iterator[NDArray[np.uint8]]:
    """The model's label output for each slice of hu (slices, rows, columns)."""
    return (answer.labels for answer in served_answers(entry, predictor, hu))


@dataclass(frozen=True)
class SegmentationCases:
    """Pixel counts of each class, and by level of its probability where the model tells that."""

    counts: Mapping[str, Counts]
    levels: Mapping[str, LevelCounts]

    def __len__(self) -> int:
        return min(len(one) for one in self.counts.values())

    def joined(self, others: Sequence[SegmentationCases]) -> SegmentationCases:
        return SegmentationCases(
            {name: Counts.concatenate([one.counts[name] for one in (self, *others)]) for name in self.counts},
            {
                name: LevelCounts.concatenate([one.levels[name] for one in (self, *others)])
                for name in self.levels
            },
        )

    def metrics(self) -> Metrics:
        return {
            name: estimates(counts) | (level_estimates(self.levels[name]) if name in self.levels else {})
            for name, counts in self.counts.items()
        }


def collect(entry: ModelEntry, predictor: Predictor, source: Source) -> SegmentationCases:
    """Raises FileNotFoundError for a missing file, ValueError for a folder with several series, a series
    without a mask, or a mask that doesn't fit."""
    outputs = OUTPUT_LABELS[entry.name]
    truths: Mapping[str, tuple[int, ...]] = outputs
    pictures = source.data is not None and is_labelled_2d(source.data)
    if source.data is None:
        pairs = _phantoms(entry, predictor, source.phantoms)
    elif pictures:
        pairs, truths = _labelled_2d(entry, predictor, source), PICTURE_LABELS
    else:
        pairs, truths = _series(entry, predictor, source), MASK_LABELS[entry.name]
    rows: dict[str, list[Counts]] = {name: [] for name in outputs}
    levels: dict[str, list[LevelCounts]] = {name: [] for name in outputs}
    for answer, truth in pairs:
        if pictures and UNTYPED in truth:
            outputs = {"infection": outputs["infection"]}  # what the truth can't tell isn't measured
        for name, values in outputs.items():
            true = np.isin(truth, truths[name])
            rows[name].append(Counts.of([(np.isin(answer.labels, values), true)]))
            if answer.probabilities is not None:
                levels[name].append(LevelCounts.of([(level_of(answer.probabilities, values), true)]))
    return SegmentationCases(
        {name: Counts.concatenate(rows[name]) for name in outputs},
        {name: LevelCounts.concatenate(levels[name]) for name in outputs if levels[name]},
    )


def _phantoms(entry: ModelEntry, predictor: Predictor, count: int) -> Iterator[Labelled]:
    """Exact labels of phantoms at full resolution (512 x 512)."""
    for seed in range(TEST_SEEDS.start, TEST_SEEDS.start + count):
        phantom = chest_phantom(seed, slices=SLICES_PER_PHANTOM)
        truth = (phantom.lungs > 0).astype(np.uint8) if entry.name == "lungs" else phantom.lesions
        yield from zip(served_answers(entry, predictor, phantom.hu), truth, strict=True)


def _labelled_2d(entry: ModelEntry, predictor: Predictor, source: Source) -> Iterator[Labelled]:
    if entry.name != "lesions":
        raise ValueError(f"{source.data}: its images have labels of lesions, none for {entry.name}")
    for image in chosen_pictures(source):
        (answer,) = served_answers(entry, predictor, image.hu[None])
        yield answer, image.labels


def _series(entry: ModelEntry, predictor: Predictor, source: Source) -> Iterator[Labelled]:
    series, labels = masked_series(source)
    yield from zip(served_answers(entry, predictor, series.hu), labels, strict=True)
