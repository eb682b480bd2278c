"""What was turned away, for those who ask later: the page, and ``pacsnode explain``.

In: each association that was rejected, each instance that was refused.  Out: rows of ``refusals``, the newest
KEPT of them, written at once but once a second at most: whoever knocks a thousand times a second costs one
row. While the database can't be written, as on a full disk, counts wait here; the log and the metrics have
them at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from sqlalchemy import Engine, delete, select, update
from sqlalchemy.exc import SQLAlchemyError

from node.audit_message import Peer
from node.database import insert_if_new, refusals, write_transaction
from node.reasons import Kind
from node.watch import Watch

log = structlog.get_logger("node.receive.refusals")

#: kind, code, detail, who
Refused = Callable[[Kind, str, str, Peer], None]

#: rows, at most
KEPT = 200
#: told apart until they are written; further ones count as of "several"
_WAITING = 64
SEVERAL = Peer("several", "several")

_Key = tuple[str, str, str, str]


@dataclass
class _Count:
    count: int
    first_at: float
    last_at: float
    detail: str


class Refusals(Watch):
    """Safe to use from many threads."""

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__("refusals", 1.0)
        self._engine = engine
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[_Key, _Count] = {}
        self._noted = threading.Event()  # something waits, or it is to stop

    def note(self, kind: Kind, code: str, detail: str, peer: Peer) -> None:
        """Never waits for the database."""
        now = self._clock()
        with self._lock:
            key = (kind.value, code, peer.ae_title, peer.address)
            if key not in self._waiting and len(self._waiting) >= _WAITING:
                key = (kind.value, code, SEVERAL.ae_title, SEVERAL.address)
            known = self._waiting.setdefault(key, _Count(0, now, now, detail))
            known.count += 1
            known.last_at, known.detail = now, detail
            self._noted.set()

    def look(self) -> None:
        """Wait for something, then write all that waits."""
        self._noted.wait()
        self._write_waiting()

    def stop(self) -> None:
        self.stopping.set()
        self._noted.set()
        super().stop()
        self._write_waiting()  # what came while it paused

    def _write_waiting(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, {}
            self._noted.clear()
        if not waiting:
            return
        try:
            self._write(waiting)
        except SQLAlchemyError as error:
            log.debug("refusals_wait", error=type(error).__name__)
            with self._lock:
                for key, count in waiting.items():
                    newer = self._waiting.setdefault(
                        key, _Count(0, count.first_at, count.last_at, count.detail)
                    )
                    newer.count += count.count
                    newer.first_at = count.first_at
                self._noted.set()

    def _write(self, waiting: dict[_Key, _Count]) -> None:
        with write_transaction(self._engine) as connection:
            for key, seen in waiting.items():
                kind, code, calling_ae_title, host = key
                values = {"kind": kind, "code": code, "calling_ae_title": calling_ae_title, "host": host}
                times = {"last_at": seen.last_at, "reason": seen.detail}
                new = {**values, **times, "count": 0, "first_at": seen.first_at}
                insert_if_new(connection, refusals, new)
                this = [refusals.c[name] == value for name, value in values.items()]
                more = {**times, "count": refusals.c.count + seen.count}
                connection.execute(update(refusals).where(*this).values(more))
            newest = select(refusals.c.last_at).order_by(refusals.c.last_at.desc())
            last = connection.execute(newest.offset(KEPT).limit(1)).scalar_one_or_none()
            if last is not None:
                connection.execute(delete(refusals).where(refusals.c.last_at <= last))
