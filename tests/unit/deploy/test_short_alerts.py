"""Shortening alerts changes their durations, all of them, and nothing else."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.short_alerts import ALERTS, shortened, shorter

_LONG = re.compile(r"(?<![\w.])\d+[smhd]\b")
_SHORT = re.compile(r"(?<![\w.])\d+ms\b")


def rules(text: str) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def test_only_durations_change() -> None:
    text = ALERTS.read_text()
    for long, short in zip(rules(text), rules(shortened(text)), strict=True):
        assert _LONG.sub("D", long["expr"]) == _SHORT.sub("D", short["expr"])
        assert not _LONG.search(short["expr"])
        assert long.keys() == short.keys()
        assert {**long, "expr": "", "for": ""} == {**short, "expr": "", "for": ""}
        if "for" in short:
            assert _SHORT.fullmatch(short["for"])


@pytest.mark.parametrize(
    ("long", "short"),
    [
        ("increase(x[6h]) > 0", "increase(x[15000ms]) > 0"),
        ("x unless x offset 10m", "x unless x offset 5000ms"),
        ("predict_linear(x[6h], 86400) < 14 * 86400", "predict_linear(x[15000ms], 86400) < 14 * 86400"),
        ('x{y="10m"} > 20e9', 'x{y="10m"} > 20e9'),
    ],
)
def test_an_expression(long: str, short: str) -> None:
    assert shorter(long) == short


def test_promtool_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "short.yml"
    path.write_text(shortened(ALERTS.read_text()))
    checked = subprocess.run(
        ["/usr/bin/promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
