"""Findings -> one Comprehensive 3D SR, root TID 1500 Measurement Report (PS3.16), IHE AI Results conventions.

In: a Volume, its Findings, their Segmentation and a ResultContext.  Out: a highdicom Comprehensive3DSR with
a TID 1411 group for each region, and one TID 1501 group for the case whose Noisy-OR probabilities can be
computed again from the regions' groups alone: ``1 - product of (1 - p)`` over the groups whose Finding is
the type, p being their Probability (122157, DCM).
"""

from __future__ import annotations

import highdicom as hd
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage

from pipelines.results import codes
from pipelines.results.identity import (
    MANUFACTURER,
    SERIES_TYPES,
    device_serial_number,
    device_uid,
    report_series_uid,
    result_uid,
    stamp,
)
from pipelines.results.segmentation import region_tracking, segment_numbers
from pipelines.results.sources import clean_headers, is_multiframe, slice_geometry
from pipelines.volume import FINDING_TYPES, Findings, Lung, ModelIdentity, Region, ResultContext, Volume

#: Decimals of a printed probability. p has more than the Noisy-OR P that is computed from it, so that P can
#: be computed again from printed values; Floating Point Value (0040,A161) has the unrounded double.
REGION_DECIMALS = 10
CASE_DECIMALS = 6
_MODEL_OF = {"lung": "lungs", "lesion": "lesions"}


def build_report(
    volume: Volume, findings: Findings, segmentation: Dataset, context: ResultContext
) -> hd.sr.Comprehensive3DSR:
    """Encode the findings as a measurement report.

    ``segmentation`` is what ``build_segmentation`` made of the same arguments: regions refer to its segments.
    Without regions the report says that no infection was found, and still has volumes and provenance.
    The report is COMPLETE, PRELIMINARY and UNVERIFIED: no person has looked at it.
    """
    series = SERIES_TYPES["report"]
    headers = clean_headers(volume, context)
    numbers = segment_numbers(segmentation)
    groups = [_case_group(volume, findings, segmentation, context)]
    groups += [_region_group(region, volume, segmentation, numbers, context) for region in findings.regions]
    content = hd.sr.MeasurementReport(
        observation_context=_observation_context(context),
        procedure_reported=_procedures(volume.sources[0]),
        imaging_measurements=groups,
        language_of_content_item_and_descendants=hd.sr.LanguageOfContentItemAndDescendants(codes.ENGLISH_US),
    )
    children = content[0].ContentSequence
    measured = next(n for n, item in enumerate(children) if item.name == codes.IMAGING_MEASUREMENTS)
    for item in reversed(_pipeline_algorithm(context)):
        children[measured].ContentSequence.insert(0, item)
    children.insert(measured, _image_library(volume))
    children.append(_qualitative_evaluations(findings))
    report = hd.sr.Comprehensive3DSR(
        evidence=[*headers, _evidence(segmentation, volume)],
        content=content,
        series_instance_uid=report_series_uid(volume, context),
        series_number=series.number,
        sop_instance_uid=result_uid(volume, context, "report/instance"),
        instance_number=len(context.predecessors) + 1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        is_final=False,
        is_verified=False,
        requested_procedures=_requests(volume.sources[0]),
        previous_versions=_predecessors(volume, context) or None,
    )
    stamp(report, volume, context, series)
    scheme = Dataset()
    scheme.CodingSchemeDesignator = codes.PRIVATE_DESIGNATOR
    scheme.CodingSchemeName = codes.PRIVATE_SCHEME_NAME
    scheme.CodingSchemeResponsibleOrganization = MANUFACTURER
    report.CodingSchemeIdentificationSequence = [scheme]
    return report


