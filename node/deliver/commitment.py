"""Storage Commitment Push Model as SCU (PS3.4 annex J): N-ACTION to a destination, and what comes over it.

In: a recorded request.  Out: the peer has accepted it; its report, if that comes over the same association.
One over a new association comes to our listener (``node/receive/commitment_results.py``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import structlog
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from node.commitment_requests import InvalidReport, Reference, Report
from node.config import CommitmentOptions
from node.deliver.dicom_peer import DicomPeer
from node.deliver.statuses import Outcome, meaning_of
from node.errors import DeliveryError
from node.failpoints import failpoint

log = structlog.get_logger(__name__)

REQUEST_STORAGE_COMMITMENT = 1
_SUCCESS, _PROCESSING_FAILURE, _INVALID_ARGUMENT = 0x0000, 0x0110, 0x0115

#: Failure Reasons (0008,1197) of a report that sending again won't change (PS3.3 C.14.1.1)
FINAL_REASONS = {
    0x0119: "class/instance conflict",
    0x0122: "SOP class not supported",
}


class CommitmentScu:
    """Asks one destination."""

    def __init__(self, peer: DicomPeer, options: CommitmentOptions, record: Callable[[Report], bool]) -> None:
        """peer: of the destination.  record: writes a report down; False when it isn't of ours."""
        changed = {
            name: value
            for name in ("ae_title", "host", "port")
            if (value := getattr(options, name)) is not None
        }
        self.options = options
        self._peer = replace(peer, config=peer.config.model_copy(update=changed))
        self._record = record

    def request(self, transaction_uid: str, references: Sequence[Reference]) -> None:
        """Ask, and wait for a moment for the report. Raises DeliveryError when the peer didn't accept it."""
        ae = AE()
        syntaxes = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
        ae.requested_contexts = [build_context(StorageCommitmentPushModel, syntaxes)]
        reported = threading.Event()
        handlers = [(evt.EVT_N_EVENT_REPORT, self._on_report, [reported])]
        with self._peer.associated(ae, self._not_accepted, evt_handlers=handlers) as association:
            response, _ = association.send_n_action(
                _information(transaction_uid, references),
                REQUEST_STORAGE_COMMITMENT,
                StorageCommitmentPushModel,
                StorageCommitmentPushModelInstance,
            )
            failpoint("commitment.asked")
            status = response.get("Status")
            if status is None:
                raise DeliveryError(f"{self._peer}: no answer to N-ACTION of transaction {transaction_uid}")
            if not meaning_of(status).outcome.is_stored:
                raise self._refused(transaction_uid, status)
            reported.wait(self.options.same_association_seconds)

    def _on_report(self, event: evt.Event, reported: threading.Event) -> tuple[int, None]:
        """Runs in the association's thread."""
        try:
            known = self._record(Report.of(event.event_information))
        except InvalidReport as error:
            log.warning("commitment_report_invalid", destination=self._peer.name, reason=str(error))
            return _INVALID_ARGUMENT, None
        except Exception:  # worker boundary: pynetdicom would answer for us; the peer may report again
            log.error("commitment_report_not_recorded", destination=self._peer.name, exc_info=True)
            return _PROCESSING_FAILURE, None
        reported.set()
        return (_SUCCESS if known else _INVALID_ARGUMENT), None

    def _refused(self, transaction_uid: str, status: int) -> DeliveryError:
        row = meaning_of(status)
        return DeliveryError(
            f"{self._peer}: N-ACTION of transaction {transaction_uid} failed with status {status:#06x} "
            f"({row.meaning})",
            hint=row.remedy,
            code="commitment_refused",
            retryable=row.outcome is Outcome.REFUSED,
        )

    def _not_accepted(self) -> DeliveryError:
        return DeliveryError(
            f"{self._peer} doesn't accept Storage Commitment Push Model",
            hint="allow it at the destination, or leave out the destination's commitment",
            code="commitment_not_accepted",
            retryable=False,
        )


def _information(transaction_uid: str, references: Sequence[Reference]) -> Dataset:
    """PS3.4 table J.3-1."""
    information = Dataset()
    information.TransactionUID = transaction_uid
    information.ReferencedSOPSequence = [_item(*reference) for reference in references]
    return information


def _item(sop_class_uid: str, sop_instance_uid: str) -> Any:
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class_uid
    item.ReferencedSOPInstanceUID = sop_instance_uid
    return item
