"""``chest_ct_pneumonia``: lungs -> lesions -> candidates -> votes on patches -> Noisy-OR -> case type.

The method of Xu et al. 2020 (the order of work, candidates, patches with their relative distance-from-edge,
votes, Noisy-OR), with the lungs, the slices' boxes and the inpainting of Deng et al. 2021, and the lesions of
Zhang et al. 2021. One pipeline for each source of candidates; they are alike otherwise.

So that the models have something to do while the stages between them work, what a model can be asked before
its stage begins is asked early, on another thread. When it is asked changes no answer. Likewise, the 3D views
of lungs and lesions are begun while the lesions are looked for, and drawn while the regions are found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

from pipelines import infection, inpaint, lesions, lungs
from pipelines.candidates import (
    COMPONENTS,
    PROPOSALS,
    SLICE_BOXES,
    CandidateSource,
    Chest,
    ask_early,
    find_candidates,
)
from pipelines.findings_summary import summarise
from pipelines.noisy_or import case_type, noisy_or_by_type
from pipelines.pipeline import Pipeline, Stages
from pipelines.quantify import measure_lungs
from pipelines.regions import draw, find_regions
from pipelines.render import Drawing
from pipelines.results import build_result_set
from pipelines.triton import Inference, ServedModel
from pipelines.volume import Findings, Volume


def analyse(
    volume: Volume,
    inference: Inference,
    models: Mapping[str, ServedModel],
    stages: Stages,
    *,
    source: CandidateSource,
) -> Findings:
    """Find pneumonia in a chest CT volume."""
    with _threads() as threads, ExitStack() as stack:  # whatever ends this, nothing goes on after it
        early = ask_early(source, volume, inference, models, threads)
        with stages("lungs") as progress:
            mask = lungs.ask_lungs(volume, inference, models["lungs"], progress=progress)
            likely = lesions.likely_slices(volume, mask)
            ask = partial(lesions.ask_lesions, progress=stages.progress("lesions"))
            known = threads.submit(ask, volume, likely, inference, models["lesions"])
            lung_labels = lungs.label_lungs(volume, mask)
            del mask
        drawing = Drawing(volume, lung_labels) if stages.draws else None
        if drawing is not None:
            stack.callback(drawing.close)
        with stages("lesions"):
            within = lungs.close_lungs(volume, lung_labels)
            lesion_labels = lesions.segment_lesions(
                volume, within, inference, models["lesions"], known=known.result()
            )
            del known
            if drawing is not None:
                drawing.wait()
            lungs.include_lesions(volume, lung_labels, within, lesion_labels)
            del within
        if drawing is not None:
            drawing.show(lung_labels, lesion_labels)
        chest = Chest.of(volume, lung_labels, lesion_labels)
        with stages("candidates") as progress:
            candidates = find_candidates(source, chest, inference, models, early=early, progress=progress)
            drawn, left_out = draw(candidates, chest)
    with stages("infection_type") as progress:
        suspects = [one.candidate for one in drawn]
        votes = infection.classify(suspects, chest, inference, models["infection_type"], progress=progress)
    with stages("regions"):
        found = find_regions(chest, drawn, votes)
        by_type = noisy_or_by_type(found.regions)
        measures = measure_lungs(chest)
    with stages("inpaint") as progress:
        inpainted = inpaint.inpaint_key_slices(
            chest, found.entered, inference, models["inpaint"], progress=progress
        )
    return Findings(
        lungs=lung_labels,
        lesions=lesion_labels,
        region_labels=found.labels,
        regions=found.regions,
        noisy_or=by_type,
        case_type=case_type(by_type),
        measures=measures,
        probability_method=infection.PROBABILITY_METHOD,
        inpainted=inpainted,
        notes=(*left_out, *found.notes),
        drawing=drawing,
    )


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Threads that ask models for what can be asked for before its stage begins."""
    threads = ThreadPoolExecutor(2, thread_name_prefix="early")
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def add_probabilities(volume: Volume, findings: Findings, inference: Inference, stages: Stages) -> Findings:
    """With the lesion model's probabilities, which take as long as its labels."""
    with stages("lesion_probabilities") as progress:
        found = lesions.lesion_probabilities(volume, findings.lungs, inference, progress=progress)
    return replace(findings, lesion_probabilities=found)


def _pipeline(name: str, source: CandidateSource) -> Pipeline[Volume, Findings]:
    specs = (lungs.SPEC, lesions.SPEC, source.spec, infection.SPEC, inpaint.SPEC)
    return Pipeline(
        name=name,
        version="2",
        title=f"Pneumonia on chest CT: infected regions by vote, candidates from {source.title}",
        models=tuple(spec for spec in specs if spec is not None),
        analyse=partial(analyse, source=source),
        build_results=build_result_set,
        summarise=summarise,
        add_probabilities=add_probabilities,
    )


PIPELINE = _pipeline("chest_ct_pneumonia", PROPOSALS)
SLICE_BOXES_PIPELINE = _pipeline("chest_ct_pneumonia_slice_boxes", SLICE_BOXES)
COMPONENTS_PIPELINE = _pipeline("chest_ct_pneumonia_components", COMPONENTS)
