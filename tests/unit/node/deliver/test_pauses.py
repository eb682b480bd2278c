"""Pauses of destinations, on both databases."""

from __future__ import annotations

from sqlalchemy import Engine

from node.deliver.pauses import Pauses


def test_who_pauses_first_is_told_so(engine: Engine) -> None:
    pauses = Pauses(engine)
    assert pauses.pause("pacs", "anna")
    assert not pauses.pause("pacs", "otto")
    found = pauses.of("pacs")
    assert found is not None and found.paused_by == "anna"
    assert pauses.resume("pacs") and not pauses.resume("pacs")
