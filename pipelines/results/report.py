"""Findings -> one Comprehensive 3D SR, root TID 1500 Measurement Report (PS3.16), IHE AI Results conventions.

In: a Volume, its Findings, their Segmentation and a ResultContext.  Out: a Dataset with
a TID 1411 group for each region, and one TID 1501 group for the case, each followed by a TID 1410 group with
its outline and nothing else. The case's Noisy-OR probabilities can be computed again from the regions' groups
alone: ``1 - product of (1 - p)`` over the groups whose Finding is the type, p being their
Probability (122157, DCM). A region's group has the three patches' votes and probabilities that p and the
Finding come from (``infection.vote``).
"""

from __future__ import annotations

from collections.abc import Sequence

import highdicom as hd
from pydicom import Dataset
from pydicom.uid import UID

from pipelines.encoding import DEFAULT, Encoding
from pipelines.quantify import severity
from pipelines.results import codes
from pipelines.results.document import (
    algorithm,
    build_document,
    code_item,
    evidence_item,
    identification,
    measurement,
    pipeline_algorithm,
    site,
    text_item,
)
from pipelines.results.identity import result_uid
from pipelines.results.narrative import narrative
from pipelines.results.outlines import Outline, around_lungs, image_region, outline
from pipelines.results.segmentation import region_tracking, segment_numbers
from pipelines.results.sources import is_multiframe
from pipelines.volume import INFECTION_TYPES, Findings, ModelIdentity, Region, ResultContext, Volume

#: Decimals of a printed probability. p has more than the Noisy-OR P that is computed from it, so that P can
#: be computed again from printed values; Floating Point Value (0040,A161) has the unrounded double.
REGION_DECIMALS = 10
CASE_DECIMALS = 6
_MODEL_OF = {"lung": "lungs", "lesion": "lesions", "vote": "infection_type"}


def build_report(
    volume: Volume,
    findings: Findings,
    segmentation: Dataset,
    context: ResultContext,
    encoding: Encoding = DEFAULT,
) -> Dataset:
    """Encode the findings as a measurement report.

    ``segmentation`` is what ``build_segmentation`` made of the same arguments: regions refer to its segments.
    Without regions the report says that no infection was found, and still has volumes and provenance.
    """
    numbers = segment_numbers(segmentation)
    outlines = {r.number: outline(volume, findings.region_labels, r) for r in findings.regions}
    lungs = around_lungs(volume, findings.lungs)
    place = _lung_segments(volume, segmentation) if findings.regions else [image_region(volume, lungs)]
    groups = [_case_group(volume, findings, place, context)]
    if findings.regions:
        groups.append(_outline_group(_case_tracking(volume, context), volume, lungs))
    for region in findings.regions:
        reference = _referenced_segment(
            volume, segmentation, numbers[str(region_tracking(volume, context, region.number)[1])]
        )
        groups.append(_region_group(region, volume, findings, reference, context))
        tracking = region_tracking(volume, context, region.number)
        groups.append(_outline_group(tracking, volume, outlines[region.number]))
    return build_document(
        volume,
        context,
        groups,
        evaluations=[
            code_item(codes.CASE_TYPE, codes.FINDING[findings.case_type]),
            code_item(codes.SEVERITY, codes.SEVERITY_GRADE[severity(findings.involved_percent)]),
            *(text_item(*line) for line in narrative(volume, findings, outlines, context)),
        ],
        evidence=[evidence_item(segmentation, volume)],
        encoding=encoding,
    )


def _model_of(stage: str, context: ResultContext) -> ModelIdentity | None:
    return next((m for m in context.models if m.role == _MODEL_OF[stage]), None)


def _algorithm_of(stage: str, context: ResultContext) -> hd.sr.AlgorithmIdentification | None:
    model = _model_of(stage, context)
    return None if model is None else algorithm(model)


def _region_group(
    region: Region,
    volume: Volume,
    findings: Findings,
    reference: hd.sr.ReferencedSegment,
    context: ResultContext,
) -> hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    identifier, uid = region_tracking(volume, context, region.number)
    # TID 4019 is part of a measurement (TID 300), not of the group (TID 1411)
    drawn_by = _algorithm_of("lesion", context) or pipeline_algorithm(context)
    measurements = [
        measurement(codes.VOLUME, region.volume_ml, codes.CUBIC_CENTIMETRE, 3, algorithm_id=drawn_by),
        measurement(codes.MEAN_ATTENUATION, region.mean_hu, codes.HOUNSFIELD, 1),
        *(
            measurement(codes.HU_PERCENTILE[percentile], hu, codes.HOUNSFIELD, 1)
            for percentile, hu in region.hu_percentiles.items()
        ),
        measurement(codes.RELATIVE_DISTANCE, region.relative_distance_from_edge, codes.NO_UNITS, 4),
        measurement(
            *(codes.PROBABILITY, region.probability, codes.NO_UNITS, REGION_DECIMALS),
            derivation=codes.VOTE,
            algorithm_id=_vote(region, findings, context),
        ),
    ]
    measurements += [
        measurement(codes.PATCH_PROBABILITY[name][n], p, codes.NO_UNITS, REGION_DECIMALS)
        for n, patch in enumerate(region.votes)
        for name, p in patch.probabilities.items()
    ]
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=uid, identifier=identifier),
        referenced_segment=reference,
        finding_type=codes.FINDING[region.infection_type],
        finding_sites=[site(region.laterality)],
        measurements=measurements,
    )


