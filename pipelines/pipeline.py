"""What a pipeline is: a name, the models it needs, and what makes an outcome and results of a volume.

series -> ``load`` -> volume -> ``analyse`` -> outcome -> ``build_results`` -> DICOM objects
                                                       -> ``summarise``     -> its part of summary.json
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from pipelines.errors import ModelNotServed
from pipelines.failpoints import failpoint
from pipelines.triton import Inference, ModelSpec, Progress, ServedModel
from pipelines.volume import ResultContext, SourceImages, Volume

if TYPE_CHECKING:  # results load what they encode and draw with; knowing a pipeline's type needs none of it
    from pipelines.results.result_set import ResultSet

#: called with (stage, done, total); total 0 announces the start of a stage, done == total its end
StageProgress = Callable[[str, int, int], None]


@dataclass
class Stages:
    """Times the stages of one run and reports their progress.

    ``with stages("lungs") as progress: …`` records the wall time in ``seconds`` and hands out a callback
    (done, total) for work that knows how far it is.

    draws: whether results will be drawn of the outcome, so that this may begin before the outcome is known.
    """

    report: StageProgress = lambda _stage, _done, _total: None
    seconds: dict[str, float] = field(default_factory=dict)
    draws: bool = False

    def progress(self, stage: str) -> Progress:
        """The callback of work for a stage that may begin before the stage does."""
        return lambda done, total: self.report(stage, done, total)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[Progress]:
        self.report(stage, 0, 0)
        failpoint(f"stage.{stage}")
        started = time.perf_counter()
        try:
            yield self.progress(stage)
        finally:
            self.seconds[stage] = round(time.perf_counter() - started, 3)


class Outcome(Protocol):
    """What a pipeline concludes of a volume: a frozen dataclass of its own, with notes for the reader."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def notes(self) -> tuple[str, ...]: ...


SomeInput = TypeVar("SomeInput", bound=SourceImages)
SomeOutcome = TypeVar("SomeOutcome", bound=Outcome)


def load_volume(paths: Sequence[Path], progress: Progress) -> Volume:
    """A CT series. Raises SeriesRefused (``pipelines.load``)."""
    from pipelines.load import load_series  # noqa: PLC0415 - knowing a pipeline needs none of it

    return load_series(paths, progress=progress)


@dataclass(frozen=True)
class Pipeline(Generic[SomeInput, SomeOutcome]):
    """One entry of the registry.

    version: changes whenever results may; result UIDs depend on it.
    models: what must be served. optional_models: what is used where it is served, and else noted as missing.
    analyse: HU int16 (slices, rows, columns) in patient space (``Volume``), the inference service, name ->
        model of those that are served, and the stages' clock -> the outcome. Arrays in it are on the
        volume's grid, unless its type says otherwise.
    load: what reads the files of a series, where ``analyse`` is given something else than a ``Volume``.
    build_results: encodes an outcome as DICOM objects, the same bytes for the same arguments.
    add_probabilities: completes an outcome with what FRACTIONAL segmentations need, where a destination wants
        them.
    summarise: the outcome's part of summary.json, in JSON's own types. ``findings``, ``noisy_or``,
        ``case_type`` and ``conclusion`` (a sentence) are always there, others as the pipeline likes.
    """

    name: str
    version: str
    title: str
    models: tuple[ModelSpec, ...]
    analyse: Callable[[SomeInput, Inference, Mapping[str, ServedModel], Stages], SomeOutcome]
    build_results: Callable[[SomeInput, SomeOutcome, ResultContext], ResultSet]
    summarise: Callable[[SomeOutcome], Mapping[str, Any]]
    optional_models: tuple[ModelSpec, ...] = ()
    add_probabilities: Callable[[SomeInput, SomeOutcome, Inference, Stages], SomeOutcome] | None = None
    load: Callable[[Sequence[Path], Progress], Any] = load_volume

    def check(self, inference: Inference) -> tuple[dict[str, ServedModel], tuple[str, ...]]:
        """Compare what is served with what is wanted: name -> model, and a note on each one left out.

        Raises ModelMismatch, for an optional model too where it is served but differs, and
        InferenceUnavailable.
        """
        models = {spec.name: inference.check(spec) for spec in self.models}
        notes = []
        for spec in self.optional_models:
            try:
                models[spec.name] = inference.check(spec)
            except ModelNotServed:
                notes.append(f"Without model {spec.name} version {spec.version}, which isn't served here.")
        return models, tuple(notes)
