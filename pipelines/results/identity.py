"""Who a result object is: its UIDs, series, study, equipment and dates.

In: a Volume or picture (source headers) and a ResultContext.  Out: UIDs, and ``stamp``, which every result
object passes through last, so that all of them say the same about patient, study, equipment and time.

UIDs are a function of (input SOP Instance UIDs, pipeline, pipeline version, models, role): a job that runs
twice makes the same set, and a PACS keeps one. Patient and study attributes are copied, never made up: a
Type 2 attribute that the input lacks is empty in the result (PS3.5 7.4.3).
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import highdicom
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from pipelines.results import codes
from pipelines.uids import derived_uid
from pipelines.volume import ResultContext, SourceImages

MANUFACTURER = "PACS inference node"
IMPLEMENTATION_CLASS_UID = UID("2.25.319485236209146105216937093047180371842")


@dataclass(frozen=True)
class SeriesType:
    """One result series of a job. ``number`` is its Series Number (0020,0011)."""

    role: str
    modality: str
    number: int
    description: str


#: Every result is its own series: a viewer shows them as separate thumbnails, and each SOP class alone.
#: The numbers are far above what scanners use, and ordered as a reader should open them.
SERIES_TYPES: Mapping[str, SeriesType] = {
    series.role: series
    for series in (
        SeriesType("picture", "OT", 9901, "AI result picture"),
        SeriesType("report", "SR", 9902, "AI measurement report"),
        SeriesType("segmentation", "SEG", 9903, "AI lung and lesion segmentation"),
        SeriesType("rotation", "OT", 9904, "AI 3D rotation"),
        SeriesType("montage", "OT", 9905, "AI montage (3D rendering unavailable)"),
        SeriesType("inpainted", "OT", 9906, "AI key slices as if without lesions"),
        SeriesType("rejection", "KO", 9907, "AI results superseded"),
        SeriesType("no_result", "SR", 9908, "AI not performed, reason"),
        SeriesType("no_result_picture", "OT", 9909, "AI not performed"),
        SeriesType("triage_picture", "OT", 9911, "AI triage picture"),
        SeriesType("triage_report", "SR", 9912, "AI triage report"),
        SeriesType("estimates_picture", "OT", 9913, "AI estimates of a picture"),
        SeriesType("estimates_report", "SR", 9914, "AI report of a picture"),
    )
}

# PS3.3 C.7.1.1, C.7.1.3 (Patient IE) and C.7.2.1, C.7.2.2, C.7.2.3 (Study IE)
_PATIENT_AND_STUDY = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence"),
    *("TypeOfPatientID", "PatientBirthDate", "PatientBirthTime", "PatientSex", "QualityControlSubject"),
    *("PatientBirthDateInAlternativeCalendar", "PatientDeathDateInAlternativeCalendar"),
    *("PatientAlternativeCalendar", "ReferencedPatientPhotoSequence", "ReferencedPatientSequence"),
    *("OtherPatientNames", "OtherPatientIDsSequence", "EthnicGroup", "PatientComments"),
    *("PatientSpeciesDescription", "PatientSpeciesCodeSequence", "PatientBreedDescription"),
    *("PatientBreedCodeSequence", "BreedRegistrationSequence", "StrainDescription", "ResponsiblePerson"),
    *("ResponsiblePersonRole", "ResponsibleOrganization", "PatientIdentityRemoved"),
    *(
        "DeidentificationMethod",
        "DeidentificationMethodCodeSequence",
        "SourcePatientGroupIdentificationSequence",
    ),
    *("ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName"),
    *("ClinicalTrialSiteID", "ClinicalTrialSiteName", "ClinicalTrialSubjectID"),
    *("ClinicalTrialSubjectReadingID", "ClinicalTrialProtocolEthicsCommitteeName"),
    *("ClinicalTrialProtocolEthicsCommitteeApprovalNumber", "ClinicalTrialTimePointID"),
    *("ClinicalTrialTimePointDescription", "LongitudinalTemporalOffsetFromEvent"),
    *("LongitudinalTemporalEventType", "ConsentForClinicalTrialUseSequence"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
    *("ReferringPhysicianIdentificationSequence", "ConsultingPhysicianName", "StudyID", "AccessionNumber"),
    *("IssuerOfAccessionNumberSequence", "StudyDescription", "PhysiciansOfRecord"),
    *("PhysiciansOfRecordIdentificationSequence", "NameOfPhysiciansReadingStudy"),
    *("PhysiciansReadingStudyIdentificationSequence", "RequestingServiceCodeSequence"),
    *("ReferencedStudySequence", "ProcedureCodeSequence", "ReasonForPerformedProcedureCodeSequence"),
    *("AdmittingDiagnosesDescription", "AdmittingDiagnosesCodeSequence", "PatientAge", "PatientSize"),
    *("PatientWeight", "PatientBodyMassIndex", "MedicalAlerts", "Allergies", "SmokingStatus"),
    *("PregnancyStatus", "PatientSexNeutered", "PatientState", "Occupation", "AdditionalPatientHistory"),
    *("AdmissionID", "IssuerOfAdmissionIDSequence", "ServiceEpisodeID", "ServiceEpisodeDescription"),
    *("IssuerOfServiceEpisodeIDSequence", "ReasonForVisit", "ReasonForVisitCodeSequence"),
)
_TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
)
_EQUIPMENT = (
    *("Manufacturer", "ManufacturerModelName", "SoftwareVersions", "DeviceSerialNumber", "StationName"),
    *("InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName"),
)


def result_uid(volume: SourceImages, context: ResultContext, role: str) -> UID:
    """The UID of one thing that a job makes; ``role`` names it (``seg/instance``, ``region/3/tracking``)."""
    return derived_uid(["inputs", volume.instance_uids, *_maker(context), role], context.uid_root)


def report_series_uid(volume: SourceImages, context: ResultContext) -> UID:
    """The Series Instance UID of the report: one series for every version of the input series.

    A superseding report must name its predecessor's series (PS3.3 C.17.2.1, Type 1), and only SOP Instance
    UIDs come down in ``ResultContext.predecessors``. So this UID leaves out what changes between versions:
    the list of instances and the models.
    """
    return derived_uid(["report-series", volume.series_instance_uid, context.pipeline], context.uid_root)


def device_uid(context: ResultContext) -> UID:
    """The Device Observer UID: this pipeline with these models, wherever it runs."""
    return derived_uid(["device", *_maker(context)], context.uid_root)


def _maker(context: ResultContext) -> list[object]:
    models = sorted([model.name, model.version, model.sha256] for model in context.models)
    return [context.pipeline, context.pipeline_version, models]


def series_description(volume: SourceImages, series: SeriesType) -> str:
    """Series Description (LO, at most 64 characters), with the source series' number if it has one."""
    number = volume.sources[0].get("SeriesNumber")
    return series.description if number is None else f"{series.description}, series {number}"[:64]