def _observation_context(context: ResultContext) -> hd.sr.ObservationContext:
    """TID 1001: the observer is a device; the subject is the patient of the enclosing instance."""
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=device_uid(context),
        name=context.pipeline,
        manufacturer_name=MANUFACTURER,
        model_name=f"{context.pipeline} {context.pipeline_version}",
        serial_number=device_serial_number(context),
    )
    observer = hd.sr.ObserverContext(
        observer_type=hd.sr.CodedConcept("121007", "DCM", "Device"), observer_identifying_attributes=device
    )
    return hd.sr.ObservationContext(observer_device_context=observer)


def _procedures(source: Dataset) -> list[Code]:
    """TID 1500 row 4, CID 100: what was done to the patient, as the input says it; not what we did."""
    items = list(source.get("ProcedureCodeSequence") or [])
    for request in source.get("RequestAttributesSequence") or []:
        items += list(request.get("RequestedProcedureCodeSequence") or [])
    found: list[Code] = []
    for item in items:
        if all(item.get(k) for k in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")):
            code = Code(item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning)
            if code not in found:
                found.append(code)
    return found or [codes.CT_UNSPECIFIED]


def _requests(source: Dataset) -> list[Dataset] | None:
    """Referenced Request Sequence (PS3.3 C.17.2): the order that the input was made for, if it names one."""
    requests = list(source.get("RequestAttributesSequence") or [])
    if not requests and not source.get("AccessionNumber"):
        return None
    items = []
    for request in requests or [Dataset()]:
        item = Dataset()
        item.StudyInstanceUID = source.StudyInstanceUID
        item.ReferencedStudySequence = []
        item.AccessionNumber = source.get("AccessionNumber")
        item.PlacerOrderNumberImagingServiceRequest = source.get("PlacerOrderNumberImagingServiceRequest")
        item.FillerOrderNumberImagingServiceRequest = source.get("FillerOrderNumberImagingServiceRequest")
        item.RequestedProcedureID = request.get("RequestedProcedureID")
        item.RequestedProcedureDescription = request.get("RequestedProcedureDescription")
        item.RequestedProcedureCodeSequence = list(request.get("RequestedProcedureCodeSequence") or [])
        items.append(item)
    return items


def _evidence(segmentation: Dataset, volume: Volume) -> Dataset:
    item = Dataset()
    item.StudyInstanceUID = volume.sources[0].StudyInstanceUID
    for keyword in ("SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID"):
        setattr(item, keyword, segmentation[keyword].value)
    return item


def _predecessors(volume: Volume, context: ResultContext) -> list[Dataset]:
    items = []
    for uid in context.predecessors:
        item = Dataset()
        item.StudyInstanceUID = volume.sources[0].StudyInstanceUID
        item.SeriesInstanceUID = report_series_uid(volume, context)
        item.SOPClassUID = Comprehensive3DSRStorage
        item.SOPInstanceUID = uid
        items.append(item)
    return items


def _algorithm(model: ModelIdentity) -> hd.sr.AlgorithmIdentification:
    """TID 4019 for a model: name, version, and the hash of the file that was served."""
    return hd.sr.AlgorithmIdentification(
        name=model.name,
        version=model.version,
        parameters=[f"sha256={model.sha256}", *([model.description] if model.description else [])],
        family=codes.ARTIFICIAL_INTELLIGENCE,
    )


def _algorithm_of(stage: str, context: ResultContext) -> hd.sr.AlgorithmIdentification | None:
    model = next((m for m in context.models if m.name == _MODEL_OF[stage]), None)
    return None if model is None else _algorithm(model)


def _pipeline_algorithm(context: ResultContext) -> hd.sr.AlgorithmIdentification:
    return hd.sr.AlgorithmIdentification(
        name=context.pipeline,
        version=context.pipeline_version,
        parameters=[
            f"software version {context.software_version}",
            *(f"model {m.name} version {m.version} sha256={m.sha256}" for m in context.models),
        ],
        family=codes.ARTIFICIAL_INTELLIGENCE,
    )


def _measurement(
    name: Code, value: float, unit: Code, decimals: int, **arguments: object
) -> hd.sr.Measurement:
    """TID 300. Numeric Value has ``decimals`` decimals for people, Floating Point Value all of ``value``."""
    measurement = hd.sr.Measurement(name=name, value=float(value), unit=unit, **arguments)
    text = f"{value:.{decimals}f}"
    measurement[0].MeasuredValueSequence[0].NumericValue = text if len(text) <= 16 else f"{value:.9e}"
    return measurement


def _site(lung: Lung) -> hd.sr.FindingSite:
    return hd.sr.FindingSite(anatomic_location=codes.LUNG, laterality=codes.LATERALITY[lung])


def _region_group(
    region: Region,
    volume: Volume,
    segmentation: Dataset,
    numbers: dict[str, int],
    context: ResultContext,
) -> hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    identifier, uid = region_tracking(volume, context, region.number)
    # TID 4019 is part of a measurement (TID 300), not of the group (TID 1411)
    algorithm = _algorithm_of("lesion", context) or _pipeline_algorithm(context)
    measurements = [
        _measurement(codes.VOLUME, region.volume_ml, codes.CUBIC_CENTIMETRE, 3, algorithm_id=algorithm),
        _measurement(codes.MEAN_ATTENUATION, region.mean_hu, codes.HOUNSFIELD, 1),
        _measurement(codes.RELATIVE_DISTANCE, region.relative_distance_from_edge, codes.NO_UNITS, 4),
        _measurement(
            *(codes.PROBABILITY, region.probability, codes.NO_UNITS, REGION_DECIMALS), algorithm_id=algorithm
        ),
    ]
    measurements += [
        _measurement(codes.REGION_TYPE_PROBABILITY[name], p, codes.NO_UNITS, REGION_DECIMALS)
        for name, p in region.type_probabilities.items()
    ]
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=uid, identifier=identifier),
        referenced_segment=_referenced_segment(volume, segmentation, numbers[str(uid)]),
        finding_type=codes.FINDING[region.finding_type],
        finding_sites=[_site(region.laterality)],
        measurements=measurements,
    )


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
    volume: Volume, findings: Findings, segmentation: Dataset, context: ResultContext
) -> hd.sr.MeasurementsAndQualitativeEvaluations:
    """TID 1501: Noisy-OR per type with how it was computed, the case type, and what the lungs measure.

    It refers to the lungs' segments, because validators take every group beside a TID 1411 group for one.
    """
    lung, lesion = _algorithm_of("lung", context), _algorithm_of("lesion", context)
    measurements = [_noisy_or(name, findings, context) for name in FINDING_TYPES]
    measurements += [
        _measurement(codes.NUMBER_OF_LESIONS, len(findings.regions), codes.NO_UNITS, 0),
        _measurement(
            codes.PERCENT_INVOLVED, findings.involved_percent, codes.PERCENT, 3, algorithm_id=lesion
        ),
    ]
    for side, volume_ml in findings.lung_volume_ml.items():
        measurements.append(
            _measurement(
                *(codes.VOLUME, volume_ml, codes.CUBIC_CENTIMETRE, 1),
                finding_sites=[_site(side)],
                algorithm_id=lung,
            )
        )
    for side, volume_ml in findings.lesion_volume_ml.items():
        measurements.append(
            _measurement(
                *(codes.LESION_VOLUME, volume_ml, codes.CUBIC_CENTIMETRE, 3),
                finding_sites=[_site(side)],
                algorithm_id=lesion,
            )
        )
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=result_uid(volume, context, "case/tracking"), identifier="Case"
        ),
        finding_type=codes.FINDING[findings.case_type],
        finding_sites=[hd.sr.FindingSite(anatomic_location=codes.LUNG)],
        measurements=measurements,
    )
    lungs = [
        int(item.SegmentNumber)
        for item in segmentation.SegmentSequence
        if item.SegmentedPropertyTypeCodeSequence[0].CodeValue == codes.LUNG.value
    ]
    reference = _referenced_segment(volume, segmentation, lungs[0])
    reference[0].ReferencedSOPSequence[0].ReferencedSegmentNumber = lungs
    group[0].ContentSequence.extend(reference)
    return group


