"""Estimates -> the result set of ``chest_ct_triage``: a TID 1500 SR and a result picture.

The report has one TID 1501 group for the case, whose probabilities can be computed again from the other
groups alone, one TID 1501 group a key slice: each is the mean of the key slices' of the same model and class.
Each group has the outline of its lungs, for viewers that open no group without coordinates (ADR 11).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import highdicom as hd
from pydicom import Dataset
from pydicom.sr.coding import Code

from pipelines.estimates import AGGREGATION, Estimate, Estimates, KeySlice, conclusion
from pipelines.results import codes
from pipelines.results.capture import build_capture
from pipelines.results.document import algorithm, build_document, code_item, measurement, site, text_item
from pipelines.results.identity import SERIES_TYPES, result_uid
from pipelines.results.outlines import around_lungs, around_slice, image_region
from pipelines.results.result_set import ResultSet
from pipelines.results.sources import is_multiframe
from pipelines.triage_picture import triage_picture
from pipelines.volume import ResultContext, Volume

#: decimals of a printed probability: a key slice's has more than the mean that is computed of it
SLICE_DECIMALS = 10
CASE_DECIMALS = 6


def build_triage_results(volume: Volume, estimates: Estimates, context: ResultContext) -> ResultSet:
    """Compose report and result picture. Raises SeriesRefused (geometry_mismatch) like every report."""
    report = build_triage_report(volume, estimates, context)
    page = triage_picture(volume, estimates, context)
    picture = build_capture(page, volume, context, role="triage_picture")
    return ResultSet((("triage_report", report), ("triage_picture", picture)))


def build_triage_report(volume: Volume, estimates: Estimates, context: ResultContext) -> Dataset:
    """Encode the estimates as a measurement report; the notes are its comments."""
    slices = [
        _slice_group(volume, estimates, context, row, key) for row, key in enumerate(estimates.key_slices)
    ]
    return build_document(
        volume,
        context,
        [_case_group(volume, estimates, context), *slices],
        evaluations=evaluations(
            estimates.by_model, codes.SLICE_CLASS, conclusion(estimates), estimates.notes
        ),
        series=SERIES_TYPES["triage_report"],
    )


def evaluations(
    answers: Sequence[Estimate], classes: Mapping[str, Code], said: str, notes: Sequence[str]
) -> list[Dataset]:
    """What each trained model predicts, the conclusion, and the notes.

    classes: class -> its code. said: the conclusion.
    """
    return [
        *(
            code_item(codes.PREDICTED_CLASS[one.model.name], classes[one.predicted])
            for one in answers
            if not one.model.is_random
        ),
        text_item(codes.CONCLUSION, said),
        *(text_item(codes.COMMENT, note) for note in notes),
    ]


def _case_group(
    volume: Volume, estimates: Estimates, context: ResultContext
) -> hd.sr.MeasurementsAndQualitativeEvaluations:
    lungs = next((algorithm(m) for m in context.models if m.role == "lungs"), None)
    count = len(estimates.key_slices)
    measurements = [item for one in estimates.by_model for item in _means(one)]
    measurements.append(measurement(codes.NUMBER_OF_KEY_SLICES, count, codes.NO_UNITS, 0))
    measurements += [
        measurement(
            *(codes.VOLUME, volume_ml, codes.CUBIC_CENTIMETRE, 1),
            finding_sites=[site(lung)],
            algorithm_id=lungs,
        )
        for lung, volume_ml in estimates.lung_volume_ml.items()
    ]
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=result_uid(volume, context, "case/tracking"), identifier="Case"
        ),
        finding_type=codes.SLICE_CLASS[estimates.case_type],
        finding_sites=[hd.sr.FindingSite(anatomic_location=codes.LUNG)],
        measurements=measurements,
    )
    group[0].ContentSequence.append(image_region(volume, around_lungs(volume, estimates.lungs)))
    return group


def _means(estimate: Estimate) -> Iterator[hd.sr.Measurement]:
    for column, (name, mean) in enumerate(estimate.case.items()):
        listed = ", ".join(
            f"Key slice {n} p={p:.{SLICE_DECIMALS}f}"
            for n, p in enumerate(estimate.by_slice[:, column], start=1)
        )
        yield measurement(
            *(codes.CLASS_PROBABILITY[name], mean, codes.NO_UNITS, CASE_DECIMALS),
            derivation=codes.MEAN,
            algorithm_id=algorithm(estimate.model, f"case: {AGGREGATION}", f"inputs: {listed}"),
        )


def _slice_group(
    volume: Volume, estimates: Estimates, context: ResultContext, row: int, key: KeySlice
) -> hd.sr.MeasurementsAndQualitativeEvaluations:
    measurements = [measurement(codes.LUNG_AREA, key.lung_cm2, codes.SQUARE_CENTIMETRE, 2)]
    measurements += [
        measurement(
            *(codes.CLASS_PROBABILITY[name], float(p), codes.NO_UNITS, SLICE_DECIMALS),
            algorithm_id=algorithm(one.model),
        )
        for one in estimates.by_model
        for name, p in zip(one.classes, one.by_slice[row], strict=True)
    ]
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=result_uid(volume, context, f"key-slice/{row + 1}/tracking"),
            identifier=f"Key slice {row + 1}, z {key.z_mm:.1f} mm",
        ),
        finding_sites=[hd.sr.FindingSite(anatomic_location=codes.LUNG)],
        measurements=measurements,
        source_images=_source_images(volume, key),
    )
    group[0].ContentSequence.append(image_region(volume, around_slice(volume, estimates.lungs, key.index)))
    return group


def _source_images(volume: Volume, key: KeySlice) -> list[hd.sr.SourceImageForMeasurementGroup] | None:
    """The image of an axial series; a slice across all of a series' images has all in the image library."""
    if key.source_slice is None:
        return None
    index, frame = volume.source_frames[volume.acquired_plane(key.source_slice)]
    source = volume.sources[index]
    frames = [frame] if is_multiframe(volume) else None
    return [hd.sr.SourceImageForMeasurementGroup(source.SOPClassUID, source.SOPInstanceUID, frames)]