def device_serial_number(context: ResultContext) -> str:
    """Equal for equal pipeline, version and models; 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(_maker(context)).encode("utf-8")).hexdigest()[:16]


def stamp(dataset: Dataset, volume: SourceImages, context: ResultContext, series: SeriesType) -> None:
    """Set everything that all results share, overwriting what a library put there.

    Expects SOPClassUID, SOPInstanceUID and SeriesInstanceUID to be set. Dates are ``content_datetime`` as
    it is written; give it in the site's zone (or in the zone of the input's TimezoneOffsetFromUTC).
    """
    source = volume.sources[0]
    _copy_patient_and_study(source, dataset)
    dataset.Modality = series.modality
    dataset.SeriesNumber = series.number
    dataset.SeriesDescription = series_description(volume, series)
    if series.modality not in ("SR", "KO"):
        dataset.BodyPartExamined = source.get("BodyPartExamined") or "CHEST"
        dataset.ImageLaterality = "U"  # the chest is unpaired; without it Laterality (Type 2C) is asked for
    date, time = context.content_datetime.strftime("%Y%m%d"), context.content_datetime.strftime("%H%M%S")
    for kind in ("InstanceCreation", "Series", "Content"):
        setattr(dataset, f"{kind}Date", date)
        setattr(dataset, f"{kind}Time", time)
    for keyword in _EQUIPMENT:
        if keyword in dataset:
            del dataset[keyword]
    dataset.Manufacturer = MANUFACTURER
    dataset.ManufacturerModelName = context.pipeline[:64]
    dataset.SoftwareVersions = [context.software_version[:64], f"pipeline {context.pipeline_version}"[:64]]
    dataset.DeviceSerialNumber = device_serial_number(context)
    dataset.ContributingEquipmentSequence = _contributing_equipment(source, context)
    dataset.file_meta = _file_meta(dataset, context)
    dataset.preamble = b"\0" * 128


def _copy_patient_and_study(source: Dataset, dataset: Dataset) -> None:
    # Elements are copied, not values: no second validation of what a scanner once wrote, no reformatting.
    for keyword in (*_PATIENT_AND_STUDY, "SpecificCharacterSet", "TimezoneOffsetFromUTC"):
        if keyword in dataset:
            del dataset[keyword]
        if keyword in source:
            dataset.add(copy.deepcopy(source[keyword]))
    for keyword in _TYPE_2:
        if keyword not in dataset:
            setattr(dataset, keyword, None)


def _contributing_equipment(source: Dataset, context: ResultContext) -> list[Dataset]:
    """PS3.3 C.12.1 Contributing Equipment Sequence: the scanner, each model, and the encoding library."""
    items = []
    if source.get("Manufacturer"):
        scanner = Dataset()
        for keyword in _EQUIPMENT:
            if keyword in source:
                scanner.add(copy.deepcopy(source[keyword]))
        scanner.PurposeOfReferenceCodeSequence = [codes.concept(codes.ACQUISITION_EQUIPMENT)]
        scanner.ContributionDescription = "Acquisition of the source images"
        items.append(scanner)
    for model in context.models:
        items.append(_processor(MANUFACTURER, model.name, model.version, f"Model, sha256 {model.sha256}"))
    items.append(
        _processor(
            "Highdicom open-source contributors",
            "highdicom",
            highdicom.__version__,
            "Software library used to encode this instance",
        )
    )
    return items


def _processor(manufacturer: str, model_name: str, version: str, description: str) -> Dataset:
    item = Dataset()
    item.Manufacturer = manufacturer
    item.ManufacturerModelName = model_name[:64]
    item.SoftwareVersions = version[:64]
    item.PurposeOfReferenceCodeSequence = [codes.concept(codes.PROCESSING_EQUIPMENT)]
    item.ContributionDescription = description
    return item


def _file_meta(dataset: Dataset, context: ResultContext) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    coded = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID", ExplicitVRLittleEndian)
    meta.TransferSyntaxUID = coded  # as its pixels are
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = f"PACSNODE_{context.software_version}"[:16]
    return meta
