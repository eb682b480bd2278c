"""Measures any model.

In: a registry entry, a predictor, a ``Source``.  Out: an ``Evaluation``. Needs ONNX Runtime; torch only for
checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable

from triton_models.evaluation.predictor import Predictor
from triton_models.evaluation.result import Cases, Evaluation
from triton_models.evaluation.source import Source
from triton_models.registry import ModelEntry, named

Collect = Callable[[ModelEntry, Predictor, Source], Cases]


def collect(entry: ModelEntry, predictor: Predictor, source: Source) -> Cases:
    """The model's answers, by its kind.

    Raises FileNotFoundError for what isn't there, ValueError for what doesn't fit.
    """
    by_kind: Collect = named("triton_models.evaluation", f"{entry.kind}.collect")
    cases = by_kind(entry, predictor, source)
    if not len(cases):
        raise ValueError("no cases to evaluate")
    return cases


def evaluate(entry: ModelEntry, predictor: Predictor, source: Source) -> Evaluation:
    """By the measures of the model's kind. Raises as ``collect`` does."""
    cases = collect(entry, predictor, source)
    return Evaluation(entry.name, predictor.weights_sha256, len(cases), cases.metrics())
