"""Candidates in the place of a pipeline's models: the pipeline asks as ever, and others answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.pipeline import Pipeline
from pipelines.triton import Arrays, Inference, ModelSpec, Progress, ServedModel


class Instead:
    """An ``Inference`` that has some models answered by others.

    models: (name, version) as served, by the name that the pipeline knows. Inputs, outputs and classes have
    to be those that the pipeline expects. Raises PipelineError (unknown_model) for a model that it hasn't.
    """

    def __init__(
        self, inference: Inference, models: Mapping[str, tuple[str, str]], pipeline: Pipeline[Any, Any]
    ) -> None:
        known = {spec.name for spec in (*pipeline.models, *pipeline.optional_models)}
        if unknown := sorted(set(models) - known):
            raise PipelineError(
                f"pipeline {pipeline.name} has no model {unknown[0]!r} that another could take the place of; "
                f"it has {', '.join(sorted(known))}",
                code="unknown_model",
            )
        self._inference = inference
        self._models = models

    def check(self, spec: ModelSpec) -> ServedModel:
        if spec.name not in self._models:
            return self._inference.check(spec)
        name, version = self._models[spec.name]
        served = self._inference.check(replace(spec, name=name, version=version))
        return replace(served, identity=replace(served.identity, instead_of=spec.name))

    def run(
        self,
        model: ServedModel,
        inputs: Arrays,
        *,
        progress: Progress | None = None,
        out: Arrays | None = None,
    ) -> dict[str, NDArray[Any]]:
        return self._inference.run(model, inputs, progress=progress, out=out)
