"""Storage Commitment results on their way to those who asked (PS3.4 J.3.3), until each has arrived.

In: recorded transactions, at start-up those of the last process.  Out: N-EVENT-REPORTs, and the end of each
transaction: reported, or given up after ``give_up_seconds``.

Over the association of the request as long as it is open, once the requestor has been quiet for a moment: one
that wants its report elsewhere has released by then, and one that goes on sending expects answers to that
first. Otherwise over an association of our own to the address that is configured for its AE title. Those take
turns per AE title, so that a dead peer holds up nobody else. The end is recorded after the peer's answer:
after a crash in between the report comes again.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from pynetdicom.presentation import PresentationContext

from node.config import CommitmentConfig
from node.receive.commitment_association import (
    NotReported,
    ReportingAssociation,
    Requestor,
    is_implicit_vr,
    own_association,
)
from node.receive.commitment_ledger import FAILURE_REASONS, CommitmentLedger, Transaction
from node.receive.commitment_messages import COMMITTED, encode_report
from node.receive.metrics import ReceiveMetrics
from node.tls import ClientHandshake, commitment_contexts

log = structlog.get_logger("node.receive.commitment")

#: Event Type IDs (PS3.4 J.3.3.1)
SUCCESSFUL, FAILURES_EXIST = 1, 2
#: how long a requestor may go on sending before the report comes in between
BUSY_SECONDS = 30.0
#: how soon the end of an open association, or its quiet, is noticed
_LOOK_SECONDS = 0.1
_STOP_SECONDS = 2.0


@dataclass(eq=False)
class _Pending:
    """One transaction. association: the request's, while the report may go over it. Times are monotonic."""

    transaction: Transaction
    association: ReportingAssociation | None
    context: PresentationContext | None
    begun_at: float
    due_at: float
    delay: float
    busy: bool = False