def _qualitative_evaluations(findings: Findings) -> hd.sr.ContainerContentItem:
    """TID 1500 row 12: the case type as a code, and the same for people in words."""
    contains = hd.sr.RelationshipTypeValues.CONTAINS
    container = hd.sr.ContainerContentItem(codes.QUALITATIVE_EVALUATIONS, relationship_type=contains)
    case_type = codes.FINDING[findings.case_type]
    container.ContentSequence = hd.sr.ContentSequence(
        [
            hd.sr.CodeContentItem(codes.CASE_TYPE, case_type, contains),
            hd.sr.TextContentItem(codes.CONCLUSION, conclusion(findings), contains),
        ]
    )
    return container


def conclusion(findings: Findings) -> str:
    """The case in one or two sentences of plain ASCII, which any character set of the input can hold."""
    if not findings.regions:
        return "No infection found: no region of ground glass opacity or consolidation in the lungs."
    parts = []
    for name in FINDING_TYPES:
        count = sum(region.finding_type == name for region in findings.regions)
        words = codes.FINDING[name].meaning.lower()
        regions = "1 region" if count == 1 else f"{count} regions"
        parts.append(f"{words} P = {findings.noisy_or[name]:.3f} ({regions})")
    return (
        f"{codes.FINDING[findings.case_type].meaning}. Noisy-OR: {'; '.join(parts)}. "
        f"{findings.involved_percent:.1f} % of the lungs involved."
    )


