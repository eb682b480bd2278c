"""The pipelines there are. Adding one: a file with a ``Pipeline``, and its name here."""

from __future__ import annotations

from pipelines import chest_ct_pneumonia
from pipelines.pipeline import Pipeline

PIPELINES: dict[str, Pipeline] = {p.name: p for p in (chest_ct_pneumonia.PIPELINE,)}
