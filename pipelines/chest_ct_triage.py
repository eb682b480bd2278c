"""``chest_ct_triage``: lungs -> key slices -> classifiers -> class estimates of the case.

A composition of stages after the CT virus recognition platform (ctcloud: normal, bacterial or viral, answered
by a picture for a quick decision) and Ji et al. 2021 (fusion: positive or negative), where that is served.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from pipelines import classify, lungs
from pipelines.estimates import Estimates, summarise
from pipelines.pipeline import Pipeline, Stages
from pipelines.results.triage import build_triage_results
from pipelines.triton import Inference, ServedModel
from pipelines.volume import Volume


def analyse(
    volume: Volume, inference: Inference, models: Mapping[str, ServedModel], stages: Stages
) -> Estimates:
    """Estimate the classes of a chest CT volume from its key slices."""
    with stages("lungs") as progress:
        lung_labels = lungs.segment_lungs(volume, inference, models["lungs"], progress=progress)
    with stages("key_slices"):
        key_slices = classify.choose_key_slices(volume, lung_labels)
    ask_one = partial(classify.classify, volume, key_slices, inference)
    answers = classify.ask_served(models, stages, ask_one)
    return Estimates(
        lungs=lung_labels,
        key_slices=key_slices,
        by_model=answers,
        lung_volume_ml=volume.by_lung_ml(lung_labels),
        notes=classify.random_notes(answers),
    )


PIPELINE = Pipeline(
    name="chest_ct_triage",
    version="1",
    title="Triage of chest CT: normal, bacterial or viral pneumonia",
    models=(lungs.SPEC, classify.SPEC),
    optional_models=(classify.FUSION_SPEC,),
    analyse=analyse,
    build_results=build_triage_results,
    summarise=summarise,
)