class CommitmentReports:
    """Reports between ``start`` and ``stop``; safe to call from many threads."""

    def __init__(
        self, ledger: CommitmentLedger, config: CommitmentConfig, ae_title: str, metrics: ReceiveMetrics
    ) -> None:
        """ae_title: ours, as the requestor of associations. Raises ConfigError for a peer's TLS files."""
        self._tls = commitment_contexts(config)
        self._ledger = ledger
        self._config = config
        self._ae_title = ae_title
        self._metrics = metrics
        self._pending: list[_Pending] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._workers: set[threading.Thread] = set()
        self._thread = threading.Thread(target=self._run, name="commitment-reports", daemon=True)
        metrics.commitments_open.set_function(lambda: float(self.open_count))

    @property
    def open_count(self) -> int:
        """Transactions that aren't reported yet."""
        return len(self._pending)

    def start(self) -> None:
        """Take up what the last process left. Raises SQLAlchemyError."""
        self._take_up(self._ledger.open_transactions())
        self._thread.start()

    def take_over(self, node_id: str) -> None:
        """Take up what a node that is gone left. Raises SQLAlchemyError."""
        self._take_up(self._ledger.take_over(node_id))
        self._wake.set()

    def _take_up(self, left: Sequence[Transaction]) -> None:
        for transaction in left:
            self._add(transaction, None, None)
        if left:
            log.info("commitments_taken_up", transactions=len(left))

    def stop(self) -> None:
        """Begin nothing more; what isn't reported is by the next process."""
        self._stopping.set()
        self._wake.set()
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in (self._thread, *self._workers):
            thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def add(
        self, transaction: Transaction, association: ReportingAssociation, context: PresentationContext
    ) -> None:
        """Have it reported. Its N-ACTION-RSP is on its way."""
        self._add(transaction, association, context)
        self._wake.set()

    def _add(
        self,
        transaction: Transaction,
        association: ReportingAssociation | None,
        context: PresentationContext | None,
    ) -> None:
        now = time.monotonic()
        one = _Pending(transaction, association, context, now, now, self._config.retry_seconds)
        with self._lock:
            self._pending.append(one)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(self._begin_due())
            self._wake.clear()

    def _begin_due(self) -> float | None:
        """Begin what is due; returns in how many seconds to look again."""
        now = time.monotonic()
        looks: list[float] = []
        begun: list[list[_Pending]] = []
        by_title: dict[str, list[_Pending]] = {}
        with self._lock:
            idle = [one for one in self._pending if not one.busy]
            taken = {
                one.transaction.calling_ae_title
                for one in self._pending
                if one.busy and one.association is None
            }
            for one in idle:
                if one.association is not None and not one.association.is_open:
                    one.association = None
                if one.association is not None:
                    if self._is_turn(one, one.association, now):
                        begun.append([one])
                    looks.append(_LOOK_SECONDS)
                elif one.due_at > now:
                    looks.append(one.due_at - now)
                elif one.transaction.calling_ae_title not in taken:
                    by_title.setdefault(one.transaction.calling_ae_title, []).append(one)
            begun += by_title.values()
            for group in begun:
                for one in group:
                    one.busy = True
                thread = threading.Thread(target=self._work, args=(group,), name="commitment", daemon=True)
                self._workers.add(thread)
                thread.start()
        return min(looks, default=None)

    def _is_turn(self, one: _Pending, association: ReportingAssociation, now: float) -> bool:
        delay = self._config.report_delay_seconds
        return association.quiet_seconds >= delay or now - one.begun_at >= delay + BUSY_SECONDS

    def _work(self, group: Sequence[_Pending]) -> None:
        """Report transactions that go over the same association."""
        try:
            if group[0].association is not None:
                self._over_theirs(group[0], group[0].association)
            else:
                self._over_ours(group)
        finally:
            with self._lock:
                for one in group:
                    one.busy = False
                self._workers.discard(threading.current_thread())
            self._wake.set()

    def _over_theirs(self, one: _Pending, association: ReportingAssociation) -> None:
        assert one.context is not None  # noqa: S101 - comes with the association
        error = self._report(one, association, one.context, "same_association")
        one.association = one.context = None
        if error is not None:
            self._failed(one, error, delay=0.0)  # a new association may do

    def _over_ours(self, group: Sequence[_Pending]) -> None:
        title = group[0].transaction.calling_ae_title
        peer = self._config.peers.get(title)
        if peer is None:  # the next process may have one
            unknown = NotReported("its AE title has no address in receive.commitment.peers")
            for one in group:
                self._failed(one, unknown, delay=self._config.give_up_seconds)
            return
        try:
            tls = self._tls.get(title)
            requestor = Requestor(title, peer, None if tls is None else ClientHandshake(tls.current()))
            with own_association(
                requestor,
                calling_ae_title=self._ae_title,
                timeout_seconds=self._config.timeout_seconds,
            ) as (association, context):
                for one in group:
                    error = self._report(one, association, context, "new_association")
                    if error is not None:
                        self._failed(one, error, delay=one.delay)
        except NotReported as error:
            for one in group:
                self._failed(one, error, delay=one.delay)

    def _report(
        self,
        one: _Pending,
        association: ReportingAssociation,
        context: PresentationContext,
        how: str,
    ) -> NotReported | None:
        """Returns why it couldn't be done."""
        transaction = one.transaction
        try:
            judged = self._ledger.judge(transaction)
            reasons = Counter(reason for _reference, reason in judged)
            association.report(
                context,
                SUCCESSFUL if set(reasons) == {COMMITTED} else FAILURES_EXIST,
                encode_report(transaction.transaction_uid, judged, implicit_vr=is_implicit_vr(context)),
                timeout_seconds=self._config.timeout_seconds,
            )
            self._ledger.finish(transaction, "reported")
        except NotReported as error:
            return error
        except Exception as error:  # worker boundary: the database failed, most likely; tried again
            log.error("commitment_report_broken", transaction_uid=transaction.transaction_uid, exc_info=True)
            return NotReported(type(error).__name__)
        self._forget(one)
        for reason, count in reasons.items():
            outcome = "committed" if reason == COMMITTED else FAILURE_REASONS[reason][0]
            self._metrics.commitment_instances.labels(outcome=outcome).inc(count)
        self._metrics.commitment_reports.labels(outcome=how).inc()
        log.info(
            "commitment_reported",
            transaction_uid=transaction.transaction_uid,
            calling_ae_title=transaction.calling_ae_title,
            how=how,
            committed=reasons[COMMITTED],
            failed=len(judged) - reasons[COMMITTED],
        )
        return None

    def _failed(self, one: _Pending, error: NotReported, *, delay: float) -> None:
        """Try again later, or give up."""
        transaction = one.transaction
        context = {
            "transaction_uid": transaction.transaction_uid,
            "calling_ae_title": transaction.calling_ae_title,
            "reason": str(error),
        }
        if error.final or time.time() - transaction.requested_at >= self._config.give_up_seconds:
            self._ledger.finish(transaction, "given_up")
            self._forget(one)
            self._metrics.commitment_reports.labels(outcome="given_up").inc()
            log.error("commitment_given_up", **context, hint="the requestor has to ask again")
            return
        one.due_at = time.monotonic() + delay
        if delay > 0:
            one.delay = min(2 * delay, self._config.max_retry_seconds)
        self._metrics.commitment_reports.labels(outcome="failed").inc()
        log.warning("commitment_not_reported", **context, retry_seconds=delay)

    def _forget(self, one: _Pending) -> None:
        with self._lock:
            self._pending.remove(one)
