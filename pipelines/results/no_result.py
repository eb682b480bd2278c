"""Why there is no result, as objects in the study: a report, and a picture for viewers that show no SR.

In: the headers of whatever instances can be read, a ResultContext, and the recorded reason.  Out: a
ResultSet. No geometry is needed: often that is what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from pipelines.drawing import palette
from pipelines.drawing.page import Page
from pipelines.errors import SeriesRefused
from pipelines.instance import MALFORMED
from pipelines.results import codes
from pipelines.results.capture import build_capture
from pipelines.results.document import (
    begin_content,
    code_item,
    finish_document,
    qualitative_evaluations,
    text_item,
)
from pipelines.results.identity import SERIES_TYPES, result_uid
from pipelines.results.result_set import ResultSet
from pipelines.volume import ResultContext, Volume

Kind = Literal["report", "picture", "both"]
_IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")


def read_headers(paths: Sequence[Path]) -> Volume:
    """A volume without voxels, of the instances whose headers can be read, by SOP Instance UID.

    Raises SeriesRefused (unreadable_instance) when there are none.
    """
    headers: list[Dataset] = []
    for path in paths:
        try:
            header = dcmread(path, stop_before_pixels=True)
            if all(header.get(name) for name in _IDENTITY):
                headers.append(header)
        except (OSError, InvalidDicomError, *MALFORMED):
            continue
    if not headers:
        raise SeriesRefused("no instance's header can be read", code="unreadable_instance")
    headers.sort(key=lambda header: str(header.SOPInstanceUID))
    return Volume(np.zeros((0, 0, 0), np.int16), np.eye(4), tuple(headers), ())


def build_no_result(
    volume: Volume, context: ResultContext, *, code: str, reason: str, kind: Kind
) -> ResultSet:
    """code, reason: as the job records them; the reason is repeated in the same words.

    Instances for another reason have other UIDs.
    """
    words = reason.encode("ascii", "replace").decode("ascii")  # any character set of the input holds it
    objects: list[tuple[str, Dataset]] = []
    role = f"no-result/{code}/{words}"
    if kind in ("report", "both"):
        objects.append(("no_result", _report(volume, context, code, words, role)))
    if kind in ("picture", "both"):
        page = _page(context, code, words)
        picture = build_capture(page, volume, context, role="no_result_picture")
        picture.SOPInstanceUID = result_uid(volume, context, f"{role}/picture")
        picture.file_meta.MediaStorageSOPInstanceUID = picture.SOPInstanceUID
        objects.append(("no_result_picture", picture))
    return ResultSet(tuple(objects))


def _report(volume: Volume, context: ResultContext, code: str, words: str, role: str) -> Dataset:
    """TID 1500 with nothing but Qualitative Evaluations (row 12)."""
    tracking = hd.sr.TrackingIdentifier(uid=result_uid(volume, context, f"{role}/none"), identifier="None")
    # highdicom wants a measurement; the template doesn't (rows 6, 10, 12: one of them)
    content = begin_content(volume, context, [hd.sr.MeasurementsAndQualitativeEvaluations(tracking)])
    children = [item for item in content[0].ContentSequence if item.name != codes.IMAGING_MEASUREMENTS]
    evaluations = [
        code_item(codes.PERFORMED, codes.NOT_PERFORMED),
        text_item(codes.CONCLUSION, f"AI not performed: {words}"),
        text_item(codes.COMMENT, f"Reason code: {code}"),
    ]
    content[0].ContentSequence = hd.sr.ContentSequence([qualitative_evaluations(evaluations), *children])
    return finish_document(
        volume,
        context,
        content,
        series=SERIES_TYPES["no_result"],
        uids=(
            result_uid(volume, context, "no-result/series"),
            result_uid(volume, context, f"{role}/report"),
        ),
    )


def _page(context: ResultContext, code: str, words: str) -> NDArray[np.uint8]:
    page = Page(height=1600)
    page.header("No AI result", context.pipeline, clinical_use=context.clinical_use)
    page.paragraph(f"AI not performed: {words}", 28, fill=palette.WARNING)  # a UID fits a line
    page.paragraph(f"Reason code: {code}", 26)
    page.paragraph("The images were not analysed; nothing follows from this for the patient.", 26)
    page.paragraph(
        f"{context.pipeline} {context.pipeline_version}, software {context.software_version}, "
        f"{context.content_datetime:%Y-%m-%d %H:%M}",
        21,
        fill=palette.MUTED,
    )
    return page.cropped()
