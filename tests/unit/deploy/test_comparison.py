"""docs/comparison.md: what it says of us points to something that is there."""

from __future__ import annotations

import re
from pathlib import Path

from node.config import CStoreDestination, NodeConfig, ReceiveConfig

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/comparison.md").read_text()


def rows(section: str) -> list[list[str]]:
    part = TEXT.split(f"## {section}")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ") and not line.startswith("| |")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_row_names_what_shows_it() -> None:
    better = rows("Where we are better, or do what they don't")
    theirs = rows("Where they are better")
    assert len(better) > 10
    assert len(theirs) > 10
    for row in better:
        assert len(row) == 6, row
        assert "`" in row[1] or "make " in row[1], row[1]
    for row in theirs:
        assert len(row) == 3, row


def test_our_files_commands_and_options_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for cell in [row[1] for row in rows("Where we are better, or do what they don't")]:
        for path in re.findall(r"`((?:node|pipelines|tests)/[\w./]+)`", cell):
            assert (ROOT / path).exists(), path
        for target in re.findall(r"`make ([a-z-]+)`", cell):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for section, fields in {
        "receive": ReceiveConfig.model_fields,
        "results": NodeConfig().results.model_fields_set | set(type(NodeConfig().results).model_fields),
    }.items():
        for field in re.findall(rf"`{section}\.([a-z_]+)`", TEXT):
            assert field in fields, field
    for option in ("segmentation", "breaker_failures", "give_up_seconds", "replace", "commitment"):
        assert f"`{option}`" in TEXT
        assert option in CStoreDestination.model_fields
    for link in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (ROOT / "docs" / link).exists(), link


def test_figures_are_those_of_the_benchmarks() -> None:
    benchmarks = (ROOT / "docs/benchmarks.md").read_text()
    (orthanc,) = re.findall(r"^\| Orthanc .*? \| (\d+) \|", benchmarks, re.MULTILINE)
    (storescp,) = re.findall(r"^\| DCMTK `storescp --fork`.*? \| ([\d.]+) \|", benchmarks, re.MULTILINE)
    assert f"**{orthanc}**" in TEXT
    assert f"storescp: {int(orthanc) / float(storescp):.0f} (we take 1/{storescp} of its time)" in TEXT
