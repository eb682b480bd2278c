"""Findings -> the result set of a job: every DICOM object that goes back to the PACS.

In: a Volume, its Findings and a ResultContext.  Out: a ResultSet in memory, and its files on disk.
The same inputs give the same bytes.

    identity.py      UIDs, series, patient and study, equipment, dates
    sources.py       the input series as results refer to it
    codes.py         every coded concept
    segmentation.py  SEG          report.py   TID 1500 SR          capture.py   secondary captures
    validation.py    checks of finished files with whatever validators are installed
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom import Dataset, dcmwrite

from pipelines.errors import RenderingUnavailable
from pipelines.picture import result_picture
from pipelines.render import montage, render_rotation
from pipelines.results.capture import build_capture
from pipelines.results.report import build_report
from pipelines.results.segmentation import build_segmentation
from pipelines.volume import Findings, ResultContext, Volume

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ResultSet:
    """The DICOM objects of one job.

    objects: (role, dataset), in the order in which to send them: what others refer to comes first.
    notes: what a reader should know about how it was made (a missing 3D view and why).
    """

    objects: tuple[tuple[str, Dataset], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ResultEntry:
    """One written object, as ``summary.json`` lists it."""

    sop_class_uid: str
    sop_instance_uid: str
    modality: str
    path: Path


def build_result_set(
    volume: Volume, findings: Findings, context: ResultContext, *, progress: Progress | None = None
) -> ResultSet:
    """Compose segmentation, report, 3D rotation (or a montage where 3D can't be drawn) and result picture.

    progress: called with the name of each part before it is made.
    Raises SeriesRefused when the findings can't be placed on the source images.
    """
    step = progress or (lambda _name: None)
    with ThreadPoolExecutor(1) as pool:  # VTK leaves the interpreter to others while it draws
        drawing = pool.submit(render_rotation, volume, findings, clinical_use=context.clinical_use)
        step("segmentation")
        segmentation = build_segmentation(volume, findings, context)
        step("report")
        report = build_report(volume, findings, segmentation, context)
        step("rotation")
    notes: tuple[str, ...] = ()
    try:
        view = ("rotation", build_capture(drawing.result(), volume, context, role="rotation"))
    except RenderingUnavailable as error:
        notes = (f"No 3D view, slices instead: {error}",)
        tiles = montage(volume, findings, clinical_use=context.clinical_use)
        view = ("montage", build_capture(tiles, volume, context, role="montage"))
    step("picture")
    page = result_picture(volume, replace(findings, notes=(*findings.notes, *notes)), context)
    picture = build_capture(page, volume, context, role="picture")
    return ResultSet((("segmentation", segmentation), ("report", report), view, ("picture", picture)), notes)


def write_result_set(result_set: ResultSet, folder: Path) -> list[ResultEntry]:
    """Write each object to ``folder/<role>.dcm``: whole or not at all, durable when this returns.

    Files from an earlier run are replaced; the folder is made if it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for role, dataset in result_set.objects:
        path = folder / f"{role}.dcm"
        partial = folder / f".{role}.dcm.partial"
        with partial.open("wb") as file:
            dcmwrite(file, dataset, enforce_file_format=True)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        entries.append(
            ResultEntry(str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), str(dataset.Modality), path)
        )
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return entries


__all__ = ["ResultEntry", "ResultSet", "build_result_set", "write_result_set"]
