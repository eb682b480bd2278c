"""Judging: which open series versions to look at, what their evidence says, and completing those that are
whole.

In: rows of ``series``, headers as they are read, answers of query AEs.  Out: versions in state ``complete``
with the evidence recorded, each handed to ``on_complete``.

Only versions whose ``check_at`` has come are looked at, or those with news, so that a thousand open ones cost
nothing while they wait. Reading and asking are done by others, in threads of theirs.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol

import structlog
from sqlalchemy import Connection, Engine, Row, func, select, update
from sqlalchemy.exc import SQLAlchemyError

from node.config import SeriesConfig
from node.database import series, write_transaction
from node.postgres import hold_series
from node.reasons import incomplete
from node.receive.completeness import (
    Associations,
    Inquiry,
    Judgement,
    Signals,
    evidence,
    judge,
)
from node.receive.header_reader import HeaderReader
from node.receive.metrics import ReceiveMetrics

log = structlog.get_logger("node.receive.judging")

#: The longest sleep of the tracker's thread; wall-clock jumps are noticed after that at the latest.
_MAX_SLEEP_SECONDS = 30.0
_FILING_RETRY_SECONDS = 1.0
#: how soon a node that doesn't judge asks for the turn again, and one that does notices what others filed
_TURN_SECONDS = 0.5
#: versions looked at in one go, and judged in one transaction: the database is locked for so long
_AT_ONCE, _BATCH = 500, 50

#: (series, version)
Key = tuple[str, int]


class Inquiring(Protocol):
    """Query AEs; see ``inquiry.Inquiries``."""

    on_answer: Callable[[str], None]

    def of(self, connection: Connection, row: Row[Any]) -> Inquiry | None:
        """What the one for this version's sender said; None when there is none."""

    def ask(self, row: Row[Any], what: Literal["count", "fetch"]) -> None:
        """Ask it, without waiting."""


class Turn(Protocol):
    """Whether this node judges, of several that track the same series; see ``postgres.SessionLock``."""

    def hold(self) -> bool:
        """Take the turn or see that we have it still. Raises SQLAlchemyError."""


