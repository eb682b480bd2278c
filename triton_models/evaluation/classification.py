"""Measures classifiers: on listed pictures, or on what the model's own test phantoms give.

A predictor takes the model's inputs and answers PROBABILITIES (n, classes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from triton_models.data.image_list import ImageList, is_image_list, read_image_list
from triton_models.evaluation.class_metrics import class_estimates, paired_difference
from triton_models.evaluation.predictor import Arrays, Predictor
from triton_models.evaluation.result import Evaluation, Metrics
from triton_models.evaluation.source import Source
from triton_models.registry import ModelEntry, named

#: model -> what makes its test cases out of this many phantoms, under ``triton_models.data``
PHANTOM_CASES: Mapping[str, str] = {
    "infection_type": "infection_patches.held_out_cases",
    "pneumonia_class": "pneumonia_slices.held_out_cases",
    "fusion": "pneumonia_slices.held_out_covid_cases",
}
OUTPUT = "PROBABILITIES"


@dataclass(frozen=True)
class LabelledBatch:
    """inputs: by tensor name, batch axis first.  labels: names of the true classes.  groups: shared by cases
    that aren't independent (of one phantom, one paper)."""

    inputs: Arrays
    labels: Sequence[str]
    groups: Sequence[str]


PhantomCases = Callable[[int], Iterable[LabelledBatch]]


@dataclass(frozen=True)
class ClassifiedCases:
    """probabilities: (n, classes).  truth: (n,), index of the class."""

    classes: tuple[str, ...]
    probabilities: NDArray[np.float32]
    truth: NDArray[np.int64]
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.truth)

    def joined(self, others: Sequence[Self]) -> Self:
        parts = [self, *others]
        if any(part.classes != self.classes for part in parts):
            raise ValueError(f"classes differ: {sorted({part.classes for part in parts})}")
        return type(self)(
            self.classes,
            np.concatenate([part.probabilities for part in parts]),
            np.concatenate([part.truth for part in parts]),
            tuple(group for part in parts for group in part.groups),
        )

    def metrics(self) -> Metrics:
        return class_estimates(self.probabilities, self.truth, self.classes, self.groups)

    def less(self, other: ClassifiedCases) -> Metrics:
        """These metrics less the other's, paired. Raises ValueError unless both answered the same cases."""
        if self.groups != other.groups or not np.array_equal(self.truth, other.truth):
            raise ValueError("both must answer the same cases")
        answers = (self.probabilities, other.probabilities)
        return paired_difference(answers, self.truth, self.classes, self.groups)


def collect(entry: ModelEntry, predictor: Predictor, source: Source) -> ClassifiedCases:
    """Raises FileNotFoundError for a missing folder, ValueError for data that isn't this model's."""
    return _answers(predictor, _batches(entry, source))


def compare(entry: ModelEntry, predictors: tuple[Predictor, Predictor], source: Source) -> Evaluation:
    """The first predictor's metrics less the second's, on the same cases. Raises as ``collect``, and
    ValueError for a model that is no classifier."""
    if entry.kind != "classification":
        raise ValueError(f"{entry.name} is no classifier")
    batches = list(_batches(entry, source))
    first, second = (_answers(predictor, batches) for predictor in predictors)
    against = {"less": predictors[1].weights_sha256}
    return Evaluation(entry.name, predictors[0].weights_sha256, len(first), first.less(second), against)


def _batches(entry: ModelEntry, source: Source) -> Iterable[LabelledBatch]:
    if source.data is None:
        return _phantoms(entry, source.phantoms)
    return _listed(entry, source.data, source)


def _answers(predictor: Predictor, batches: Iterable[LabelledBatch]) -> ClassifiedCases:
    answers: list[NDArray[np.float32]] = []
    labels: list[str] = []
    groups: list[str] = []
    for batch in batches:
        answers.append(predictor(batch.inputs)[OUTPUT])
        labels += batch.labels
        groups += batch.groups
    unknown = sorted(set(labels) - set(predictor.classes))
    if unknown:
        raise ValueError(f"classes {unknown} aren't the model's: {', '.join(predictor.classes)}")
    empty = np.empty((0, len(predictor.classes)), dtype=np.float32)
    truth = np.asarray([predictor.classes.index(label) for label in labels], dtype=np.int64)
    return ClassifiedCases(predictor.classes, np.concatenate([empty, *answers]), truth, tuple(groups))


def _phantoms(entry: ModelEntry, count: int) -> Iterable[LabelledBatch]:
    if entry.name not in PHANTOM_CASES:
        raise ValueError(f"{entry.name} has no test phantoms: give --data")
    cases: Callable[[int], Iterator[tuple[Arrays, list[str], list[str]]]] = named(
        "triton_models.data", PHANTOM_CASES[entry.name]
    )
    return (LabelledBatch(*case) for case in cases(count))


def _listed(entry: ModelEntry, folder: Path, source: Source) -> Iterator[LabelledBatch]:
    """Pictures differ in size, so that each is a batch of its own."""
    if [spec.name for spec in entry.inputs] != ["HU"]:
        raise ValueError(f"{folder}: {entry.name} wants more than pictures; measure it on phantoms")
    if not is_image_list(folder):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
        raise ValueError(f"{folder}: is no list of pictures (labels.csv)")
    for image in chosen_images(read_image_list(folder), source).images:
        yield LabelledBatch({"HU": image.hu()[None]}, [image.label], [image.group])


def chosen_images(listed: ImageList, source: Source) -> ImageList:
    """Those of a fold, of a split, or all that aren't for training. Raises ValueError for an empty choice."""
    if source.fold is not None:
        return listed.within(source.fold)
    chosen = listed.for_testing if source.split is None else listed.of_split(source.split)
    if not chosen.images:
        splits = sorted({image.split for image in listed.images})
        raise ValueError(f"no picture of split {source.split!r}; there are {splits}")
    return chosen
