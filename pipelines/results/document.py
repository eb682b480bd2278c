"""What every report of ours has in common: a Comprehensive 3D SR with root TID 1500 (PS3.16), IHE AI Results.

In: the groups of measurements that a pipeline made, its conclusion, a Volume or picture and a ResultContext.
Out: a Dataset with observer context, image library, procedure, order, evidence, predecessors and
the identification of the algorithms.
"""

from __future__ import annotations

from collections.abc import Sequence

import highdicom as hd
from pydicom import DataElement, Dataset
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage, SecondaryCaptureImageStorage

from pipelines.encoding import DEFAULT, Encoding
from pipelines.results import codes
from pipelines.results.identity import (
    MANUFACTURER,
    SERIES_TYPES,
    SeriesType,
    device_serial_number,
    device_uid,
    report_series_uid,
    result_uid,
    stamp,
)
from pipelines.results.sources import bare_header, slice_geometry
from pipelines.volume import Lung, ModelIdentity, ResultContext, SourceImages, Volume


def build_document(
    volume: SourceImages,
    context: ResultContext,
    groups: Sequence[Dataset],
    *,
    evaluations: Sequence[Dataset] = (),
    evidence: Sequence[Dataset] = (),
    series: SeriesType = SERIES_TYPES["report"],
    encoding: Encoding = DEFAULT,
) -> Dataset:
    """Encode a measurement report, a Comprehensive 3D SR.

    groups: highdicom's groups of measurements (TID 1410, 1411, 1501), at least one.
    evaluations: content items of the report as a whole (``code_item``, ``text_item``; TID 1500 row 12). They
        open the report, so that who reads it from the top meets the case before its measurements (ADR 11).
    evidence: what it refers to beside the volume's images (``evidence_item``).
    encoding: of the segmentation that it refers to, which makes it an instance of its own.
    The report is COMPLETE, PRELIMINARY and UNVERIFIED: no person has looked at it.
    """
    content = begin_content(volume, context, groups)
    children = content[0].ContentSequence
    measured = next(n for n, item in enumerate(children) if item.name == codes.IMAGING_MEASUREMENTS)
    for item in reversed(pipeline_algorithm(context)):
        children[measured].ContentSequence.insert(0, item)
    children.insert(measured, _image_library(volume))
    if evaluations:
        children.insert(0, qualitative_evaluations(evaluations))
    uids = (
        report_series_uid(volume, context),
        result_uid(volume, context, f"{series.role}/instance{encoding.suffix}"),
    )
    return finish_document(volume, context, content, evidence=evidence, series=series, uids=uids)


def begin_content(
    volume: SourceImages, context: ResultContext, groups: Sequence[Dataset]
) -> hd.sr.MeasurementReport:
    """TID 1500 with language, observer, procedure and the groups."""
    return hd.sr.MeasurementReport(
        observation_context=_observation_context(context),
        procedure_reported=_procedures(volume.sources[0]),
        imaging_measurements=groups,
        language_of_content_item_and_descendants=hd.sr.LanguageOfContentItemAndDescendants(codes.ENGLISH_US),
    )


def finish_document(
    volume: SourceImages,
    context: ResultContext,
    content: hd.sr.MeasurementReport,
    *,
    series: SeriesType,
    uids: tuple[str, str],
    evidence: Sequence[Dataset] = (),
) -> Dataset:
    """The document around the content. uids: of series and instance. evidence: beside the volume's images.

    highdicom is given the root without its children: it would copy them all and search them four times.
    """
    root = content[0]
    children = root.ContentSequence
    root.ContentSequence = children[:1]
    made = hd.sr.Comprehensive3DSR(
        evidence=[
            bare_header(volume.sources[0], volume, context),
            *(evidence_item(source, volume) for source in volume.sources[1:]),
            *evidence,
        ],
        content=root,
        series_instance_uid=uids[0],
        series_number=series.number,
        sop_instance_uid=uids[1],
        instance_number=len(context.predecessors) + 1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        is_final=False,
        is_verified=False,
        requested_procedures=requests(volume.sources[0]),
        previous_versions=_predecessors(volume, context) or None,
    )
    report = Dataset()
    report.update(made)
    report.ContentSequence = children
    stamp(report, volume, context, series)
    scheme = Dataset()
    scheme.CodingSchemeDesignator = codes.PRIVATE_DESIGNATOR
    scheme.CodingSchemeName = codes.PRIVATE_SCHEME_NAME
    scheme.CodingSchemeResponsibleOrganization = MANUFACTURER
    report.CodingSchemeIdentificationSequence = [scheme]
    return report


