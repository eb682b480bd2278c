"""Measures any model.

In: a registry entry, a predictor, a ``Source``.  Out: an ``Evaluation``. Needs ONNX Runtime; torch only for
checkpoints.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from triton_models.evaluation.predictor import Predictor
from triton_models.evaluation.result import Evaluation
from triton_models.evaluation.source import Source
from triton_models.registry import ModelEntry

Evaluate = Callable[[ModelEntry, Predictor, Source], Evaluation]


def evaluate(entry: ModelEntry, predictor: Predictor, source: Source) -> Evaluation:
    """By the measures of the model's kind.

    Raises FileNotFoundError for what isn't there, ValueError for what doesn't fit.
    """
    by_kind: Evaluate = importlib.import_module(f"triton_models.evaluation.{entry.kind}").evaluate
    return by_kind(entry, predictor, source)
