"""Run one pipeline over one series: files in, a result set and ``summary.json`` out.

contract check -> load -> stages of the pipeline -> result objects -> files
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.agreement import compare
from pipelines.encoding import DEFAULT, Encoding
from pipelines.failpoints import failpoint
from pipelines.pipeline import StageProgress, Stages
from pipelines.registry import find_pipeline
from pipelines.request import SUMMARY, NoResult, Request
from pipelines.results.no_result import build_no_result, read_headers
from pipelines.results.result_set import ResultEntry, write_all, write_object
from pipelines.results.superseding import build_rejection, by_encoding, read_superseded, reports_of
from pipelines.shadow import Instead
from pipelines.triton import Inference
from pipelines.volume import ResultContext, SourceImages


def process(request: Request, inference: Inference, report: StageProgress | None = None) -> dict[str, Any]:
    """Run the request's pipeline, write the result set and summary.json into ``request.out``.

    Returns the summary (the structure of DESIGN section 5). Raises PipelineError.
    """
    if request.no_result is not None:
        return _no_result(request, request.no_result)
    pipeline = find_pipeline(request.pipeline)
    if request.shadow is not None:
        inference = Instead(inference, request.shadow.models, pipeline)
    stages = Stages(draws=True) if report is None else Stages(report, draws=True)
    with stages("check"):
        models, missing = pipeline.check(inference)
    with stages("load") as progress:
        volume = pipeline.load(request.paths, progress)
    outcome = pipeline.analyse(volume, inference, models, stages)
    encodings = [Encoding.named(name) for name in request.encodings]
    if any(one.segmentation == "fractional" for one in encodings) and pipeline.add_probabilities:
        outcome = pipeline.add_probabilities(volume, outcome, inference, stages)
    superseded = read_superseded(request.predecessor, encodings)
    outcome = replace(outcome, notes=(*volume.notes, *missing, *outcome.notes))
    context = ResultContext(
        pipeline=pipeline.name,
        pipeline_version=pipeline.version,
        software_version=request.software_version,
        models=tuple(model.identity for model in models.values()),
        content_datetime=request.content_datetime,
        clinical_use=request.clinical_use,
        uid_root=request.uid_root,
        predecessors=reports_of(superseded[DEFAULT]),
        encodings=by_encoding(superseded, encodings),
    )
    with stages("results"):
        result_set = pipeline.build_results(volume, outcome, context)
        written = write_all(result_set, request.out)
        rejections = {
            encoding: write_object(build_rejection(volume, context, objects, encoding), request.out, encoding)
            for encoding, objects in superseded.items()
            if request.reject and objects
        }
    summary = {
        **_provenance(volume, context, written),
        "rejections": {encoding.name: _entry(one) for encoding, one in rejections.items()},
        **pipeline.summarise(outcome),
        "notes": [*outcome.notes, *result_set.notes],
        "timings_seconds": stages.seconds,
    }
    if request.shadow is not None:
        summary["agreement"] = compare(request.shadow.live, request.out, summary)
    failpoint("process.written")
    _write_summary(summary, request.out)
    failpoint("process.summarised")
    return summary


def _no_result(request: Request, why: NoResult) -> dict[str, Any]:
    """A set that only says why there is no result. Raises SeriesRefused when no header can be read."""
    volume = read_headers(request.paths)
    context = ResultContext(
        pipeline=request.pipeline,
        pipeline_version=find_pipeline(request.pipeline).version,
        software_version=request.software_version,
        models=(),
        content_datetime=request.content_datetime,
        clinical_use=request.clinical_use,
        uid_root=request.uid_root,
    )
    result_set = build_no_result(volume, context, code=why.code, reason=why.reason, kind=why.kind)
    summary = {
        **_provenance(volume, context, write_all(result_set, request.out)),
        "no_result": {"code": why.code, "reason": why.reason},
        **{"findings": [], "noisy_or": {}, "case_type": "no_result", "timings_seconds": {}},
        "conclusion": f"AI not performed: {why.reason}",
    }
    _write_summary(summary, request.out)
    return summary


def _write_summary(summary: dict[str, Any], folder: Path) -> None:
    partial = folder / f".{SUMMARY}.partial"
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / SUMMARY)  # last: a folder with a summary is whole


def _entry(one: ResultEntry) -> dict[str, str]:
    return {
        "sop_class_uid": one.sop_class_uid,
        "sop_instance_uid": one.sop_instance_uid,
        "modality": one.modality,
        "path": one.path.name,
    }


def _provenance(
    volume: SourceImages, context: ResultContext, written: Mapping[Encoding, Sequence[ResultEntry]]
) -> dict[str, Any]:
    return {
        "series_instance_uid": volume.series_instance_uid,
        "pipeline": context.pipeline,
        "pipeline_version": context.pipeline_version,
        "software_version": context.software_version,
        "models": {m.name: {"version": m.version, "sha256": m.sha256} for m in context.models},
        "results": [_entry(one) for one in written[DEFAULT]],
        "encodings": [DEFAULT.name, *(encoding.name for encoding in context.encodings)],
        "variants": {
            encoding.name: [_entry(one) for one in entries]
            for encoding, entries in written.items()
            if encoding != DEFAULT
        },
    }
