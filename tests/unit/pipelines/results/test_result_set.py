"""The whole set: complete, identical when made again, and still there when 3D is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines import results
from pipelines.errors import RenderingUnavailable
from pipelines.results import build_result_set, write_result_set
from tests.unit.pipelines.results.synthetic import chest, context

ROLES = ["segmentation", "report", "rotation", "picture", "inpainted"]


@pytest.fixture
def quick_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "render_rotation", lambda *_, **__: np.zeros((2, 16, 16, 3), np.uint8))


@pytest.mark.usefixtures("quick_rotation")
def test_files_are_byte_identical_when_made_again(tmp_path: Path) -> None:
    written = []
    for name in ("first", "second"):
        volume, findings = chest("oblique")
        entries = write_result_set(build_result_set(volume, findings, context()), tmp_path / name)
        written.append({entry.path.name: entry.path.read_bytes() for entry in entries})
    assert written[0] == written[1]
    assert sorted(written[0]) == [f"{role}.dcm" for role in sorted(ROLES)]


@pytest.mark.usefixtures("quick_rotation")
def test_each_result_is_in_the_study_and_in_its_own_series(tmp_path: Path) -> None:
    volume, findings = chest()
    steps: list[str] = []
    result_set = build_result_set(volume, findings, context(), progress=steps.append)
    assert sorted(steps) == sorted(ROLES)
    objects = [dataset for _, dataset in result_set.objects]
    assert {o.StudyInstanceUID for o in objects} == {volume.sources[0].StudyInstanceUID}
    series = {o.SeriesInstanceUID for o in objects} | {volume.series_instance_uid}
    assert len(series) == len(objects) + 1
    assert len({o.SOPInstanceUID for o in objects}) == len(objects)
    entries = write_result_set(result_set, tmp_path)
    assert [entry.modality for entry in entries] == ["SEG", "SR", "OT", "OT", "OT"]
    assert not list(tmp_path.glob(".*"))


def test_without_3d_the_set_has_a_montage_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: object, **__: object) -> None:
        raise RenderingUnavailable("no EGL here")

    monkeypatch.setattr(results, "render_rotation", unavailable)
    volume, findings = chest()
    result_set = build_result_set(volume, findings, context())
    assert [role for role, _ in result_set.objects] == [
        *("segmentation", "report", "montage", "picture", "inpainted")
    ]
    assert "no EGL here" in result_set.notes[0]