def _outline_group(
    tracking: tuple[str, UID], volume: Volume, drawn: Outline
) -> hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations:
    """TID 1410: an outline on an image, for viewers that draw coordinates only (ADR 11).

    It has the tracking identifier and UID of the group that it belongs to, and no finding and no measurement
    of its own: who counts findings or sums measurements counts each once.
    """
    identifier, uid = tracking
    return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=uid, identifier=identifier),
        referenced_region=image_region(volume, drawn),
    )


def _case_tracking(volume: Volume, context: ResultContext) -> tuple[str, UID]:
    return "Case", result_uid(volume, context, "case/tracking")


def _vote(region: Region, findings: Findings, context: ResultContext) -> hd.sr.AlgorithmIdentification:
    """The model that voted, how the vote goes, and the three votes in words; all numbers stand beside it."""
    voted_by = _model_of("vote", context)
    listed = "; ".join(
        f"patch {n} {codes.FINDING[patch.infection_type].meaning} {patch.confidence:.{REGION_DECIMALS}f}"
        for n, patch in enumerate(region.votes, start=1)
    )
    how = [f"p: {findings.probability_method}", f"votes: {listed}"]
    if voted_by is None:
        return identification(context.pipeline, context.pipeline_version, how)
    return identification(voted_by.name, voted_by.version, [f"sha256={voted_by.sha256}", *how])


def _referenced_segment(volume: Volume, segmentation: Dataset, number: int) -> hd.sr.ReferencedSegment:
    if is_multiframe(volume):
        source = volume.sources[0]
        images = [hd.sr.SourceImageForSegmentation(source.SOPClassUID, source.SOPInstanceUID)]
        reference = hd.sr.ReferencedSegment(
            segmentation.SOPClassUID, segmentation.SOPInstanceUID, number, source_images=images
        )
    else:
        reference = hd.sr.ReferencedSegment(
            segmentation.SOPClassUID,
            segmentation.SOPInstanceUID,
            number,
            source_series=hd.sr.SourceSeriesForSegmentation(volume.series_instance_uid),
        )
    for item in reference[1:]:  # PS3.16 Table D-1: "Source series for segmentation", in lower case
        item.ConceptNameCodeSequence[0].CodeMeaning = item.ConceptNameCodeSequence[0].CodeMeaning.capitalize()
    return reference


def _case_group(
    volume: Volume, findings: Findings, place: Sequence[Dataset], context: ResultContext
) -> hd.sr.MeasurementsAndQualitativeEvaluations:
    """TID 1501: Noisy-OR per type with how it was computed, the case type, and what the lungs measure.

    ``place``: the lungs' segments where regions refer to segments, else the lungs' outline. Validators judge
    all groups by the first's template, which takes either segments or coordinates.
    """
    lung, lesion = _algorithm_of("lung", context), _algorithm_of("lesion", context)
    measurements = [_noisy_or(name, findings, context) for name in INFECTION_TYPES]
    measurements += [
        measurement(codes.NUMBER_OF_LESIONS, len(findings.regions), codes.NO_UNITS, 0),
        measurement(codes.PERCENT_INVOLVED, findings.involved_percent, codes.PERCENT, 3, algorithm_id=lesion),
        measurement(
            *(codes.PERCENT_PERIPHERAL, findings.peripheral_percent, codes.PERCENT, 1), algorithm_id=lesion
        ),
    ]
    for side, lung_measures in findings.measures.items():
        measurements += [
            measurement(*quantity, finding_sites=[site(side)], algorithm_id=made_by)
            for quantity, made_by in (
                ((codes.VOLUME, lung_measures.volume_ml, codes.CUBIC_CENTIMETRE, 1), lung),
                ((codes.LESION_VOLUME, lung_measures.lesions_ml, codes.CUBIC_CENTIMETRE, 3), lesion),
                ((codes.PERCENT_INVOLVED, lung_measures.involved_percent, codes.PERCENT, 3), lesion),
                ((codes.PERCENT_PERIPHERAL, lung_measures.peripheral_percent, codes.PERCENT, 1), lesion),
                ((codes.MEAN_ATTENUATION, lung_measures.mean_hu, codes.HOUNSFIELD, 1), lung),
            )
        ]
    identifier, uid = _case_tracking(volume, context)
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=uid, identifier=identifier),
        finding_type=codes.FINDING[findings.case_type],
        finding_sites=[hd.sr.FindingSite(anatomic_location=codes.LUNG)],
        measurements=measurements,
    )
    group[0].ContentSequence.extend(place)
    return group


def _lung_segments(volume: Volume, segmentation: Dataset) -> hd.sr.ReferencedSegment:
    numbers = [
        int(item.SegmentNumber)
        for item in segmentation.SegmentSequence
        if item.SegmentedPropertyTypeCodeSequence[0].CodeValue == codes.LUNG.value
    ]
    reference = _referenced_segment(volume, segmentation, numbers[0])
    reference[0].ReferencedSOPSequence[0].ReferencedSegmentNumber = numbers
    return reference


def _noisy_or(name: str, findings: Findings, context: ResultContext) -> hd.sr.Measurement:
    inputs = [r for r in findings.regions if r.infection_type == name]
    listed = ", ".join(f"Region {r.number} p={r.probability:.{REGION_DECIMALS}f}" for r in inputs)
    return measurement(
        *(codes.CASE_TYPE_PROBABILITY[name], findings.noisy_or[name], codes.NO_UNITS, CASE_DECIMALS),
        derivation=codes.NOISY_OR,
        algorithm_id=hd.sr.AlgorithmIdentification(
            name="Noisy-OR",
            version=context.pipeline_version,
            parameters=[
                "P = 1 - product of (1 - p) over the regions of this type; 0 without regions",
                f"p: {findings.probability_method}",
                f"inputs: {listed or 'none'}",
            ],
        ),
    )
