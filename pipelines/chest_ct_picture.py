"""``chest_ct_picture``: a picture of a chest CT slice -> lungs -> classifiers -> class estimates.

After ctcloud, whose users send a photograph of a slice. What it is worth is said in every result
(``pipelines.ct_picture.NOTES``).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from pipelines import classify, lungs
from pipelines.ct_picture import CtPicture, load_ct_picture
from pipelines.picture_estimates import PictureEstimates, summarise
from pipelines.picture_lungs import find_lungs
from pipelines.pipeline import Pipeline, Stages
from pipelines.results.picture_estimates import build_picture_results
from pipelines.triton import Inference, ServedModel


def analyse(
    picture: CtPicture, inference: Inference, models: Mapping[str, ServedModel], stages: Stages
) -> PictureEstimates:
    """Estimate the classes of a picture. Raises SeriesRefused (no_lungs_found)."""
    with stages("lungs"):
        found = find_lungs(picture, inference, models["lungs"])
    ask_one = partial(classify.ask, picture.hu[None], inference)
    answers = classify.ask_served(models, stages, ask_one)
    return PictureEstimates(lungs=found, by_model=answers, notes=classify.random_notes(answers))


PIPELINE = Pipeline(
    name="chest_ct_picture",
    version="1",
    title="Triage of a CT picture: normal, bacterial or viral pneumonia",
    models=(lungs.SPEC, classify.SPEC),
    optional_models=(classify.FUSION_SPEC,),
    load=load_ct_picture,
    analyse=analyse,
    build_results=build_picture_results,
    summarise=summarise,
)