class Judging:
    """Completes open series versions; used by one thread, except ``news``."""

    def __init__(
        self,
        engine: Engine,
        config: SeriesConfig,
        metrics: ReceiveMetrics,
        on_complete: Callable[[str, int], object],
        *,
        headers: HeaderReader | None,
        inquiries: Inquiring | None,
        turn: Turn | None,
        clock: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._config = config
        self._metrics = metrics
        self._on_complete = on_complete
        self._headers = headers
        self._inquiries = inquiries
        self._clock = clock
        self._turn = turn
        self._judges = turn is None
        self.file_all: Callable[[], bool] = lambda: True
        #: called when something became known that is to be judged
        self.on_news: Callable[[], None] = lambda: None
        self._news: set[str] = set()
        self._lock = threading.Lock()
        self._complete: deque[Key] = deque()
        if headers is not None:
            headers.on_read = self.news
        if inquiries is not None:
            inquiries.on_answer = self.news

    def recover(self) -> None:
        """What was complete and not routed when the last process ended is handed on again."""
        if not self._judges:
            return
        columns = (series.c.series_instance_uid, series.c.version)
        waiting = select(*columns).where(series.c.state == "complete").order_by(series.c.completed_at)
        with self._engine.connect() as connection:
            self._complete.extend(
                (row.series_instance_uid, int(row.version)) for row in connection.execute(waiting)
            )

    def news(self, series_instance_uid: str) -> None:
        """Something became known of a series; from any thread."""
        with self._lock:
            self._news.add(series_instance_uid)
        self.on_news()

    def check(self) -> float:
        """Judge what is due, and hand on what is complete; returns seconds until the next is due."""
        if not self._have_turn():
            return _TURN_SECONDS
        with self._lock:
            news, self._news = self._news, set()
        try:
            return self._check(news, self._clock())
        except SQLAlchemyError:
            with self._lock:
                self._news |= news
            raise

    def _have_turn(self) -> bool:
        """Whether this node is the one that judges; it takes up what the one before it left."""
        if self._turn is None:
            return True
        try:
            judges = self._turn.hold()
        except SQLAlchemyError:
            self._judges = False
            raise
        if judges and not self._judges:
            log.info("judging_begun")
            self._judges = True
            self.recover()
        self._judges = judges
        return judges

    def _check(self, news: set[str], now: float) -> float:
        rows = self._due_rows(now, news)
        judged = [(row, self._look(row, now)) for row in rows]
        if any(judgement.rule for _row, judgement in judged) and not self.file_all():
            with self._lock:
                self._news |= news
            return _FILING_RETRY_SECONDS
        for start in range(0, len(judged), _BATCH):
            self._settle(judged[start : start + _BATCH], now)
        while self._complete:
            self._on_complete(*self._complete.popleft())
        if len(rows) >= _AT_ONCE:
            return 0.0
        return self._until_next()

    def _due_rows(self, now: float, news: Iterable[str]) -> Sequence[Row[Any]]:
        """Open versions whose time has come, the longest due first, and those with news."""
        with_news = sorted(news)
        with self._lock:
            self._news.update(with_news[_AT_ONCE:])
        is_open = series.c.state == "open"
        due = select(series).where(is_open, series.c.check_at <= now).order_by(series.c.check_at)
        new = select(series).where(is_open, series.c.series_instance_uid.in_(with_news[:_AT_ONCE]))
        with self._engine.connect() as connection:
            rows = [*connection.execute(due.limit(_AT_ONCE)), *(connection.execute(new) if with_news else ())]
        return list({(row.series_instance_uid, row.version): row for row in rows}.values())

    def _look(self, row: Row[Any], now: float) -> Judgement:
        """Judge by what is known; has the headers read where these are needed."""
        with self._engine.connect() as connection:
            judgement = self._judge(connection, row, now)
            if judgement.read and self._headers is not None:
                self._headers.request(row.series_instance_uid, row.instance_count, now)
                judgement = self._judge(connection, row, now)
        if judgement.ask is not None and self._inquiries is not None:
            self._inquiries.ask(row, judgement.ask)
        return judgement

    def _judge(self, connection: Connection, row: Row[Any], now: float) -> Judgement:
        return judge(self._signals(connection, row), self._config, now)

    def _signals(self, connection: Connection, row: Row[Any]) -> Signals:
        headers = reading_since = None
        if self._headers is not None:
            headers, reading_since = self._headers.of(row.series_instance_uid, row.instance_count)
        return Signals(
            version=int(row.version),
            received=row.instance_count,
            opened_at=row.opened_at,
            last_instance_at=row.last_instance_at,
            ended_at=row.released_at,
            associations=Associations.of(row.evidence),
            headers=headers,
            reads_headers=self._headers is not None,
            reading_since=reading_since,
            inquiry=None if self._inquiries is None else self._inquiries.of(connection, row),
        )

    def _settle(self, judged: Sequence[tuple[Row[Any], Judgement]], now: float) -> None:
        """Record what follows for each version, judged again: an instance may have come in between."""
        completed: list[tuple[Row[Any], dict[str, Any]]] = []
        with write_transaction(self._engine) as connection:
            hold_series(connection, [seen.series_instance_uid for seen, _first in judged])
            for seen, first in judged:
                key = (
                    series.c.series_instance_uid == seen.series_instance_uid,
                    series.c.version == seen.version,
                    series.c.state == "open",
                )
                row = connection.execute(select(series).where(*key)).first()
                if row is None:
                    continue
                signals = self._signals(connection, row)
                judgement = judge(signals, self._config, now)
                # news that came after everything was filed waits for the next look
                if judgement.rule is None or first.rule is None:
                    look_at = now if judgement.read and not first.read else judgement.look_at
                    connection.execute(update(series).where(*key).values(check_at=look_at))
                    continue
                record = evidence(signals, judgement.rule, now)
                values = {"state": "complete", "completed_at": now, "evidence": record}
                connection.execute(update(series).where(*key).values(values))
                completed.append((row, record))
        for row, record in completed:
            self._completed(row, record)

    def _completed(self, row: Row[Any], record: dict[str, Any]) -> None:
        key = (row.series_instance_uid, int(row.version))
        if self._headers is not None:
            self._headers.forget(row.series_instance_uid)
        self._metrics.series_completed.labels(rule=record["rule"]).inc()
        missing = incomplete(record)
        for why in missing:
            self._metrics.series_incomplete.labels(by=why.code).inc()
            log.warning(
                "series_incomplete",
                series_instance_uid=key[0],
                version=key[1],
                code=why.code,
                reason=why.sentence,
            )
        log.log(
            logging.WARNING if missing else logging.INFO,
            "series_complete",
            series_instance_uid=key[0],
            version=key[1],
            **{name: value for name, value in record.items() if name != "associations"},
        )
        self._complete.append(key)

    def _until_next(self) -> float:
        with self._engine.connect() as connection:
            first = connection.execute(
                select(func.min(series.c.check_at)).where(series.c.state == "open")
            ).scalar_one()
        longest = _MAX_SLEEP_SECONDS if self._turn is None else _TURN_SECONDS
        return longest if first is None else min(max(0.0, first - self._clock()), longest)
