"""The receiver, put together: listener, movers, spool, journal, series tracker and what belongs to them.

In: the node's configuration.  Out: ``on_complete`` for each series version that is judged complete.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from node.audit import AuditTrail
from node.audit_message import Source
from node.config import NodeConfig
from node.database import open_database
from node.files import lock
from node.postgres import SessionLock
from node.receive.adoption import LOCK, Adoption
from node.receive.commitment import CommitmentService
from node.receive.header_reader import HeaderReader
from node.receive.inquiry import FetchTarget, Inquiries
from node.receive.listener import TRANSFER_SYNTAXES, Listener
from node.receive.metrics import ReceiveMetrics
from node.receive.movers import Movers, file_left_journals
from node.receive.reconcile import reconcile
from node.receive.refusals import Refusals
from node.receive.series import SeriesTracker
from node.receive.spool import Spool
from node.receive.storage import StorageService
from node.receive.taking import Taking

#: a receiver of a node that was killed needs a moment to notice
LOCK_SECONDS = 15.0


class Receiver:
    """Works between ``start`` and ``stop``. One at a time on a data_dir."""

    def __init__(self, config: NodeConfig, on_complete: Callable[[str, int], object]) -> None:
        """See ``SeriesTracker`` for ``on_complete``."""
        self._config = config
        self._on_complete = on_complete
        self._stack = ExitStack()
        self._grace_seconds = 0.0

    def start(self) -> None:
        """Take up what the last process left, then listen. Forks, so no thread may be at work.

        Raises OSError when an address or data_dir can't be used, NodeError for a TLS file or the database.
        What was started is stopped then.
        """
        try:
            self._start(self._stack)
        except BaseException:
            self._stack.close()
            raise

    def stop(self, grace_seconds: float) -> None:
        """Let running associations finish within the grace, then stop everything."""
        self._grace_seconds = grace_seconds
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        config, receive = self._config, self._config.receive
        config.own_dir.mkdir(parents=True, exist_ok=True)
        # two would reconcile each other's running transfers away
        lock(config.own_dir / LOCK, stack, wait_seconds=LOCK_SECONDS)
        movers = Movers(config, receive.movers) if receive.movers and receive.tls is None else None
        if movers is not None:
            stack.callback(movers.stop)
        self.engine = engine = open_database(
            config.data_dir, config.database, application_name=f"pacsnode {config.node_id} receive"
        )
        stack.callback(engine.dispose)
        self.metrics = metrics = ReceiveMetrics()
        self.headers = HeaderReader(engine, config.data_dir)
        stack.callback(self.headers.stop)
        self.inquiries = Inquiries(engine, config.query, metrics, ae_title=receive.ae_title)
        stack.callback(self.inquiries.stop)
        prefix = f"{config.node_id}." if config.shared else ""
        turn = SessionLock(engine, "judging") if config.shared else None
        if turn is not None:
            stack.callback(turn.release)
        self.tracker = SeriesTracker(
            engine,
            config.series,
            self._on_complete,
            metrics,
            headers=self.headers,
            inquiries=self.inquiries,
            association_prefix=prefix,
            turn=turn,
        )
        self.spool = Spool(
            config.data_dir,
            engine,
            self.tracker,
            free_disk_floor_bytes=receive.free_disk_floor_bytes,
            journal_bytes=0 if movers else receive.journal_bytes,
            own_dir=config.own_dir,
        )
        self.reconciled = reconcile(self.spool, engine)
        lost = metrics.instances.labels(outcome="quarantined", code="file_missing")
        lost.inc(self.reconciled.missing)
        self.spool.journal.start()
        if movers is not None:
            movers.begin(self.spool)
            self.spool.file_all = movers.file_all
        file_left_journals(self.spool, receive.movers if movers is not None else 0)
        self.tracker.file_all = self.spool.file_all
        self.audit = audit = AuditTrail(
            config.audit,
            config.own_dir / "audit",
            Source(receive.ae_title, "receive", config.audit.enterprise_site_id),
            metrics.audit,
        )
        audit.start()
        stack.callback(audit.stop)
        refusals = Refusals(engine)
        refusals.start()
        stack.callback(refusals.stop)
        storage = StorageService(
            self.spool,
            metrics,
            audit,
            accept_unknown=receive.accept_unknown_sop_classes,
            association_prefix=prefix,
            refused=refusals.note,
        )
        self.inquiries.target = FetchTarget(storage, self.tracker)
        self.taking = Taking(storage, self.tracker, TRANSFER_SYNTAXES)
        self.tracker.start()
        stack.callback(self.tracker.stop)
        stack.callback(self.spool.journal.stop)
        commitment = CommitmentService(
            receive,
            engine,
            self.spool,
            metrics,
            node_id=config.node_id,
            expects_reports=config.expects_commitment,
        )
        commitment.start()
        stack.callback(commitment.stop)
        if config.shared:
            self._look_after_others(stack, commitment)
        self.listener = Listener(
            receive,
            storage,
            self.tracker,
            metrics,
            audit,
            commitment=commitment,
            movers=movers,
            refused=refusals.note,
        )
        self.listener.start()
        stack.callback(lambda: self.listener.stop(self._grace_seconds))

    def _look_after_others(self, stack: ExitStack, commitment: CommitmentService) -> None:
        def take_over(node_id: str) -> None:
            self.tracker.associations_lost(f"{node_id}.")
            commitment.take_over(node_id)

        nodes = self._config.own_dir.parent
        adoption = Adoption(self.spool, nodes, self._config.node_id, take_over)
        adoption.start()
        stack.callback(adoption.stop)
