"""Run one pipeline over one series: files in, a result set and ``summary.json`` out.

contract check -> load -> stages of the pipeline -> result objects -> files
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipelines.load import load_series
from pipelines.pipeline import StageProgress, Stages
from pipelines.registry import find_pipeline
from pipelines.request import SUMMARY, Request
from pipelines.results.result_set import ResultEntry, write_result_set
from pipelines.triton import Inference
from pipelines.volume import ResultContext, Volume


def process(request: Request, inference: Inference, report: StageProgress | None = None) -> dict[str, Any]:
    """Run the request's pipeline, write the result set and summary.json into ``request.out``.

    Returns the summary (the structure of DESIGN section 5). Raises PipelineError.
    """
    pipeline = find_pipeline(request.pipeline)
    stages = Stages(draws=True) if report is None else Stages(report, draws=True)
    with stages("check"):
        models, missing = pipeline.check(inference)
    with stages("load") as progress:
        volume = load_series(request.paths, progress=progress)
    outcome = pipeline.analyse(volume, inference, models, stages)
    outcome = replace(outcome, notes=(*volume.notes, *missing, *outcome.notes))
    context = ResultContext(
        pipeline=pipeline.name,
        pipeline_version=pipeline.version,
        software_version=request.software_version,
        models=tuple(model.identity for model in models.values()),
        content_datetime=request.content_datetime,
        clinical_use=request.clinical_use,
        uid_root=request.uid_root,
    )
    with stages("results"):
        result_set = pipeline.build_results(volume, outcome, context)
        entries = write_result_set(result_set, request.out)
    summary = {
        **_provenance(volume, context, entries),
        **pipeline.summarise(outcome),
        "notes": [*outcome.notes, *result_set.notes],
        "timings_seconds": stages.seconds,
    }
    partial = request.out / f".{SUMMARY}.partial"
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(request.out / SUMMARY)  # last: a folder with a summary is whole
    return summary


def _provenance(volume: Volume, context: ResultContext, entries: Sequence[ResultEntry]) -> dict[str, Any]:
    return {
        "series_instance_uid": volume.series_instance_uid,
        "pipeline": context.pipeline,
        "pipeline_version": context.pipeline_version,
        "software_version": context.software_version,
        "models": {m.name: {"version": m.version, "sha256": m.sha256} for m in context.models},
        "results": [
            {
                "sop_class_uid": entry.sop_class_uid,
                "sop_instance_uid": entry.sop_instance_uid,
                "modality": entry.modality,
                "path": entry.path.name,
            }
            for entry in entries
        ],
    }