def _noisy_or(name: str, findings: Findings, context: ResultContext) -> hd.sr.Measurement:
    inputs = [r for r in findings.regions if r.finding_type == name]
    listed = ", ".join(f"Region {r.number} p={r.probability:.{REGION_DECIMALS}f}" for r in inputs)
    return _measurement(
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


def _image_library(volume: Volume) -> hd.sr.ContainerContentItem:
    """TID 1600: the source images, with what they share (TID 1602, 1604) said once for the group.

    highdicom repeats 15 descriptors for every image, and needs attributes that enhanced CT keeps elsewhere.
    """
    geometry = slice_geometry(volume)
    source = volume.sources[0]
    acquired = hd.sr.RelationshipTypeValues.HAS_ACQ_CONTEXT
    contains = hd.sr.RelationshipTypeValues.CONTAINS
    group = hd.sr.ContainerContentItem(codes.IMAGE_LIBRARY_GROUP, relationship_type=contains)
    items = [hd.sr.CodeContentItem(codes.MODALITY, codes.COMPUTED_TOMOGRAPHY, acquired)]
    if source.get("FrameOfReferenceUID"):
        items.append(
            hd.sr.UIDRefContentItem(codes.FRAME_OF_REFERENCE_UID, str(source.FrameOfReferenceUID), acquired)
        )
    for name, value, unit in (
        (codes.PIXEL_DATA_ROWS, int(source.Rows), codes.PIXELS),
        (codes.PIXEL_DATA_COLUMNS, int(source.Columns), codes.PIXELS),
        (codes.HORIZONTAL_PIXEL_SPACING, geometry.pixel_spacing[1], codes.MILLIMETRE),
        (codes.VERTICAL_PIXEL_SPACING, geometry.pixel_spacing[0], codes.MILLIMETRE),
        (codes.SPACING_BETWEEN_SLICES, geometry.slice_spacing, codes.MILLIMETRE),
    ):
        items.append(hd.sr.NumContentItem(name, value, unit, relationship_type=acquired))
    items += [
        hd.sr.ImageContentItem(codes.SOURCE, s.SOPClassUID, s.SOPInstanceUID, relationship_type=contains)
        for s in volume.sources
    ]
    group.ContentSequence = hd.sr.ContentSequence(items)
    library = hd.sr.ContainerContentItem(codes.IMAGE_LIBRARY, relationship_type=contains)
    library.ContentSequence = hd.sr.ContentSequence([group])
    return library