def code_item(name: Code, value: Code) -> hd.sr.CodeContentItem:
    """An evaluation of the whole report as a code."""
    return hd.sr.CodeContentItem(name, value, hd.sr.RelationshipTypeValues.CONTAINS)


def text_item(name: Code, words: str) -> hd.sr.TextContentItem:
    """The same in words: ASCII, which any character set of the input can hold."""
    return hd.sr.TextContentItem(name, words, hd.sr.RelationshipTypeValues.CONTAINS)


def site(lung: Lung) -> hd.sr.FindingSite:
    return hd.sr.FindingSite(anatomic_location=codes.LUNG, laterality=codes.LATERALITY[lung])


def qualitative_evaluations(items: Sequence[Dataset]) -> hd.sr.ContainerContentItem:
    contains = hd.sr.RelationshipTypeValues.CONTAINS
    container = hd.sr.ContainerContentItem(codes.QUALITATIVE_EVALUATIONS, relationship_type=contains)
    container.ContentSequence = hd.sr.ContentSequence(items)
    return container


def _observation_context(context: ResultContext) -> hd.sr.ObservationContext:
    """TID 1001: the observer is a device; the subject is the patient of the enclosing instance."""
    return hd.sr.ObservationContext(observer_device_context=device_observer(context))


def device_observer(context: ResultContext) -> hd.sr.ObserverContext:
    """TID 1004: the pipeline."""
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=device_uid(context),
        name=context.pipeline,
        manufacturer_name=MANUFACTURER,
        model_name=f"{context.pipeline} {context.pipeline_version}",
        serial_number=device_serial_number(context),
    )
    return hd.sr.ObserverContext(
        observer_type=hd.sr.CodedConcept("121007", "DCM", "Device"), observer_identifying_attributes=device
    )


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
    return found or [codes.IMAGING_PROCEDURE if _is_capture(source) else codes.CT_UNSPECIFIED]


def _is_capture(source: Dataset) -> bool:
    """Whether it is a picture, of which nothing tells how it came about."""
    return bool(source.SOPClassUID == SecondaryCaptureImageStorage)


def requests(source: Dataset) -> list[Dataset] | None:
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


def evidence_item(instance: Dataset, volume: SourceImages) -> Dataset:
    """An item of the evidence for an instance of the volume's study, an image or a result of the same job."""
    item = Dataset()
    item.StudyInstanceUID = volume.sources[0].StudyInstanceUID
    for keyword in ("SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID"):
        item.add(instance[keyword])
    return item


def _predecessors(volume: SourceImages, context: ResultContext) -> list[Dataset]:
    items = []
    for uid in context.predecessors:
        item = Dataset()
        item.StudyInstanceUID = volume.sources[0].StudyInstanceUID
        item.SeriesInstanceUID = report_series_uid(volume, context)
        item.SOPClassUID = Comprehensive3DSRStorage
        item.SOPInstanceUID = uid
        items.append(item)
    return items


def algorithm(model: ModelIdentity, *parameters: str) -> hd.sr.AlgorithmIdentification:
    """TID 4019 for a model: name, version, the hash of the file that was served, and how it was used."""
    described = [model.description] if model.description else []
    trained = [f"weights: {model.weights}"] if model.weights else []
    return identification(
        model.name, model.version, [f"sha256={model.sha256}", *described, *trained, *parameters]
    )


