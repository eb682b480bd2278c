"""docs/security.md: its defaults are the code's, what it points to exists, each boundary has its letters."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from node.config import NodeConfig

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/security.md").read_text()


def value(field: str) -> Any:
    """Of an option (a.b) by default."""
    found: Any = NodeConfig()
    for name in field.split("."):
        assert isinstance(found, BaseModel), field
        found = getattr(found, name)
    return found


def shown(default: Any) -> str:
    if default is None or default == ():
        return "none"
    return str(default).lower() if isinstance(default, bool) else str(default)


def test_defaults_are_those_of_the_code() -> None:
    section = TEXT.split("## Defaults")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([a-z_.]+)` \| (\S+) \|", section, re.MULTILINE)
    assert len(rows) > 10
    assert [(field, shown(value(field))) for field, _ in rows] == rows


def test_options_that_are_named_exist() -> None:
    sections = "|".join(NodeConfig.model_fields)
    for field in set(re.findall(rf"`((?:{sections})\.[a-z_]+)`", TEXT)):
        value(field)


def test_files_that_are_named_exist() -> None:
    named = set(re.findall(r"`((?:node|pipelines|deploy|tests)/[\w./]+)`", TEXT))
    assert len(named) > 8
    assert not [path for path in named if not (ROOT / path).exists()]
    for source in (ROOT / "docs/security.md", ROOT / "SECURITY.md"):
        for link in re.findall(r"\]\(([^)#]+)", source.read_text()):
            assert link.startswith("http") or (source.parent / link).exists(), link


def test_every_boundary_has_every_letter() -> None:
    boundaries = re.split(r"^### ", TEXT.split("## Threats by boundary")[1], flags=re.MULTILINE)[1:]
    assert len(boundaries) == 7
    for boundary in boundaries[:6]:
        assert re.findall(r"^\| ([STRIDE]) \|", boundary, re.MULTILINE) == list("STRIDE"), boundary[:40]
