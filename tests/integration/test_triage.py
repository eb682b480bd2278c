"""chest_ct_triage over real CT with the shipped models, as a library and by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from pydicom import dcmread

from node.__main__ import main
from node.triton_server import EmbeddedTriton
from tests.integration.triaging import SERIES, check_means, triage_twice
from tests.shared_data import shared
from tests.unit.pipelines.results.test_report import groups

pytestmark = pytest.mark.integration


def test_triage_without_fusion(triton: EmbeddedTriton, tmp_path: Path) -> None:
    summary = triage_twice(triton.url, tmp_path)
    check_means(summary)
    assert set(summary["estimates"]) == {"pneumonia_class"}
    assert set(summary["models"]) == {"lungs", "pneumonia_class"}
    assert summary["notes"] == ["Without model fusion version 1, which isn't served here."]
    estimates = summary["estimates"]["pneumonia_class"]
    assert summary["case_type"] == max(estimates, key=lambda name: estimates[name])
    report = dcmread(tmp_path / "second" / "triage_report.dcm")
    assert len(groups(report, "1501")) == 1 + len(summary["key_slices"])
    texts = [element.value for element in report.iterall() if element.keyword == "TextValue"]
    assert summary["conclusion"] in texts and summary["notes"][0] in texts
    normal = [key["estimates"]["pneumonia_class"]["normal"] for key in summary["key_slices"]]
    assert max(normal) - min(normal) > 0.1  # some slices show the patient's tumour


def test_the_command_line_and_check_know_it(
    triton: EmbeddedTriton, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "node.yaml"
    route = {
        "name": "triage",
        "pipeline": "chest_ct_triage",
        "when": {"fact": "modality", "equals": "CT"},
        "destinations": ["folder"],
    }
    destinations = {"folder": {"type": "folder", "path": str(tmp_path / "outbox")}}
    written = {"triton": {"url": triton.url}, "destinations": destinations, "routes": [route]}
    config.write_text(yaml.safe_dump(written))
    out = tmp_path / "out"
    asked = ["--pipeline", "chest_ct_triage", "--out", str(out), "--config", str(config)]
    with pytest.raises(SystemExit) as ended:
        main(["process", str(shared(SERIES)), *asked])
    assert not ended.value.code
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    said = capsys.readouterr().out
    assert summary["conclusion"] in said
    assert f"note: {summary['notes'][0]}" in said
    assert {path.name for path in out.iterdir()} == {
        *("summary.json", "triage_report.dcm", "triage_picture.dcm")
    }
    assert dcmread(out / "triage_report.dcm").SeriesDescription.startswith("AI triage report")
    with pytest.raises(SystemExit) as ended:
        main(["check", "--config", str(config)])
    said = capsys.readouterr().out
    assert not ended.value.code, said
    assert "model pneumonia_class version 1: served" in said
    assert "model fusion version 1: not served; pipelines do without it" in said
