"""A database, a tracker with a clock that tests move, and a spool."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select

from node.audit import AuditTrail
from node.audit_message import Source
from node.config import AuditConfig, QueryPeer, SeriesConfig
from node.database import instances, series
from node.receive.header_reader import HeaderReader
from node.receive.index import Incoming
from node.receive.inquiry import FetchTarget, Inquiries
from node.receive.journal import Lane
from node.receive.metrics import ReceiveMetrics
from node.receive.receiving import Stored
from node.receive.reconcile import Reconciled, reconcile
from node.receive.series import SeriesTracker
from node.receive.spool import Spool
from node.receive.storage import StorageService

TIMING = SeriesConfig(quiet_seconds=30, released_quiet_seconds=5, hard_limit_seconds=3600)


@dataclass(frozen=True)
class Sent:
    """One instance as a peer sends it: the fields of ``Incoming`` and its encoded data set."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    dataset: bytes
    association_id: str = "a1"
    calling_ae_title: str = "SCANNER"


@dataclass
class Bench:
    data_dir: Path
    engine: Engine
    now: float = 1000.0
    completed: list[tuple[str, int]] = field(default_factory=list)
    query: dict[str, QueryPeer] = field(default_factory=dict)
    journal_bytes: int = 0

    def __post_init__(self) -> None:
        self.metrics = ReceiveMetrics()
        self.restart()

    def restart(self) -> None:
        """A new process on the same data, without threads: headers are read and peers asked at once."""
        self.headers = HeaderReader(self.engine, self.data_dir, threads=0)
        self.inquiries = Inquiries(
            self.engine, self.query, self.metrics, ae_title="PACSNODE", clock=lambda: self.now, threads=0
        )
        self.tracker = SeriesTracker(
            self.engine,
            TIMING,
            self._complete,
            self.metrics,
            headers=self.headers,
            inquiries=self.inquiries,
            clock=lambda: self.now,
        )
        self.tracker.recover()
        self.spool = Spool(
            self.data_dir,
            self.engine,
            self.tracker,
            free_disk_floor_bytes=0,
            journal_bytes=self.journal_bytes,
            clock=lambda: self.now,
        )
        audit = AuditTrail(
            AuditConfig(enabled=False),
            self.data_dir,
            Source("PACSNODE", "receive"),
            self.metrics.audit,
        )
        storage = StorageService(self.spool, self.metrics, audit, accept_unknown=True)
        self.inquiries.target = FetchTarget(storage, self.tracker)
        self.lane: Lane | None = None
        if self.journal_bytes:
            self.spool.journal.start()
            self.lane = self.spool.journal.lane()

    def store(self, sent: Sent, *, piece_bytes: int = 100) -> Stored:
        """Through the spool, in pieces as off the wire."""
        receiving = self.spool.receive(
            Incoming(
                sent.sop_class_uid,
                sent.sop_instance_uid,
                sent.transfer_syntax_uid,
                sent.association_id,
                sent.calling_ae_title,
            ),
            self.lane,
        )
        whole = memoryview(sent.dataset)
        receiving.write([whole[i : i + piece_bytes] for i in range(0, len(whole), piece_bytes)])
        return receiving.finish()

    def reconcile(self) -> Reconciled:
        return reconcile(self.spool, self.engine)

    def _complete(self, series_instance_uid: str, version: int) -> None:
        self.completed.append((series_instance_uid, version))

    def check(self) -> None:
        """Judge until there is nothing to do before the clock is moved."""
        for _time in range(20):
            if self.tracker.check() > 0:
                return
        raise AssertionError("the tracker finds no rest")

    def rows(self) -> list[dict[str, Any]]:
        with self.engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(select(instances))]

    def series_rows(self) -> list[dict[str, Any]]:
        with self.engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(select(series).order_by("version"))]


@pytest.fixture
def bench(tmp_path: Path, engine: Engine) -> Bench:
    return Bench(tmp_path, engine)
