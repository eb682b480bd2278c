"""docs/adding-a-pipeline.md is true: its file, its line and its route make a pipeline that works."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import yaml
from pydicom import dcmread

from node.app import routes_of
from node.config import parse_config
from node.triton_server import EmbeddedTriton
from pipelines import lungs, registry
from pipelines.load import dicom_files, load_series
from pipelines.process import process
from pipelines.request import Request
from pipelines.results import codes
from pipelines.results.validation import validate
from pipelines.triton import InferenceClient
from pipelines.volume import Lung
from tests.shared_data import shared
from tests.unit.pipelines.results.test_report import groups, items

pytestmark = pytest.mark.integration

PAGE = (Path(__file__).parents[2] / "docs" / "adding-a-pipeline.md").read_text(encoding="utf-8")


def block(marker: str) -> str:
    """The code block after ``<!-- marker -->``."""
    found = re.search(rf"<!-- {re.escape(marker)} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None, marker
    return found[1]


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file under its name and the line in the registry, for one test."""
    path = tmp_path / "lung_volume.py"
    path.write_text(block("file: pipelines/lung_volume.py"), encoding="utf-8")
    line = ast.literal_eval("{" + block("line: pipelines/registry.py") + "}")
    ((_, module_name),) = line.items()
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module_name, module)
    spec.loader.exec_module(module)
    extended = MappingProxyType({**registry.PIPELINES, **line})
    monkeypatch.setattr(registry, "PIPELINES", extended)
    monkeypatch.setattr("node.app.PIPELINES", extended)


@pytest.mark.usefixtures("registered")
def test_the_route_is_accepted() -> None:
    pacs = {"type": "cstore", "ae_title": "PACS", "host": "pacs", "port": 104}
    raw = {"destinations": {"pacs": pacs}, "routes": yaml.safe_load(block("route"))}
    (route,) = routes_of(parse_config(raw, source="page", base=Path("/srv")))
    assert route.config.pipeline == "lung_volume"


@pytest.mark.usefixtures("registered")
def test_the_pipeline_measures_a_real_chest(triton: EmbeddedTriton, tmp_path: Path) -> None:
    paths = dicom_files(shared("chest_ct/lungdx_a0002_siemens_b40f"))
    made = []
    with InferenceClient(triton.url, timeout_seconds=120.0) as inference:
        for name in ("first", "second"):
            out = tmp_path / name
            out.mkdir()
            when = datetime(2026, 11, 20, tzinfo=UTC)
            request = Request("lung_volume", tuple(paths), out, "9.9.9", when)
            summary = process(request, inference)
            made.append((out / "report.dcm").read_bytes())
        volume = load_series(paths)
        labels = lungs.segment_lungs(volume, inference, inference.check(lungs.SPEC))
    assert made[0] == made[1]
    said = validate(out / "report.dcm")
    assert all(tool.ok for tool in said), said
    (group,) = groups(dcmread(out / "report.dcm"), "1501")
    for lung, measured in zip(Lung, items(group, codes.VOLUME.value), strict=True):
        ml = np.count_nonzero(labels == lung) * volume.voxel_volume_ml
        assert float(measured.MeasuredValueSequence[0].FloatingPointValue) == pytest.approx(ml)
        assert summary["lung_volume_ml"][lung.name.lower()] == pytest.approx(ml)
        (side,) = items(next(items(measured, "363698007")), "272741003")
        assert side.ConceptCodeSequence[0].CodeMeaning == lung.name.capitalize()
    assert set(summary) >= {"findings", "noisy_or", "case_type", "conclusion", "results", "models", "notes"}
