"""Run one pipeline over one series: files in, a result set and ``summary.json`` out.

load -> contract check -> stages of the pipeline -> result objects -> files
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
from pipelines.results import ResultEntry, build_result_set, write_result_set
from pipelines.triton import Inference
from pipelines.volume import Findings, Region, ResultContext, Volume


def process(request: Request, inference: Inference, report: StageProgress | None = None) -> dict[str, Any]:
    """Run the request's pipeline, write the result set and summary.json into ``request.out``.

    Returns the summary (the structure of DESIGN section 5). Raises PipelineError.
    """
    pipeline = find_pipeline(request.pipeline)
    stages = Stages(report) if report is not None else Stages()
    with stages("check"):
        models = {spec.name: inference.check(spec) for spec in pipeline.models}
    with stages("load") as progress:
        volume = load_series(request.paths, progress=progress)
    findings = pipeline.analyse(volume, inference, models, stages)
    findings = replace(findings, notes=(*volume.notes, *findings.notes))
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
        result_set = build_result_set(volume, findings, context)
        entries = write_result_set(result_set, request.out)
    summary = summarise(volume, findings, context, entries)
    summary["notes"] = [*findings.notes, *result_set.notes]
    summary["timings_seconds"] = stages.seconds
    partial = request.out / f".{SUMMARY}.partial"
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(request.out / SUMMARY)  # last: a folder with a summary is whole
    return summary


def summarise(
    volume: Volume, findings: Findings, context: ResultContext, entries: Sequence[ResultEntry]
) -> dict[str, Any]:
    """The content of summary.json, without notes and timings; volumes in ml, distances as ratios."""
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
        "findings": [_region(region) for region in findings.regions],
        "probability_method": findings.probability_method,
        "noisy_or": dict(findings.noisy_or),
        "case_type": findings.case_type,
        "lung_volume_ml": {lung.name.lower(): ml for lung, ml in findings.lung_volume_ml.items()},
        "lesion_volume_ml": {lung.name.lower(): ml for lung, ml in findings.lesion_volume_ml.items()},
        "involved_percent": findings.involved_percent,
    }


def _region(region: Region) -> dict[str, Any]:
    return {
        "number": region.number,
        "type": region.finding_type,
        "probability": region.probability,
        "type_probabilities": dict(region.type_probabilities),
        "volume_ml": region.volume_ml,
        "mean_hu": region.mean_hu,
        "laterality": region.laterality.name.lower(),
        "relative_distance_from_edge": region.relative_distance_from_edge,
        "centroid_lps_mm": list(region.centroid_lps_mm),
        "bounding_box": [list(limits) for limits in region.bounding_box],
        "key_slice": region.key_slice,
    }
