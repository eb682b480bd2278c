"""N-EVENT-REPORTs for us as SCU of Storage Commitment, over associations to our listener (PS3.4 J.3.3).

In: reports of what a destination keeps.  Out: them on record, then their answers.
"""

from __future__ import annotations

from io import BytesIO

import structlog
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.presentation import PresentationContext
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from node.commitment_requests import CommitmentRequests, InvalidReport, Report
from node.receive.commitment_association import ReportingAssociation, is_implicit_vr
from node.receive.metrics import ReceiveMetrics

log = structlog.get_logger("node.receive.commitment")

#: Event Type IDs (PS3.4 J.3.3.1): all committed; failures exist
EVENT_TYPES = (1, 2)

#: Status of the N-EVENT-REPORT-RSP (PS3.7 annex C) -> the metric's outcome, and when it is given
N_EVENT_REPORT_STATUSES = {
    0x0000: ("recorded", "the report is recorded on disk"),
    0x0110: ("processing_failure", "the report couldn't be recorded; it may be sent again"),
    0x0113: ("no_such_event", "the Event Type ID is neither 1 nor 2"),
    0x0115: (
        "invalid_argument",
        "the Event Information can't be read, lacks a UID or a Failure Reason, is longer than 1 MiB, or is "
        "of a transaction that isn't ours",
    ),
}


class CommitmentResults:
    """For every association of a listener."""

    def __init__(self, engine: Engine, metrics: ReceiveMetrics) -> None:
        self._requests = CommitmentRequests(engine)
        self._metrics = metrics

    def on_event(
        self, association: ReportingAssociation, message: N_EVENT_REPORT, context: PresentationContext
    ) -> None:
        """Answer an N-EVENT-REPORT-RQ; runs in the association's thread."""
        status = self._record(message, context, association.calling_ae_title)
        response = N_EVENT_REPORT()
        response.MessageIDBeingRespondedTo = message.MessageID
        response.AffectedSOPClassUID = message.AffectedSOPClassUID
        response.AffectedSOPInstanceUID = message.AffectedSOPInstanceUID
        response.EventTypeID = message.EventTypeID
        response.Status = status
        self._metrics.commitment_results.labels(outcome=N_EVENT_REPORT_STATUSES[status][0]).inc()
        association.respond(response, context)

    def _record(self, message: N_EVENT_REPORT, context: PresentationContext, calling_ae_title: str) -> int:
        """Returns the status."""
        if message.EventTypeID not in EVENT_TYPES:
            return 0x0113
        information = message.EventInformation or BytesIO()
        try:
            report = Report.read(information.getvalue(), implicit_vr=is_implicit_vr(context))
            known = self._requests.record(report)
        except InvalidReport as error:
            log.warning("commitment_report_invalid", calling_ae_title=calling_ae_title, reason=str(error))
            return 0x0115
        except SQLAlchemyError:
            log.error("commitment_report_not_recorded", calling_ae_title=calling_ae_title, exc_info=True)
            return 0x0110
        log.info(
            "commitment_report_recorded" if known else "commitment_report_unknown",
            transaction_uid=report.transaction_uid,
            calling_ae_title=calling_ae_title,
            committed=len(report.committed),
            failed=len(report.failed),
        )
        return 0x0000 if known else 0x0115
