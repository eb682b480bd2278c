"""``chest_ct_pneumonia``: lungs -> lesions -> regions -> Noisy-OR.

A composition of stages after Xu et al. 2020 (the order of work, Noisy-OR), Deng et al. 2021 (lungs) and
Zhang et al. 2021 (ground glass and consolidation).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipelines import lesions, lungs
from pipelines.findings_summary import summarise
from pipelines.noisy_or import case_type, noisy_or_by_type
from pipelines.pipeline import Pipeline, Stages
from pipelines.regions import PROBABILITY_METHOD, find_regions
from pipelines.results import build_result_set
from pipelines.triton import Inference, ServedModel
from pipelines.volume import Findings, Volume


def analyse(
    volume: Volume, inference: Inference, models: Mapping[str, ServedModel], stages: Stages
) -> Findings:
    """Find pneumonia in a chest CT volume."""
    with stages("lungs") as progress:
        lung_labels = lungs.segment_lungs(volume, inference, models["lungs"], progress=progress)
    with stages("lesions") as progress:
        within = lungs.closed_lungs(volume, lung_labels)
        maps = lesions.segment_lesions(volume, within, inference, models["lesions"], progress=progress)
        lung_labels = np.where(maps.labels > 0, within, lung_labels)  # lesions are part of the lungs
    with stages("regions"):
        found = find_regions(volume, lung_labels, maps)
        by_type = noisy_or_by_type(found.regions)
        return Findings(
            lungs=lung_labels,
            lesions=maps.labels,
            region_labels=found.labels,
            regions=found.regions,
            noisy_or=by_type,
            case_type=case_type(by_type),
            lung_volume_ml=volume.by_lung_ml(lung_labels),
            lesion_volume_ml=volume.by_lung_ml(np.where(maps.labels > 0, lung_labels, 0)),
            probability_method=PROBABILITY_METHOD,
            notes=found.notes,
        )


PIPELINE = Pipeline(
    name="chest_ct_pneumonia",
    version="1",
    title="Pneumonia on chest CT: ground glass and consolidation",
    models=(lungs.SPEC, lesions.SPEC),
    analyse=analyse,
    build_results=build_result_set,
    summarise=summarise,
)
