"""Judges when a series is whole, from evidence, and hands it on.

In: instances being filed and associations ending. Out: series versions in state ``complete`` with the
evidence recorded, each handed to ``on_complete`` at least once.

A series version is complete when
    association_release  every association that sent to it was released normally and nothing came for
                         ``released_quiet_seconds``; or
    quiet_time           nothing came for ``quiet_seconds``; or
    hard_limit           ``hard_limit_seconds`` have passed since its first instance.
An association that was aborted, lost or open when the node died is no evidence of completeness. An instance
that arrives later opens version + 1, whose inputs are all instances of the series so far.

The database is the state: timers are computed from its timestamps, so a restart changes nothing.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import (
    BindParameter,
    Connection,
    Engine,
    Row,
    and_,
    bindparam,
    case,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.exc import SQLAlchemyError

from node.config import SeriesConfig
from node.database import Prepared, instances, series, write_transaction
from node.metrics import ReceiveMetrics
from node.receive.index import RECOVERED, Filing

log = structlog.get_logger("node.receive.series")

#: The longest sleep of the tracker's thread; wall-clock jumps are noticed after that at the latest.
_MAX_SLEEP_SECONDS = 30.0
_HANDOVER_RETRY_SECONDS = 10.0
_FILING_RETRY_SECONDS = 1.0


@dataclass
class Associations:
    """How the associations that sent to one series version ended so far."""

    open: list[str] = field(default_factory=list)
    released: int = 0
    aborted: int = 0
    lost: int = 0

    @classmethod
    def of(cls, row: Row[Any]) -> Associations:
        evidence = row.evidence or {}
        return cls(**evidence.get("associations", {}))

    def to_json(self) -> dict[str, Any]:
        return {
            "open": self.open,
            "released": self.released,
            "aborted": self.aborted,
            "lost": self.lost,
        }

    @property
    def all_released(self) -> bool:
        return self.released > 0 and not self.open and not self.aborted and not self.lost


def instance_paths(
    connection: Connection, data_dir: Path, series_instance_uid: str, version: int
) -> list[Path]:
    """The files of a series version: all instances stored for the series up to it, in order of arrival."""
    rows = connection.execute(
        select(instances.c.path)
        .where(
            instances.c.series_instance_uid == series_instance_uid,
            instances.c.series_version <= version,
            instances.c.state == "stored",
        )
        .order_by(instances.c.id)
    )
    return [data_dir / row.path for row in rows]


class SeriesTracker:
    """Owns the ``series`` table up to state ``complete``."""

    def __init__(
        self,
        engine: Engine,
        config: SeriesConfig,
        on_complete: Callable[[str, int], object],
        metrics: ReceiveMetrics,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``on_complete(series_instance_uid, version)`` is called from the tracker's thread, at least once
        for each version until it is routed; what it raises is logged and it is called again later.
        """
        self._engine = engine
        self._config = config
        self._on_complete = on_complete
        self._metrics = metrics
        self._clock = clock
        #: files what is acknowledged and not yet counted here; called before anything is judged complete,
        #: which waits while it returns False
        self.file_all: Callable[[], bool] = lambda: True
        self._lock = threading.Lock()
        self._sent_to: dict[str, set[tuple[str, int]]] = defaultdict(set)
        self._handed_over: set[tuple[str, int]] = set()
        self._retry_at: dict[tuple[str, int], float] = {}
        self._opened = False
        #: series -> (open version, its recorded associations): what the next instance needs to know
        self._open: dict[str, tuple[int, frozenset[str]]] = {}
        at: BindParameter[float] = bindparam("at")
        self._count_one = Prepared(
            update(series)
            .where(
                series.c.series_instance_uid == bindparam("uid"),
                series.c.version == bindparam("open_version"),
                series.c.state == literal_column("'open'"),
            )
            .values(
                instance_count=series.c.instance_count + literal_column("1"),
                last_instance_at=case((series.c.last_instance_at < at, at), else_=series.c.last_instance_at),
            ),
            engine,
        )
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Recover, then watch in a thread."""
        self.recover()
        self._thread = threading.Thread(target=self._run, name="series-tracker", daemon=True)
        self._thread.start()

    def recover(self) -> None:
        """Count associations that were open at the last exit as lost: no evidence that they were done."""
        with write_transaction(self._engine) as connection:
            for row in connection.execute(select(series).where(series.c.state == "open")).all():
                associations = Associations.of(row)
                if associations.open:
                    associations.lost += len(associations.open)
                    associations.open = []
                    self._set(connection, row, evidence={"associations": associations.to_json()})

    def stop(self) -> None:
        """Stop watching; what is open stays open and is judged after the next start."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def committed(self) -> None:
        """Called after a transaction with ``file_instance``: a series opened in it has a new deadline."""
        if self._opened:
            self._opened = False
            self._wake.set()

    def file_instance(self, connection: Connection, filing: Filing) -> int:
        """Count one stored instance inside of the caller's transaction; returns its series version."""
        version, associations = self._open.get(filing.series_instance_uid, (0, frozenset()))
        if filing.association_id in associations:
            values = {"uid": filing.series_instance_uid, "open_version": version, "at": filing.received_at}
            if self._count_one.execute(connection, values).rowcount == 1:
                return version
        version, joined = self._file(connection, filing)
        self._open[filing.series_instance_uid] = (version, frozenset(joined))
        return version

    def _file(self, connection: Connection, filing: Filing) -> tuple[int, Sequence[str]]:
        """Count one instance by the series' row: the version that is open now and its open associations."""
        row = self._latest(connection, filing.series_instance_uid)
        if row is not None and row.state == "open":
            return int(row.version), self._update(connection, row, filing, added=1)
        version = 1 if row is None else row.version + 1
        associations = Associations(open=self._joined([], filing, version))
        connection.execute(
            insert(series).values(
                series_instance_uid=filing.series_instance_uid,
                version=version,
                study_instance_uid=filing.study_instance_uid,
                calling_ae_title=filing.calling_ae_title,
                state="open",
                instance_count=1 if row is None else row.instance_count + 1,
                opened_at=filing.received_at,
                last_instance_at=filing.received_at,
                evidence={"associations": associations.to_json()},
            )
        )
        self._opened = True
        self._metrics.series_opened.inc()
        log.info(
            "series_opened",
            series_instance_uid=filing.series_instance_uid,
            version=version,
            association_id=filing.association_id,
        )
        return version, associations.open

    def rolled_back(self) -> None:
        """Called when a transaction with ``file_instance`` failed: what it would have changed isn't so."""
        self._open.clear()

    def seen_again(self, connection: Connection, filing: Filing) -> None:
        """A stored instance was sent again: while its series is open, its sender is not finished yet."""
        row = self._latest(connection, filing.series_instance_uid)
        if row is not None and row.state == "open":
            self._update(connection, row, filing, added=0)

    def association_ended(self, association_id: str, *, released: bool) -> None:
        """Record how an association ended, for every series version that it sent to.

        If that can't be recorded the series wait for quiet time, as after an abort.
        """
        with self._lock:
            sent_to = self._sent_to.pop(association_id, set())
        if not sent_to:
            return
        try:
            self._record_end(association_id, sent_to, released=released)
        except SQLAlchemyError:
            log.error("association_end_not_recorded", association_id=association_id, exc_info=True)
        self._wake.set()

    def _record_end(self, association_id: str, sent_to: set[tuple[str, int]], *, released: bool) -> None:
        now = self._clock()
        with write_transaction(self._engine) as connection:
            for series_instance_uid, version in sorted(sent_to):
                row = connection.execute(
                    select(series).where(
                        series.c.series_instance_uid == series_instance_uid,
                        series.c.version == version,
                        series.c.state == "open",
                    )
                ).first()
                if row is None:
                    continue
                associations = Associations.of(row)
                if association_id not in associations.open:
                    continue
                associations.open.remove(association_id)
                if released:
                    associations.released += 1
                else:
                    associations.aborted += 1
                self._set(
                    connection,
                    row,
                    evidence={"associations": associations.to_json()},
                    released_at=None if associations.open else now,
                )

    def _update(self, connection: Connection, row: Row[Any], filing: Filing, *, added: int) -> Sequence[str]:
        """Count instances and note their association; returns the version's open associations."""
        changes: dict[str, Any] = {
            "last_instance_at": max(filing.received_at, row.last_instance_at),
            "instance_count": row.instance_count + added,
        }
        associations = Associations.of(row)
        joined = self._joined(associations.open, filing, row.version)
        if joined != associations.open:
            associations.open = joined
            changes["evidence"] = {"associations": associations.to_json()}
            changes["released_at"] = None
        self._set(connection, row, **changes)
        return joined

    def _joined(self, open_ids: Sequence[str], filing: Filing, version: int) -> list[str]:
        """The open associations of a version once this instance's is one of them."""
        if filing.association_id == RECOVERED:
            return list(open_ids)
        with self._lock:
            self._sent_to[filing.association_id].add((filing.series_instance_uid, version))
        if filing.association_id in open_ids:
            return list(open_ids)
        return [*open_ids, filing.association_id]

    def _latest(self, connection: Connection, series_instance_uid: str) -> Row[Any] | None:
        return connection.execute(
            select(series)
            .where(series.c.series_instance_uid == series_instance_uid)
            .order_by(series.c.version.desc())
            .limit(1)
        ).first()

    def _set(self, connection: Connection, row: Row[Any], **changes: Any) -> None:
        connection.execute(
            update(series)
            .where(
                and_(
                    series.c.series_instance_uid == row.series_instance_uid,
                    series.c.version == row.version,
                )
            )
            .values(**changes)
        )

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                sleep = self.check()
            except SQLAlchemyError as error:
                log.error("series_check_failed", error=type(error).__name__, exc_info=True)
                sleep = 1.0
            self._wake.wait(timeout=sleep)

    def check(self) -> float:
        """Complete what is due and hand over what is complete; returns seconds until the next is due."""
        now = self._clock()
        rows = self._unrouted()
        if any(row.state == "open" and self._due(row)[0] <= now for row in rows):
            if not self.file_all():
                return _FILING_RETRY_SECONDS
            rows = self._unrouted()
        next_due = now + _MAX_SLEEP_SECONDS
        complete = [(row.series_instance_uid, int(row.version)) for row in rows if row.state == "complete"]
        for row in rows:
            if row.state != "open":
                continue
            due, _rule = self._due(row)
            if due > now:
                next_due = min(next_due, due)
            elif self._complete(row, now):
                complete.append((row.series_instance_uid, int(row.version)))
        self._handed_over.intersection_update(complete)
        for key in complete:
            if key not in self._handed_over:
                next_due = min(next_due, self._hand_over(key, now))
        return max(0.0, next_due - self._clock())

    def _unrouted(self) -> Sequence[Row[Any]]:
        with self._engine.connect() as connection:
            return connection.execute(select(series).where(series.c.state.in_(("open", "complete")))).all()

    def _due(self, row: Row[Any]) -> tuple[float, str]:
        """When this open version is complete if nothing else happens, and by which rule."""
        limits = [
            (row.last_instance_at + self._config.quiet_seconds, "quiet_time"),
            (row.opened_at + self._config.hard_limit_seconds, "hard_limit"),
        ]
        if row.released_at is not None and Associations.of(row).all_released:
            quiet_since = max(row.released_at, row.last_instance_at)
            limits.append((quiet_since + self._config.released_quiet_seconds, "association_release"))
        return min(limits)

    def _complete(self, seen: Row[Any], now: float) -> bool:
        """Close a version, unless an instance or another association came in between."""
        key = and_(
            series.c.series_instance_uid == seen.series_instance_uid,
            series.c.version == seen.version,
            series.c.state == "open",
        )
        with write_transaction(self._engine) as connection:
            row = connection.execute(select(series).where(key)).first()
            if row is None:
                return False
            due, rule = self._due(row)
            if due > now:
                return False
            evidence = {
                "rule": rule,
                "quiet_seconds": round(now - row.last_instance_at, 3),
                "instances": row.instance_count,
                "associations": Associations.of(row).to_json(),
            }
            self._set(connection, row, state="complete", completed_at=now, evidence=evidence)
        self._open.pop(seen.series_instance_uid, None)
        self._metrics.series_completed.labels(rule=rule).inc()
        log.info(
            "series_complete",
            series_instance_uid=seen.series_instance_uid,
            version=seen.version,
            rule=rule,
            instances=evidence["instances"],
            quiet_seconds=evidence["quiet_seconds"],
        )
        return True

    def _hand_over(self, key: tuple[str, int], now: float) -> float:
        """Call ``on_complete``; returns when to look again at this version at the latest."""
        retry_at = self._retry_at.get(key, now)
        if retry_at > now:
            return retry_at
        series_instance_uid, version = key
        try:
            self._on_complete(series_instance_uid, version)
        except Exception:  # worker boundary: one series that can't be routed must not stop the others
            log.error(
                "series_handover_failed",
                series_instance_uid=series_instance_uid,
                version=version,
                retry_seconds=_HANDOVER_RETRY_SECONDS,
                exc_info=True,
            )
            self._retry_at[key] = now + _HANDOVER_RETRY_SECONDS
            return self._retry_at[key]
        self._retry_at.pop(key, None)
        self._handed_over.add(key)
        return now + _MAX_SLEEP_SECONDS
