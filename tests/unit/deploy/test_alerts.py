"""The alerts: promtool's own tests of them, a section of the runbook each, and metrics that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from node.metrics import Metrics
from node.receive.metrics import ReceiveMetrics

ROOT = Path(__file__).parents[3]
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
TESTS = Path(__file__).parent / "alerts_test.yml"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
]


def _promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["/usr/bin/promtool", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", ROOT / "deploy/prometheus/prometheus.yml"),
        ("check", "rules", ALERTS),
        ("test", "rules", TESTS),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool_is_content(arguments: tuple[object, ...]) -> None:
    done = _promtool(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_on_and_off() -> None:
    cases = [case for test in yaml.safe_load(TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    names = {rule["alert"] for rule in RULES}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == names


def test_every_alert_has_its_section_in_the_runbook() -> None:
    text = (ROOT / "docs/runbook.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert list(sections) == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"
        for part in ("**Meaning.**", "**Check.**", "**Remedy.**"):
            assert part in sections[rule["alert"]], (rule["alert"], part)


def test_alerts_ask_for_metrics_and_labels_that_exist() -> None:
    known: dict[str, set[str]] = {}
    for metrics in (Metrics("0").registry, ReceiveMetrics().registry):
        for collector in list(metrics._collector_to_names):
            for name in metrics._collector_to_names[collector]:
                known[name] = {*getattr(collector, "_labelnames", ()), "le", name}  # an Enum has its own name
    for rule in RULES:
        for name, matchers in re.findall(r"\b(pacsnode_\w+)(?:\{([^}]*)\})?", rule["expr"]):
            assert name in known, f"{rule['alert']}: no metric {name}"
            labels = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", matchers))
            assert labels <= known[name], f"{rule['alert']}: {name} has no label {labels - known[name]}"
