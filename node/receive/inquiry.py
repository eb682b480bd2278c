"""Asking the query AE about series, and fetching what is missing: off the tracker's thread, a few at a time.

In: a series version and a question.  Out: the answer in table ``inquiries``, instances that were missing in
the spool, by the same path as any other, and ``on_answer``.

    count  C-FIND: how many instances has the peer?
    fetch  C-FIND for the SOP Instance UIDs, then C-GET or C-MOVE of those that we lack

Each peer has threads of its own, so that a slow one delays only its own senders' series. One that can't be
reached is left alone for a while, which grows; every failure and every fetch delays the next try of its
series. The attempt is counted before it begins: a fetch that kills the process isn't repeated for ever.
"""

from __future__ import annotations

import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import structlog
from pynetdicom import _config as pynetdicom_config
from pynetdicom import evt
from sqlalchemy import Connection, Engine, Row, insert, select, update

from node.audit_message import Peer
from node.config import QueryPeer
from node.database import inquiries, instances, series, write_transaction
from node.errors import QueryError
from node.receive.command import StoreCommand
from node.receive.completeness import Inquiry
from node.receive.metrics import ReceiveMetrics
from node.receive.part10 import header_length
from node.receive.query import QueryScu, SeriesKey
from node.receive.storage import StorageService
from node.receive.stream import Context
from node.receive.workers import Workers

log = structlog.get_logger("node.receive.inquiry")

#: associations to one peer at the same time
THREADS_PER_PEER = 2
#: an unreachable peer is left alone for so long, doubling up to the maximum
DOWN_SECONDS, MAX_DOWN_SECONDS = 5.0, 60.0
MAX_RETRY_SECONDS = 300.0
#: a question may wait for its turn and its answer so many times the peer's timeout
PATIENCE = 3
_COPY_BYTES = 1024 * 1024
_NOT_AUTHORIZED = 0x0124  # PS3.7 9.1.1.1.9

#: (series, version)
Key = tuple[str, int]


def keep_fetched_in(folder: Path) -> None:
    """Have what C-GET brings go through files below a folder instead of memory, for this process.

    That is pynetdicom's only way, and it keeps them where temporary files go.
    """
    pynetdicom_config.STORE_RECV_CHUNKED_DATASET = True
    tempfile.tempdir = str(folder)


class AssociationEnd(Protocol):
    """The part of the series tracker that hears of our own associations."""

    def association_ended(self, association_id: str, *, released: bool) -> None: ...


@dataclass
class _Peer:
    """One query AE. A peer that is down isn't tried before ``down_until``, by time.monotonic()."""

    name: str
    config: QueryPeer
    scu: QueryScu
    workers: Workers
    down_until: float = 0.0
    down_seconds: float = DOWN_SECONDS


@dataclass(frozen=True)
class FetchTarget:
    """Where fetched instances go, and who is to be told when there are no more of them."""

    storage: StorageService
    tracker: AssociationEnd


@dataclass
class _Task:
    """One question under way."""

    key: Key
    ask: Literal["count", "fetch"]
    wait_until: float
    started_at: float = field(default=0.0)


