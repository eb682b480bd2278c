"""Reading the headers of series, each file once, in a thread of its own.

In: a series, and how many instances it has.  Out: ``completeness.Headers`` of it, and ``on_read``. A series
with many files gives way to others in between; what was read is kept until the series is complete.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError

from node.database import instances
from node.receive.completeness import Headers
from node.receive.dataset import UnreadableDataset
from node.receive.headers import SeriesHeaders, read_values
from node.receive.workers import Workers

#: files of one series before another's turn
_TURN_FILES = 1000


@dataclass
class _Reading:
    """received: instances of the series when reading was last asked for; headers: of these, once read."""

    collected: SeriesHeaders
    received: int
    since: float
    headers: Headers | None = None


class HeaderReader:
    """Reads the headers of series in a thread, and keeps what they say until it is told to forget."""

    def __init__(self, engine: Engine, data_dir: Path, *, threads: int = 1) -> None:
        self._engine = engine
        self._data_dir = data_dir
        self._workers = Workers(threads, "headers")
        self._lock = threading.Lock()
        self._readings: dict[str, _Reading] = {}
        #: called with the series when its headers were read
        self.on_read: Callable[[str], None] = lambda _series_instance_uid: None

    def of(self, series_instance_uid: str, received: int) -> tuple[Headers | None, float | None]:
        """What the headers of so many instances say, or since when they are being read."""
        with self._lock:
            reading = self._readings.get(series_instance_uid)
            if reading is None:
                return None, None
            if reading.received != received:
                return None, None if reading.headers is not None else reading.since
            return reading.headers, reading.since

    def request(self, series_instance_uid: str, received: int, now: float) -> None:
        """Read what isn't read yet of a series that has so many instances."""
        with self._lock:
            reading = self._readings.get(series_instance_uid)
            if reading is None:
                reading = self._readings[series_instance_uid] = _Reading(SeriesHeaders(), received, now)
            elif reading.headers is None:
                return  # under way; what came meanwhile is asked for again
            else:
                reading.received, reading.since, reading.headers = received, now, None
        self._workers.submit(lambda: self._read(series_instance_uid, reading))

    def forget(self, series_instance_uid: str) -> None:
        with self._lock:
            self._readings.pop(series_instance_uid, None)

    def stop(self) -> None:
        self._workers.stop()

    def _read(self, series_instance_uid: str, reading: _Reading) -> None:
        collected = reading.collected
        try:
            rows = self._unread(series_instance_uid, collected.last_id)
        except SQLAlchemyError:
            self.forget(series_instance_uid)
            raise
        for row in rows[:_TURN_FILES]:
            path = self._data_dir / row.path
            try:
                collected.add(row.sop_class_uid, read_values(path, row.transfer_syntax_uid))
            except (OSError, UnreadableDataset):
                collected.add_unreadable()
            collected.last_id = row.id
        if len(rows) > _TURN_FILES:
            self._workers.submit(lambda: self._read(series_instance_uid, reading))
            return
        headers = collected.summary()
        with self._lock:
            reading.headers = headers
        self.on_read(series_instance_uid)

    def _unread(self, series_instance_uid: str, last_id: int) -> Sequence[Any]:
        with self._engine.connect() as connection:
            return connection.execute(
                select(
                    instances.c.id,
                    instances.c.path,
                    instances.c.sop_class_uid,
                    instances.c.transfer_syntax_uid,
                )
                .where(
                    instances.c.series_instance_uid == series_instance_uid,
                    instances.c.id > last_id,
                    instances.c.state == "stored",
                )
                .order_by(instances.c.id)
                .limit(_TURN_FILES + 1)
            ).all()
