"""What several suites share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from node.config import LogConfig
from node.log import configure_logging
from tests.postgres import PostgresCluster


@pytest.fixture(scope="session", autouse=True)
def _logs_to_standard_error() -> None:
    """As ``pacsnode`` does it: what a thread of an earlier test logs is no part of a command's output."""
    configure_logging(LogConfig(level="warning"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresCluster]:
    """A PostgreSQL server."""
    cluster = PostgresCluster()
    yield cluster
    cluster.remove()
