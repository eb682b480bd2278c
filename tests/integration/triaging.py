"""Helpers: chest_ct_triage over a real series, twice, with every object checked."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipelines.load import dicom_files
from pipelines.process import process
from pipelines.request import Request
from pipelines.results.validation import validate
from pipelines.triton import InferenceClient
from tests.shared_data import shared

SERIES = "chest_ct/lungdx_a0002_siemens_b40f"
WHEN = datetime(2026, 11, 20, tzinfo=UTC)


def triage_twice(url: str, folder: Path) -> dict[str, Any]:
    """Summary of the second of two runs, whose objects are alike and pass every validator."""
    paths = tuple(dicom_files(shared(SERIES)))
    made, summary = [], {}
    with InferenceClient(url, timeout_seconds=120.0) as inference:
        for name in ("first", "second"):
            out = folder / name
            out.mkdir()
            summary = process(Request("chest_ct_triage", paths, out, "9.9.9", WHEN), inference)
            made.append({path.name: path.read_bytes() for path in out.glob("*.dcm")})
    assert made[0] == made[1]
    assert sorted(made[0]) == ["triage_picture.dcm", "triage_report.dcm"]
    for path in out.glob("*.dcm"):
        said = validate(path)
        assert all(tool.ok for tool in said), said
    return summary


def check_means(summary: dict[str, Any]) -> None:
    """The case's estimates are the means of the key slices'."""
    keys = summary["key_slices"]
    assert 8 <= len(keys) <= 16
    for model, case in summary["estimates"].items():
        for name, p in case.items():
            assert p == pytest.approx(sum(key["estimates"][model][name] for key in keys) / len(keys))
        assert sum(case.values()) == pytest.approx(1.0, abs=1e-5)
