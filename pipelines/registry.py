"""The pipelines there are. Adding one: a file with a ``Pipeline``, and its name here.

Loading a pipeline imports what it computes with; knowing its name doesn't.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

from pipelines.errors import PipelineError
from pipelines.pipeline import Pipeline

#: name -> the module that has it as ``PIPELINE``, or module:attribute
PIPELINES: Mapping[str, str] = MappingProxyType(
    {
        "chest_ct_pneumonia": "pipelines.chest_ct_pneumonia",
        "chest_ct_pneumonia_slice_boxes": "pipelines.chest_ct_pneumonia:SLICE_BOXES_PIPELINE",
        "chest_ct_pneumonia_components": "pipelines.chest_ct_pneumonia:COMPONENTS_PIPELINE",
        "chest_ct_triage": "pipelines.chest_ct_triage",
        "chest_ct_picture": "pipelines.chest_ct_picture",
    }
)


def find_pipeline(name: str) -> Pipeline[Any, Any]:
    """The registered pipeline. Raises PipelineError (unknown_pipeline) naming those there are."""
    if name not in PIPELINES:
        raise PipelineError(
            f"pipeline {name!r} isn't known; known are {', '.join(sorted(PIPELINES))}",
            code="unknown_pipeline",
        )
    module, _, attribute = PIPELINES[name].partition(":")
    pipeline: Pipeline[Any, Any] = getattr(import_module(module), attribute or "PIPELINE")
    return pipeline
