"""A study as an archive holds it: CT images with known lesions, and the result set made of them.

In: what ``synthetic.chest`` takes.  Out: Part 10 files, and the volume and findings that they were made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from pipelines import results
from pipelines.estimates import Estimates
from pipelines.render import render_rotation
from pipelines.results import ResultSet, build_result_set, write_result_set
from pipelines.results.report import build_report
from pipelines.results.segmentation import build_segmentation
from pipelines.results.triage import build_triage_results
from pipelines.volume import Findings, Volume
from tests.unit.pipelines.estimates import estimates_of
from tests.unit.pipelines.results.synthetic import chest, context
from tests.unit.pipelines.test_process import write

#: Enough to turn, little enough to load in a moment
ROTATION_FRAMES, ROTATION_SIZE = 4, 256
#: Fine enough for edges to be seen on a screen; 8 mm slices
GRID = {"shape": (24, 192, 224), "spacing": (8.0, 1.3, 1.3)}
#: What a viewer shows first: lung white to black over these HU
WINDOW = {"WindowCenter": -600, "WindowWidth": 1500}


@dataclass(frozen=True)
class Study:
    """images: the CT, a file a slice.  results: name of each result ("segmentation", "report", …) -> file."""

    volume: Volume
    findings: Findings
    images: tuple[Path, ...]
    results: dict[str, Path]

    @property
    def uid(self) -> str:
        return str(self.volume.sources[0].StudyInstanceUID)

    @property
    def files(self) -> list[Path]:
        return [*self.images, *self.results.values()]


def write_study(folder: Path, number: int = 1, *, pictures: bool = True, **arguments: object) -> Study:
    """Make images and results of a synthetic chest; ``arguments`` are those of ``chest``.

    number: of the study; its UIDs, and so those of the results, are those of no other number.
    pictures: without them, segmentation and report only.
    """
    volume, findings = chest(**_arguments(number, arguments))  # type: ignore[arg-type]
    _name_instances(volume)
    made = _all_results(volume, findings) if pictures else _objects(volume, findings)
    entries = write_result_set(made, folder / "results")
    paths = {entry.path.stem: entry.path for entry in entries}
    return Study(volume, findings, write(volume, folder / "images"), paths)


def write_triage_study(folder: Path, number: int, **arguments: object) -> tuple[Study, Estimates]:
    """The same with the results of ``chest_ct_triage``, whose numbers are known."""
    volume, estimates = estimates_of(**_arguments(number, arguments))  # type: ignore[arg-type]
    _name_instances(volume)
    _, findings = chest(**_arguments(number, arguments))  # type: ignore[arg-type]
    made = build_triage_results(volume, estimates, context(pipeline="chest_ct_triage"))
    paths = {entry.path.stem: entry.path for entry in write_result_set(made, folder / "results")}
    return Study(volume, findings, write(volume, folder / "images"), paths), estimates


def _arguments(number: int, arguments: dict[str, object]) -> dict[str, object]:
    uid = f"1.2.3.{number}"
    uids = {"StudyInstanceUID": uid, "SeriesInstanceUID": f"{uid}.1", "FrameOfReferenceUID": f"{uid}.2"}
    return {**GRID, **WINDOW, **uids, **arguments}


def _name_instances(volume: Volume) -> None:
    for source in volume.sources:
        source.SOPInstanceUID = f"{source.SeriesInstanceUID}.{source.InstanceNumber}"


def _objects(volume: Volume, findings: Findings) -> ResultSet:
    segmentation = build_segmentation(volume, findings, context())
    report = build_report(volume, findings, segmentation, context())
    return ResultSet((("segmentation", segmentation), ("report", report)))


def _all_results(volume: Volume, findings: Findings) -> ResultSet:
    with pytest.MonkeyPatch.context() as patch:
        small = partial(render_rotation, frames=ROTATION_FRAMES, size=ROTATION_SIZE)
        patch.setattr(results, "render_rotation", small)
        return build_result_set(volume, findings, context())
