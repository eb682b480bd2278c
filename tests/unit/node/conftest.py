"""The node's own database, of either kind: what uses ``engine`` is a contract that both fulfil."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from node.database import open_database


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """An empty database."""
    if request.param == "sqlite":
        opened = open_database(tmp_path)
        yield opened
        opened.dispose()
        return
    with request.getfixturevalue("postgres").database() as database:
        opened = open_database(tmp_path, database)
        yield opened
        opened.dispose()
