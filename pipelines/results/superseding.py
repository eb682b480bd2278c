"""What a result set supersedes, and the note that rejects it (IHE Imaging Object Change Management).

In: the folder of the result set that an earlier version of the series had.  Out: its objects, by encoding; a
Key Object Selection (TID 2010) titled (113001, DCM, "Rejected for Quality Reasons") that lists them. Of the
titles that IHE RAD TF-3 4.66.4.1.3 has, this one fits: the set was made of a series that wasn't whole.
113037 is for what endangers the patient, 113038 for a wrong worklist entry, 113039 for what is too old.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
from pydicom import Dataset, dcmread

from pipelines.encoding import DEFAULT, Encoding
from pipelines.request import SUMMARY
from pipelines.results import codes
from pipelines.results.document import device_observer, requests
from pipelines.results.identity import MANUFACTURER, SERIES_TYPES, result_uid, stamp
from pipelines.results.sources import bare_header
from pipelines.summary import objects_for
from pipelines.volume import ResultContext, SourceImages

#: roles whose series is the same in every version (``identity.report_series_uid``)
_REPORTS = ("report", "triage_report", "estimates_report")


@dataclass(frozen=True)
class Superseded:
    """One object of the earlier set; role: of its file's name."""

    role: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    modality: str


def read_superseded(
    folder: Path | None, encodings: Sequence[Encoding]
) -> dict[Encoding, tuple[Superseded, ...]]:
    """The earlier set's objects as a destination of each encoding got them; none if the folder is gone."""
    wanted = (DEFAULT, *encodings)
    if folder is None or not (folder / SUMMARY).is_file():
        return dict.fromkeys(wanted, ())
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    return {
        encoding: tuple(_superseded(folder / str(one["path"])) for one in objects_for(summary, encoding))
        for encoding in wanted
    }


def reports_of(objects: Sequence[Superseded]) -> tuple[str, ...]:
    """SOP Instance UIDs of the measurement reports among them."""
    return tuple(one.sop_instance_uid for one in objects if one.role in _REPORTS)


def build_rejection(
    volume: SourceImages, context: ResultContext, objects: Sequence[Superseded], encoding: Encoding
) -> hd.ko.KeyObjectSelectionDocument:
    """The note that rejects ``objects``, of a destination that got them in ``encoding``."""
    series = SERIES_TYPES["rejection"]
    evidence = [_evidence(one, volume, context) for one in objects]
    note = hd.ko.KeyObjectSelectionDocument(
        evidence=evidence,
        content=hd.ko.KeyObjectSelection(
            document_title=codes.concept(codes.REJECTED_FOR_QUALITY),
            referenced_objects=evidence,
            observer_device_context=device_observer(context),
            description="Superseded: instances of the series came later, and the analysis was made again.",
        ),
        series_instance_uid=result_uid(volume, context, f"rejection/series{encoding.suffix}"),
        series_number=series.number,
        sop_instance_uid=result_uid(volume, context, f"rejection/instance{encoding.suffix}"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        requested_procedures=requests(volume.sources[0]),
    )
    for item in note.ContentSequence:
        if item.ValueType in ("IMAGE", "COMPOSITE"):
            del item.ConceptNameCodeSequence  # TID 2010 rows 8 and 10 give them no purpose
    stamp(note, volume, context, series)
    return note


def _superseded(path: Path) -> Superseded:
    names = ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality"]
    header = dcmread(path, specific_tags=names, stop_before_pixels=True)
    return Superseded(path.name.partition(".")[0], *(str(header[name].value) for name in names))


def _evidence(one: Superseded, volume: SourceImages, context: ResultContext) -> Dataset:
    item = bare_header(volume.sources[0], volume, context)
    item.SOPClassUID, item.SOPInstanceUID = one.sop_class_uid, one.sop_instance_uid
    item.SeriesInstanceUID, item.Modality = one.series_instance_uid, one.modality
    if one.modality in ("SR", "KO"):  # those with pixels are referred to as images
        del item.Rows, item.Columns
    return item


def by_encoding(
    superseded: Mapping[Encoding, tuple[Superseded, ...]], encodings: Sequence[Encoding]
) -> dict[Encoding, tuple[str, ...]]:
    """Encoding -> the reports that its report supersedes (``ResultContext.encodings``)."""
    return {encoding: reports_of(superseded[encoding]) for encoding in encodings}
