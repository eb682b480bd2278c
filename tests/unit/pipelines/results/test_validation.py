"""The validators' front end says no when a validator does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.results import validation
from pipelines.results.capture import build_capture
from pipelines.results.validation import validate
from tests.unit.pipelines.results.synthetic import chest, context


def test_a_file_that_isnt_dicom_is_not_ok(tmp_path: Path) -> None:
    path = tmp_path / "x.dcm"
    path.write_bytes(b"nonsense")
    (result,) = validate(path)
    assert not result.ok
    assert result.messages[0].startswith("Error:")


def test_a_missing_tool_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "_find", lambda _name: None)
    volume, _ = chest()
    path = tmp_path / "x.dcm"
    build_capture(np.zeros((8, 8, 3), np.uint8), volume, context(), role="picture").save_as(
        path, enforce_file_format=True
    )
    assert [result.tool for result in validate(path)] == ["pydicom and highdicom"]


@pytest.mark.skipif(validation._find("dciodvfy") is None, reason="dciodvfy (dicom3tools) isn't installed")
def test_an_invalid_object_is_found_by_an_independent_validator(tmp_path: Path) -> None:
    volume, _ = chest()
    dataset = build_capture(np.zeros((8, 8, 3), np.uint8), volume, context(), role="picture")
    del dataset.ConversionType
    path = tmp_path / "x.dcm"
    dataset.save_as(path, enforce_file_format=True)
    said = {result.tool: result for result in validate(path)}
    assert not said["dciodvfy"].ok
    assert any("ConversionType" in message for message in said["dciodvfy"].messages)
