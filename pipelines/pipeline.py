"""What a pipeline is: a name, the models it needs, and a function from a volume to findings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from pipelines.triton import Inference, ModelSpec, Progress, ServedModel
from pipelines.volume import Findings, Volume

#: called with (stage, done, total); total 0 announces the start of a stage, done == total its end
StageProgress = Callable[[str, int, int], None]


@dataclass
class Stages:
    """Times the stages of one run and reports their progress.

    ``with stages("lungs") as progress: …`` records the wall time in ``seconds`` and hands out a callback
    (done, total) for work that knows how far it is.
    """

    report: StageProgress = lambda _stage, _done, _total: None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[Progress]:
        self.report(stage, 0, 0)
        started = time.perf_counter()
        try:
            yield lambda done, total: self.report(stage, done, total)
        finally:
            self.seconds[stage] = round(time.perf_counter() - started, 3)


Analyse = Callable[[Volume, Inference, Mapping[str, ServedModel], Stages], Findings]


@dataclass(frozen=True)
class Pipeline:
    """One entry of the registry. ``version`` changes whenever results may: result UIDs depend on it."""

    name: str
    version: str
    title: str
    models: tuple[ModelSpec, ...]
    analyse: Analyse
