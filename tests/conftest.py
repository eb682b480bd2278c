"""What several suites share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.postgres import PostgresCluster


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresCluster]:
    """A PostgreSQL server."""
    cluster = PostgresCluster()
    yield cluster
    cluster.remove()
