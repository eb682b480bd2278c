"""The conformance statement's tables are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.conformance import tables, written
from node.receive.storage import STATUS_BY_QUARANTINE_CODE, STATUSES

STATEMENT = Path(__file__).parents[3] / "docs/conformance-statement.md"


def test_the_statement_is_as_the_code_says() -> None:
    text = STATEMENT.read_text(encoding="utf-8")
    assert written(text) == text, "run `make conformance`"


def test_every_table_is_in_it() -> None:
    text = STATEMENT.read_text(encoding="utf-8")
    assert all(f"<!-- generated: {name} -->\n{table}<!-- end -->" in text for name, table in tables().items())


def test_a_table_that_nobody_makes() -> None:
    with pytest.raises(KeyError):
        written("<!-- generated: nonsense -->\n<!-- end -->")


def test_every_status_has_its_meaning() -> None:
    assert set(STATUS_BY_QUARANTINE_CODE.values()) <= set(STATUSES)
