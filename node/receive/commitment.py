"""Storage Commitment Push Model as SCP (PS3.4 annex J): requests are answered and recorded.

In: N-ACTIONs over the listener's associations.  Out: their responses, and transactions to be reported.

A request is on disk before it is answered with success. What it asks is judged later, when it is reported.
"""

from __future__ import annotations

from functools import partial
from io import BytesIO
from typing import Any

import structlog
from pynetdicom import build_context
from pynetdicom.dimse_primitives import N_ACTION
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from node.config import ReceiveConfig
from node.errors import SpoolError
from node.receive.commitment_association import TRANSFER_SYNTAXES, ReportingAssociation, is_implicit_vr
from node.receive.commitment_ledger import CommitmentLedger, Transaction
from node.receive.commitment_messages import (
    CommitmentRequest,
    InvalidRequest,
    TooManyReferences,
    read_request,
)
from node.receive.commitment_reports import CommitmentReports
from node.receive.commitment_results import CommitmentResults
from node.receive.metrics import ReceiveMetrics
from node.receive.negotiation import scp_only
from node.receive.spool import Spool
from node.receive.storage import is_accepted_storage

log = structlog.get_logger("node.receive.commitment")

#: requests that wait for their report; more are refused
MAX_OPEN_TRANSACTIONS = 10_000
REQUEST_STORAGE_COMMITMENT = 1

#: Status of the N-ACTION-RSP (PS3.7 annex C) -> the metric's outcome, and when it is given
N_ACTION_STATUSES = {
    0x0000: ("accepted", "the request is recorded on disk; an N-EVENT-REPORT follows"),
    0x0110: ("processing_failure", "the request couldn't be recorded"),
    0x0112: (
        "no_such_instance",
        "the Requested SOP Instance UID isn't the well-known 1.2.840.10008.1.20.1.1",
    ),
    0x0115: (
        "invalid_argument",
        "the Action Information can't be read, lacks the Transaction UID or any reference, or has something "
        "that is no UID",
    ),
    0x0123: ("no_such_action", "the Action Type ID isn't 1"),
    0x0212: ("mistyped_argument", "a parameter of the command is missing"),
    0x0213: (
        "resource_limitation",
        "more than 20,000 references or 10,000 unreported requests, or less free space than the floor",
    ),
}


class _Refused(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class CommitmentService:
    """The SCP for every association of a listener."""

    def __init__(
        self,
        config: ReceiveConfig,
        engine: Engine,
        spool: Spool,
        metrics: ReceiveMetrics,
        *,
        node_id: str = "node",
        expects_reports: bool = False,
    ) -> None:
        """expects_reports: for us as SCU; else nobody may propose to be SCP.

        Raises ConfigError when a TLS file of ``config.commitment`` can't be used.
        """
        self._results = CommitmentResults(engine, metrics)
        self._expects_reports = expects_reports
        accepts = partial(is_accepted_storage, accept_unknown=config.accept_unknown_sop_classes)
        self._ledger = CommitmentLedger(engine, spool, accepts, node_id=node_id)
        self._reports = CommitmentReports(self._ledger, config.commitment, config.ae_title, metrics)
        self._metrics = metrics

    def start(self) -> None:
        """Report what the last process couldn't. Raises SQLAlchemyError."""
        self._reports.start()

    def take_over(self, node_id: str) -> None:
        """Report what a node that is gone couldn't. Raises SQLAlchemyError."""
        self._reports.take_over(node_id)

    def stop(self) -> None:
        """Leave what isn't reported to the next process."""
        self._reports.stop()

    def contexts(self, association: Any, requested: set[str]) -> list[PresentationContext]:
        """What we support of an association that is being asked for; from now on its N-ACTIONs come here, and
        its N-EVENT-REPORTs go to who asked for commitment."""
        if StorageCommitmentPushModel not in requested:
            return []
        ReportingAssociation(association, self._on_action, self._results.on_event)
        context = scp_only(build_context(StorageCommitmentPushModel, list(TRANSFER_SYNTAXES)))
        if self._expects_reports:
            context.scp_role = True  # the requestor of a report's association is SCP (PS3.7 D.3.3.4)
        return [context]

    def _on_action(
        self, association: ReportingAssociation, message: N_ACTION, context: PresentationContext
    ) -> None:
        calling_ae_title = association.calling_ae_title
        response = N_ACTION()
        response.MessageIDBeingRespondedTo = message.MessageID
        response.AffectedSOPClassUID = message.RequestedSOPClassUID
        response.AffectedSOPInstanceUID = message.RequestedSOPInstanceUID
        response.ActionTypeID = message.ActionTypeID
        transaction = None
        try:
            transaction = self._record(_read(message, context), calling_ae_title)
            response.Status = 0x0000
        except _Refused as refusal:
            response.Status = refusal.status
            response.ErrorComment = str(refusal)[:64]
            log.warning(
                "commitment_refused",
                status=f"{refusal.status:#06x}",
                reason=str(refusal),
                calling_ae_title=calling_ae_title,
            )
        self._metrics.commitment_requests.labels(outcome=N_ACTION_STATUSES[response.Status][0]).inc()
        association.respond(response, context)
        if transaction is not None:
            self._reports.add(transaction, association, context)

    def _record(self, request: CommitmentRequest, calling_ae_title: str) -> Transaction:
        if self._reports.open_count >= MAX_OPEN_TRANSACTIONS:
            raise _Refused(0x0213, "too many requests wait for their report")
        try:
            transaction = self._ledger.record(request, calling_ae_title)
        except SpoolError as error:
            log.error("commitment_not_recorded", reason=str(error), hint=error.hint)
            raise _Refused(0x0213, "out of space") from error
        except SQLAlchemyError as error:
            log.error("commitment_not_recorded", exc_info=True)
            raise _Refused(0x0110, "the request could not be recorded") from error
        log.info(
            "commitment_requested",
            transaction_uid=request.transaction_uid,
            calling_ae_title=calling_ae_title,
            references=len(request.references),
        )
        return transaction


def _read(message: N_ACTION, context: PresentationContext) -> CommitmentRequest:
    """Check the command, then the data set (PS3.7 10.1.4.1). Raises _Refused."""
    if None in (message.RequestedSOPInstanceUID, message.ActionTypeID):
        raise _Refused(0x0212, "a parameter of the command is missing")
    if message.RequestedSOPInstanceUID != StorageCommitmentPushModelInstance:
        raise _Refused(0x0112, "not the well-known SOP Instance UID")
    if message.ActionTypeID != REQUEST_STORAGE_COMMITMENT:
        raise _Refused(0x0123, "the action type is not 1")
    information = message.ActionInformation or BytesIO()
    try:
        return read_request(information.getvalue(), implicit_vr=is_implicit_vr(context))
    except InvalidRequest as error:
        raise _Refused(0x0115, str(error)) from error
    except TooManyReferences as error:
        raise _Refused(0x0213, "too many references in one request") from error
