"""Findings -> the result set of a job: every DICOM object that goes back to the PACS.

In: a Volume, its Findings and a ResultContext.  Out: a ResultSet in memory, and its files on disk.
The same inputs give the same bytes.

    identity.py      UIDs, series, patient and study, equipment, dates
    result_set.py    several objects, and writing them to files
    sources.py       the input series as results refer to it
    codes.py         every coded concept
    segmentation.py  SEG          report.py   TID 1500 SR          capture.py   secondary captures
    frames.py        the segmentation's frames      document.py  what all reports share
    sequences.py     sequences encoded ahead of pydicom
    narrative.py     the case in words            outlines.py  regions as polygons on their key images
    superseding.py   what a set supersedes, and the note that rejects it
    no_result.py     why there is no result
    validation.py    checks of finished files with whatever validators are installed (pixelmed.py: Java's)
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from pydicom import Dataset

from pipelines.encoding import Encoding
from pipelines.errors import RenderingUnavailable
from pipelines.inpainted_picture import inpainted_picture
from pipelines.picture import result_picture
from pipelines.render import montage, render_rotation
from pipelines.results.capture import build_capture
from pipelines.results.report import build_report
from pipelines.results.result_set import ResultEntry, ResultSet, write_result_set
from pipelines.results.segmentation import build_segmentation
from pipelines.volume import Findings, ResultContext, Volume

Progress = Callable[[str], None]


def build_result_set(
    volume: Volume, findings: Findings, context: ResultContext, *, progress: Progress | None = None
) -> ResultSet:
    """Compose segmentation, report, 3D rotation (or a montage where 3D can't be drawn), result picture and,
    where there are regions, key slices as if without them.

    progress: called with the name of each part before it is made.
    Raises SeriesRefused when the findings can't be placed on the source images.
    """
    step = progress or (lambda _name: None)
    with ThreadPoolExecutor(1) as pool:  # VTK leaves the interpreter to others while it draws
        drawing = pool.submit(_view, volume, findings, context)
        step("segmentation")
        segmentation = build_segmentation(volume, findings, context)
        step("report")
        report = build_report(volume, findings, segmentation, context)
        variants = tuple(
            (one, _encoded(volume, findings, replace(context, predecessors=before), one))
            for one, before in context.encodings.items()
        )
        step("picture")
        picture = _picture(volume, findings, context)
        captures = [("picture", picture)]
        if findings.inpainted:
            step("inpainted")
            drawn = inpainted_picture(volume, findings, context)
            captures.append(("inpainted", build_capture(drawn, volume, context, role="inpainted")))
        step("rotation")
        view, notes = drawing.result()
    if notes:  # the picture says it, too
        captures[0] = (
            "picture",
            _picture(volume, replace(findings, notes=(*findings.notes, *notes)), context),
        )
    objects = (("segmentation", segmentation), ("report", report), view, *captures)
    return ResultSet(objects, notes, variants)


def _encoded(
    volume: Volume, findings: Findings, context: ResultContext, encoding: Encoding
) -> tuple[tuple[str, Dataset], ...]:
    """The segmentation in another encoding, and the report that refers to it."""
    segmentation = build_segmentation(volume, findings, context, encoding)
    report = build_report(volume, findings, segmentation, context, encoding)
    return ("segmentation", segmentation), ("report", report)


def _view(
    volume: Volume, findings: Findings, context: ResultContext
) -> tuple[tuple[str, Dataset], tuple[str, ...]]:
    """The 3D rotation, or where it can't be drawn a montage, and a note on why."""
    try:
        loop = render_rotation(volume, findings, clinical_use=context.clinical_use)
    except RenderingUnavailable as error:
        tiles = montage(volume, findings, clinical_use=context.clinical_use)
        montage_capture = build_capture(tiles, volume, context, role="montage")
        return ("montage", montage_capture), (f"No 3D view, slices instead: {error}",)
    return ("rotation", build_capture(loop, volume, context, role="rotation")), ()


def _picture(volume: Volume, findings: Findings, context: ResultContext) -> Dataset:
    return build_capture(result_picture(volume, findings, context), volume, context, role="picture")


__all__ = ["ResultEntry", "ResultSet", "build_result_set", "write_result_set"]
