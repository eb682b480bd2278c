"""The series tracker: every instance counted in a series version, and versions handed on when they are whole.

In: instances being filed and associations ending.  Out: series versions in state ``complete`` with the
evidence recorded, each handed to ``on_complete``. When a version is whole is ``completeness``'s to say;
``judging`` asks it.

An association that was aborted, lost or open when the node died is no evidence of completeness. An instance
that arrives after its version was completed opens version + 1, whose inputs are all instances of the series
so far.

The database is the state: timers are computed from its timestamps, so a restart changes nothing. ``check_at``
of an open version is when to look at it next at the latest; instances that come later only put off what is
due then.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
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
from node.postgres import hold_series
from node.receive.completeness import Associations, settle_seconds
from node.receive.header_reader import HeaderReader
from node.receive.index import RECOVERED, Filing
from node.receive.judging import Inquiring, Judging, Turn
from node.receive.metrics import ReceiveMetrics

log = structlog.get_logger("node.receive.series")

#: series changed in one transaction, each of which it holds
_AT_ONCE = 500
#: an association's end is heard of when all that it sent is filed. So much of that time is quiet time, too,
#: and no more: where filing lags, what others sent of the series meanwhile isn't filed yet either
FILING_SECONDS = 0.25


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
        headers: HeaderReader | None = None,
        inquiries: Inquiring | None = None,
        association_prefix: str = "",
        turn: Turn | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``on_complete(series_instance_uid, version)`` is called from the tracker's thread, once for each
        version and again after a start for those that aren't routed yet; it must not fail.

        headers, inquiries: where more evidence comes from. Without them association ends and quiet time
        decide.
        association_prefix: what the ids of this node's associations begin with.  turn: where several nodes
        track the same series, whether this one judges.
        """
        self._engine = engine
        self._config = config
        self._prefix = association_prefix
        self._metrics = metrics
        self._clock = clock
        self._judging = Judging(
            engine, config, metrics, on_complete, headers=headers, inquiries=inquiries, turn=turn, clock=clock
        )
        self._lock = threading.Lock()
        self._sent_to: dict[str, set[tuple[str, int]]] = defaultdict(set)
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
        self._judging.on_news = self._wake.set
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def file_all(self) -> Callable[[], bool]:
        """Files what is acknowledged and not yet counted here; called before anything is judged complete,
        which waits while it returns False."""
        return self._judging.file_all

    @file_all.setter
    def file_all(self, file_all: Callable[[], bool]) -> None:
        self._judging.file_all = file_all

    def start(self) -> None:
        """Recover, then watch in a thread."""
        self.recover()
        self._thread = threading.Thread(target=self._run, name="series-tracker", daemon=True)
        self._thread.start()

    def recover(self) -> None:
        """Count associations that were open at the last exit as lost: no evidence that they were done.

        Every open version is looked at soon, whatever it waited for; what is complete is handed on again.
        """
        self.associations_lost(self._prefix)
        self._judging.recover()

    def associations_lost(self, prefix: str) -> None:
        """The associations with this prefix ended with their node. Every open version is looked at soon."""
        is_open = series.c.state == "open"
        with write_transaction(self._engine) as connection:
            connection.execute(update(series).where(is_open).values(check_at=0.0))
            uids = connection.execute(select(series.c.series_instance_uid).where(is_open)).scalars().all()
        for start in range(0, len(uids), _AT_ONCE):
            self._lose(uids[start : start + _AT_ONCE], prefix)

    def _lose(self, uids: Sequence[str], prefix: str) -> None:
        these = (series.c.state == "open", series.c.series_instance_uid.in_(uids))
        with write_transaction(self._engine) as connection:
            hold_series(connection, uids)
            for row in connection.execute(select(series).where(*these)).all():
                associations = Associations.of(row.evidence)
                left = [name for name in associations.open if not name.startswith(prefix)]
                if len(left) < len(associations.open):
                    associations.lost += len(associations.open) - len(left)
                    associations.open = left
                    self._set(
                        connection,
                        row,
                        evidence={"associations": associations.to_json()},
                        released_at=None if left else row.last_instance_at,
                    )

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
        is_lost = filing.association_id == RECOVERED
        associations = Associations(open=self._joined([], filing, version), lost=int(is_lost))
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
                released_at=filing.received_at if is_lost else None,
                check_at=filing.received_at + settle_seconds(self._config),
                evidence={"associations": associations.to_json()},
            )
        )
        self._opened = True
        self._metrics.series_opened.inc()
        if version > 1:
            self._metrics.series_late.inc()
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

    def association_ended(self, association_id: str, *, released: bool, at: float | None = None) -> None:
        """Record how an association ended, for every series version that it sent to.

        at: when; what it sent may have been filed since, which counts as quiet time up to FILING_SECONDS.
        Without, now. If that can't be recorded the series wait for quiet time, as after an abort.
        """
        with self._lock:
            sent_to = self._sent_to.pop(association_id, set())
        if not sent_to:
            return
        try:
            now = self._clock()
            at = now if at is None else max(at, now - FILING_SECONDS)
            self._record_end(association_id, sent_to, released=released, at=at)
        except SQLAlchemyError:
            log.error("association_end_not_recorded", association_id=association_id, exc_info=True)
        self._wake.set()

    def _record_end(
        self, association_id: str, sent_to: set[tuple[str, int]], *, released: bool, at: float
    ) -> None:
        with write_transaction(self._engine) as connection:
            hold_series(connection, [series_instance_uid for series_instance_uid, _version in sent_to])
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
                associations = Associations.of(row.evidence)
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
                    released_at=None if associations.open else at,
                    check_at=row.check_at if associations.open else at + settle_seconds(self._config),
                )

    def _update(self, connection: Connection, row: Row[Any], filing: Filing, *, added: int) -> Sequence[str]:
        """Count instances and note their association; returns the version's open associations."""
        changes: dict[str, Any] = {
            "last_instance_at": max(filing.received_at, row.last_instance_at),
            "instance_count": row.instance_count + added,
        }
        associations = Associations.of(row.evidence)
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
        """Judge what is due and hand on what is complete; returns seconds until the next is due."""
        return self._judging.check()
