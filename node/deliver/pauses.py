"""Destinations that ops paused: kept in the database, so that a restart doesn't resume them.

In: who asks for which destination.  Out: a row in ``pauses``, which every node's gates look at.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import Engine, delete, select

from node.database import insert_if_new, pauses, write_transaction


@dataclass(frozen=True)
class Pause:
    """paused_at: seconds since the epoch.  paused_by: a user."""

    paused_at: float
    paused_by: str


class Pauses:
    """The ``pauses`` table."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def of(self, destination: str) -> Pause | None:
        """None when it isn't paused."""
        query = select(pauses.c.paused_at, pauses.c.paused_by).where(pauses.c.destination == destination)
        with self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else Pause(row.paused_at, row.paused_by)

    def pause(self, destination: str, user: str) -> bool:
        """Whether it wasn't paused already."""
        row = {"destination": destination, "paused_at": time.time(), "paused_by": user}
        with write_transaction(self._engine) as connection:
            return insert_if_new(connection, pauses, row)

    def resume(self, destination: str) -> bool:
        """Whether it was paused."""
        with write_transaction(self._engine) as connection:
            return connection.execute(delete(pauses).where(pauses.c.destination == destination)).rowcount == 1
