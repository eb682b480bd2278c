"""Links of every document lead to a file or heading that is there; metrics that are named are exported."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from node.metrics import Metrics
from node.receive.metrics import ReceiveMetrics

ROOT = Path(__file__).parents[3]
_TRACKED = subprocess.run(
    ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.splitlines()
DOCUMENTS = [name for name in _TRACKED if "](" in (ROOT / name).read_text()]


def anchors(document: Path) -> set[str]:
    """Of headings, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    document = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = document if not path else document.parent / path
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target


def test_metrics_that_are_named_are_exported() -> None:
    known = {"pacsnode_build_info", "pacsnode_jobs_open"}  # the latter is made by deploy/kubernetes' adapter
    for registry in (Metrics("0").registry, ReceiveMetrics().registry):
        for collector in list(registry._collector_to_names):
            known |= set(registry._collector_to_names[collector])
    named = {
        (name, metric)
        for name in _TRACKED
        for metric in re.findall(r"`(pacsnode_[a-z_]+)[`{]", (ROOT / name).read_text())
    }
    assert len(named) > 5
    assert not {(name, metric) for name, metric in named if metric not in known}


def test_one_version_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## {version} - " in (ROOT / "CHANGELOG.md").read_text()
    statement = (ROOT / "docs/conformance-statement.md").read_text()
    assert f"version {version} (`pacsnode_build_info`)" in statement
    texts = [path.read_text() for path in (ROOT / "deploy").rglob("*") if path.suffix in {".md", ".yaml"}]
    tags = {tag for text in texts for tag in re.findall(r"(?:pacsnode:|newTag: )(\d[\w.]*)", text)}
    assert tags == {version}