def pipeline_algorithm(context: ResultContext) -> hd.sr.AlgorithmIdentification:
    models = [f"model {m.name} version {m.version} sha256={m.sha256}" for m in context.models]
    return identification(
        context.pipeline, context.pipeline_version, [f"software version {context.software_version}", *models]
    )


def identification(name: str, version: str, parameters: Sequence[str]) -> hd.sr.AlgorithmIdentification:
    """TID 4019 of something learned."""
    return hd.sr.AlgorithmIdentification(
        name=name, version=version, parameters=parameters, family=codes.ARTIFICIAL_INTELLIGENCE
    )


def measurement(
    name: Code, value: float, unit: Code, decimals: int, **arguments: object
) -> hd.sr.Measurement:
    """TID 300. Numeric Value has ``decimals`` decimals for people, Floating Point Value all of ``value``."""
    encoded = hd.sr.Measurement(name=name, value=float(value), unit=unit, **arguments)
    text = f"{value:.{decimals}f}"
    encoded[0].MeasuredValueSequence[0].NumericValue = text if len(text) <= 16 else f"{value:.9e}"
    return encoded


def _image_items(sources: Sequence[Dataset]) -> list[Dataset]:
    """An item for each image: as highdicom makes it, all but the reference once for all."""
    made = hd.sr.ImageContentItem(
        *(codes.SOURCE, sources[0].SOPClassUID, sources[0].SOPInstanceUID),
        relationship_type=hd.sr.RelationshipTypeValues.CONTAINS,
    )
    items = []
    for source in sources:
        referenced, item = Dataset(), Dataset()
        referenced.ReferencedSOPClassUID = source.SOPClassUID
        referenced.ReferencedSOPInstanceUID = source.SOPInstanceUID
        item.update(made)
        item.add(DataElement("ReferencedSOPSequence", "SQ", [referenced]))  # not into the shared one
        items.append(item)
    return items


def _image_library(volume: SourceImages) -> hd.sr.ContainerContentItem:
    """TID 1600: the source images, with what they share (TID 1602, 1604) said once for the group.

    highdicom repeats 15 descriptors for every image, and needs attributes that enhanced CT keeps elsewhere.
    """
    source = volume.sources[0]
    acquired = hd.sr.RelationshipTypeValues.HAS_ACQ_CONTEXT
    contains = hd.sr.RelationshipTypeValues.CONTAINS
    group = hd.sr.ContainerContentItem(codes.IMAGE_LIBRARY_GROUP, relationship_type=contains)
    items: list[Dataset] = []
    if not _is_capture(source):
        items.append(hd.sr.CodeContentItem(codes.MODALITY, codes.COMPUTED_TOMOGRAPHY, acquired))
    if source.get("FrameOfReferenceUID"):
        items.append(
            hd.sr.UIDRefContentItem(codes.FRAME_OF_REFERENCE_UID, str(source.FrameOfReferenceUID), acquired)
        )
    numbers: list[tuple[Code, float, Code]] = [
        (codes.PIXEL_DATA_ROWS, int(source.Rows), codes.PIXELS),
        (codes.PIXEL_DATA_COLUMNS, int(source.Columns), codes.PIXELS),
    ]
    if isinstance(volume, Volume):  # a picture has no millimetres
        geometry = slice_geometry(volume)
        numbers += [
            (codes.HORIZONTAL_PIXEL_SPACING, geometry.pixel_spacing[1], codes.MILLIMETRE),
            (codes.VERTICAL_PIXEL_SPACING, geometry.pixel_spacing[0], codes.MILLIMETRE),
            (codes.SPACING_BETWEEN_SLICES, geometry.slice_spacing, codes.MILLIMETRE),
        ]
    for name, value, unit in numbers:
        items.append(hd.sr.NumContentItem(name, value, unit, relationship_type=acquired))
    # as elements: highdicom checks each item at every step up the tree
    group.add(DataElement("ContentSequence", "SQ", [*items, *_image_items(volume.sources)]))
    library = hd.sr.ContainerContentItem(codes.IMAGE_LIBRARY, relationship_type=contains)
    library.ContentSequence = hd.sr.ContentSequence([group])
    return library