class Inquiries:
    """Owns the ``inquiries`` table; every method may be called from any thread."""

    def __init__(
        self,
        engine: Engine,
        peers: Mapping[str, QueryPeer],
        metrics: ReceiveMetrics,
        *,
        ae_title: str,
        clock: Callable[[], float] = time.time,
        threads: int = THREADS_PER_PEER,
    ) -> None:
        """``ae_title``: our own, with which we call, and to which C-MOVE sends."""
        self._engine = engine
        self._metrics = metrics
        self._ae_title = ae_title
        self._clock = clock
        self._peers = {
            name: _Peer(
                name,
                config,
                QueryScu(name, config, calling_ae_title=ae_title),
                Workers(threads, f"query-{name}"),
            )
            for name, config in peers.items()
        }
        self._by_sender = {title: peer for peer in self._peers.values() for title in peer.config.senders}
        self._default = next((peer for peer in self._peers.values() if not peer.config.senders), None)
        self._tasks: dict[Key, _Task] = {}
        self._lock = threading.Lock()
        #: called with the series when there is an answer, or that there is none
        self.on_answer: Callable[[str], None] = lambda _series_instance_uid: None
        #: to be set before anything is fetched
        self.target: FetchTarget | None = None

    def stop(self) -> None:
        """Begin nothing more; what is under way ends with the process or within its timeouts."""
        for peer in self._peers.values():
            peer.workers.stop()

    def of(self, connection: Connection, row: Row[Any]) -> Inquiry | None:
        """What the query AE for this series version's sender said so far; None when there is no such AE."""
        peer = self._peer_of(row.calling_ae_title)
        if peer is None:
            return None
        with self._lock:
            task = self._tasks.get((row.series_instance_uid, int(row.version)))
        known = _row(connection, (row.series_instance_uid, int(row.version)))
        attempts = 0 if peer.config.retrieve == "none" else peer.config.max_fetches
        busy, wait_until = task is not None, 0.0 if task is None else task.wait_until
        if known is None:
            return Inquiry(peer.name, busy=busy, wait_until=wait_until, fetches_left=attempts)
        return Inquiry(
            peer.name,
            busy=busy,
            wait_until=wait_until,
            expected=known.expected,
            asked_at=known.asked_at or 0.0,
            next_at=known.next_at,
            fetches_left=max(0, attempts - known.fetches),
            fetches=known.fetches,
            fetched=known.fetched,
            error=known.error,
        )

    def ask(self, row: Row[Any], what: Literal["count", "fetch"]) -> None:
        """Ask about a series version, unless something is being asked already."""
        peer = self._peer_of(row.calling_ae_title)
        if peer is None:
            return
        patience = peer.config.timeout_seconds * PATIENCE
        if what == "fetch":
            patience += peer.config.retrieve_timeout_seconds
        task = _Task((row.series_instance_uid, int(row.version)), what, self._clock() + patience)
        with self._lock:
            if task.key in self._tasks:
                return
            self._tasks[task.key] = task
        series_key = SeriesKey(row.study_instance_uid, row.series_instance_uid)
        peer.workers.submit(lambda: self._do(peer, task, series_key))

    def _peer_of(self, calling_ae_title: str) -> _Peer | None:
        return self._by_sender.get(calling_ae_title, self._default)

    def _do(self, peer: _Peer, task: _Task, series_key: SeriesKey) -> None:
        try:
            if self._is_open(task.key):
                self._answer(peer, task, series_key)
        finally:
            with self._lock:
                self._tasks.pop(task.key, None)
            self.on_answer(task.key[0])

    def _answer(self, peer: _Peer, task: _Task, series_key: SeriesKey) -> None:
        task.started_at = self._clock()
        if task.ask == "fetch":
            self._record(peer, task.key, fetches=1)
        try:
            if time.monotonic() < peer.down_until:
                raise QueryError(f"query.{peer.name}: not tried, it was unreachable", code="unreachable")
            if task.ask == "count":
                self._count(peer, task, series_key)
            else:
                self._fetch(peer, task, series_key)
        except QueryError as error:
            self._failed(peer, task, error)
        except Exception as error:  # worker boundary: what a peer's answers can make a library raise is open
            log.error("query_broke", peer=peer.name, ask=task.ask, exc_info=True)
            what = f"query.{peer.name}: {type(error).__name__}"
            self._failed(peer, task, QueryError(what, code="broken", hint="see the log"))
        else:
            peer.down_seconds = DOWN_SECONDS

    def _count(self, peer: _Peer, task: _Task, series_key: SeriesKey) -> None:
        expected = peer.scu.count(series_key)
        self._metrics.queries.labels(peer=peer.name, outcome="answered").inc()
        self._record(peer, task.key, expected=expected or None, asked_at=task.started_at, failures=None)
        log.info(
            "series_counted",
            series_instance_uid=task.key[0],
            version=task.key[1],
            peer=peer.name,
            expected=expected,
        )

    def _fetch(self, peer: _Peer, task: _Task, series_key: SeriesKey) -> None:
        there = peer.scu.instances(series_key)
        have, classes, syntaxes = self._have(task.key[0])
        usual = classes[0] if classes else ""
        wanted = {uid: there[uid] or usual for uid in there if uid not in have}
        if not wanted:
            completed = 0
        elif peer.config.retrieve == "move":
            completed = peer.scu.move(series_key, wanted, self._ae_title)
        else:
            completed = self._get(peer, series_key, wanted, syntaxes)
        outcome = "complete" if completed >= len(wanted) else "partial" if completed else "failed"
        self._metrics.fetches.labels(peer=peer.name, outcome=outcome).inc()
        self._metrics.fetched_instances.labels(peer=peer.name).inc(completed)
        log.info(
            "series_fetched",
            series_instance_uid=task.key[0],
            version=task.key[1],
            peer=peer.name,
            wanted=len(wanted),
            fetched=completed,
        )
        error = None if outcome == "complete" else f"{completed} of {len(wanted)} instances were sent"
        self._record(
            peer,
            task.key,
            expected=len(there) or None,
            asked_at=task.started_at,
            fetched=completed,
            error=error,
            failures=None if outcome == "complete" else 1,
        )

    def _failed(self, peer: _Peer, task: _Task, error: QueryError) -> None:
        if error.code == "unreachable" and time.monotonic() >= peer.down_until:
            peer.down_until = time.monotonic() + peer.down_seconds
            peer.down_seconds = min(2 * peer.down_seconds, MAX_DOWN_SECONDS)
        if task.ask == "count":
            self._metrics.queries.labels(peer=peer.name, outcome=error.code).inc()
        else:
            self._metrics.fetches.labels(peer=peer.name, outcome="failed").inc()
        log.warning(
            "query_failed",
            ask=task.ask,
            series_instance_uid=task.key[0],
            version=task.key[1],
            peer=peer.name,
            code=error.code,
            reason=str(error),
            hint=error.hint,
        )
        self._record(peer, task.key, failures=1, error=f"{task.ask}: {error.code}: {error}")

    def _record(
        self,
        peer: _Peer,
        key: Key,
        *,
        fetches: int = 0,
        fetched: int = 0,
        failures: int | None = 0,
        error: str | None = None,
        **values: Any,
    ) -> None:
        """Add to what is recorded of a series version; ``failures`` None: none any more, in a row."""
        with write_transaction(self._engine) as connection:
            known = _row(connection, key)
            in_a_row = 0 if known is None or failures is None else known.failures + failures
            values |= {
                "peer": peer.name,
                "failures": in_a_row,
                "fetches": (known.fetches if known else 0) + fetches,
                "fetched": (known.fetched if known else 0) + fetched,
                "error": error,
            }
            if failures or fetches:
                # a fetch that the process doesn't survive isn't repeated at once either
                wait = peer.config.retry_seconds * 2 ** max(0, in_a_row - 1)
                values["next_at"] = self._clock() + min(wait, MAX_RETRY_SECONDS)
            if known is None:
                connection.execute(
                    insert(inquiries).values(series_instance_uid=key[0], version=key[1], **values)
                )
            else:
                connection.execute(update(inquiries).where(*_is(key)).values(**values))

    def _is_open(self, key: Key) -> bool:
        with self._engine.connect() as connection:
            found = select(series.c.state).where(
                series.c.series_instance_uid == key[0], series.c.version == key[1], series.c.state == "open"
            )
            return connection.execute(found).first() is not None

    def _have(self, series_instance_uid: str) -> tuple[set[str], list[str], list[str]]:
        """SOP Instance UIDs, SOP classes and transfer syntaxes stored of a series."""
        stored = (instances.c.series_instance_uid == series_instance_uid, instances.c.state == "stored")
        columns = (instances.c.sop_instance_uid, instances.c.sop_class_uid, instances.c.transfer_syntax_uid)
        with self._engine.connect() as connection:
            rows = connection.execute(select(*columns).where(*stored)).all()
        classes = sorted({row.sop_class_uid for row in rows})
        return {row.sop_instance_uid for row in rows}, classes, sorted({r.transfer_syntax_uid for r in rows})

    def _get(self, peer: _Peer, series_key: SeriesKey, wanted: Mapping[str, str], syntaxes: list[str]) -> int:
        """C-GET; what comes is stored like anything that comes to the listener."""
        target = self.target
        assert target is not None  # noqa: S101 - set before the tracker starts
        sender_peer = Peer(peer.config.ae_title, peer.config.host)
        sender = target.storage.open(f"fetch-{uuid.uuid4().hex}", sender_peer)

        def store(event: evt.Event) -> int:
            request = event.request
            uid = str(request.AffectedSOPInstanceUID)
            with _data_set(request) as data_set:
                if uid not in wanted:
                    log.warning("fetched_unasked", peer=peer.name)
                    return _NOT_AUTHORIZED
                context = Context(str(event.context.abstract_syntax), str(event.context.transfer_syntax))
                command = StoreCommand(
                    request.MessageID, str(request.AffectedSOPClassUID), uid, has_data_set=True
                )
                reception = target.storage.begin(sender, context, command)
                while piece := data_set.read(_COPY_BYTES):
                    reception.write([memoryview(piece)])
                status, _comment = reception.finish()
                return status

        try:
            completed = peer.scu.get(series_key, wanted, syntaxes, store)
            sender.released = True
            return completed
        finally:
            target.storage.close(sender)
            # that our own association ended is no sign of the sender's: it counts as released
            target.tracker.association_ended(sender.association_id, released=True)


@contextmanager
def _data_set(request: Any) -> Iterator[BinaryIO]:
    """The data set of a C-STORE request, from where pynetdicom put it; a file is removed afterwards."""
    if request._dataset_path is None:
        request.DataSet.seek(0)
        yield request.DataSet
        return
    try:
        with request._dataset_path.open("rb") as file:
            file.seek(header_length(file))
            yield file
    finally:
        request._dataset_file.close()
        request._dataset_path.unlink(missing_ok=True)


def _is(key: Key) -> tuple[Any, ...]:
    return (inquiries.c.series_instance_uid == key[0], inquiries.c.version == key[1])


def _row(connection: Connection, key: Key) -> Row[Any] | None:
    return connection.execute(select(inquiries).where(*_is(key))).first()
