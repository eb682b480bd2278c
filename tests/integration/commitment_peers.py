"""Helpers: AEs that ask for storage commitment, and receive what is reported to them."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydicom import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance, Verification

from node.scu import release, wait_for_reactor
from tests.integration.receiving import CALLING

REPORT_SECONDS = 15.0


@dataclass(frozen=True)
class Report:
    """One N-EVENT-REPORT. failed: (SOP Instance UID, Failure Reason). roles: proposed for it (SCU, SCP)."""

    event_type: int
    transaction_uid: str
    committed: tuple[str, ...]
    failed: tuple[tuple[str, int], ...]
    association: Any = field(compare=False)

    @classmethod
    def of(cls, event: evt.Event) -> Report:
        information = event.event_information
        return cls(
            event.event_type,
            str(information.TransactionUID),
            tuple(str(i.ReferencedSOPInstanceUID) for i in information.get("ReferencedSOPSequence", ())),
            tuple(
                (str(i.ReferencedSOPInstanceUID), int(i.FailureReason))
                for i in information.get("FailedSOPSequence", ())
            ),
            event.assoc,
        )


class Reports:
    """What was reported so far; ``statuses`` are answered in turn, then 0x0000."""

    def __init__(self, *statuses: int) -> None:
        self._statuses = list(statuses)
        self._reports: queue.Queue[Report] = queue.Queue()

    def handle(self, event: evt.Event) -> tuple[int, None]:
        self._reports.put(Report.of(event))
        return (self._statuses.pop(0) if self._statuses else 0x0000), None

    def next(self) -> Report:
        return self._reports.get(timeout=REPORT_SECONDS)

    def none_more(self) -> bool:
        return self._reports.empty()


class Requestor:
    """An association for Storage Commitment, CT images and Verification."""

    def __init__(self, port: int, reports: Reports | None = None, *, calling: str = CALLING) -> None:
        self.ae = AE(ae_title=calling)
        self.ae.acse_timeout = self.ae.dimse_timeout = self.ae.network_timeout = 20
        self.reports = reports or Reports()
        self.association = self.ae.associate(
            "127.0.0.1",
            port,
            ae_title="PACSNODE",
            contexts=[
                build_context(StorageCommitmentPushModel),
                build_context(CTImageStorage, ExplicitVRLittleEndian),
                build_context(Verification),
            ],
            evt_handlers=[
                (evt.EVT_N_EVENT_REPORT, self.reports.handle),
                (evt.EVT_CONN_OPEN, lambda event: no_delay(event.assoc)),
            ],
        )
        assert self.association.is_established, "the association was not accepted"

    def __enter__(self) -> Requestor:
        return self

    def __exit__(self, *_: object) -> None:
        """Release; abort if that doesn't end: pynetdicom waits for its reactor without a limit, and a test
        that failed may have left it where it never answers."""
        releasing = threading.Thread(target=release, args=(self.association,), daemon=True)
        releasing.start()
        releasing.join(30.0)
        if releasing.is_alive():
            self.association.abort()

    def ask(self, images: Iterable[Dataset], *, uid: str | None = None) -> str:
        """N-ACTION; returns the Transaction UID."""
        information = commitment_request(images, uid=uid)
        assert self.action(information) == 0x0000
        return str(information.TransactionUID)

    def action(
        self,
        information: Dataset | None,
        *,
        action_type: int = 1,
        instance_uid: str = StorageCommitmentPushModelInstance,
    ) -> int:
        wait_for_reactor(self.association)
        status, _reply = self.association.send_n_action(
            information, action_type, StorageCommitmentPushModel, instance_uid
        )
        return int(status.Status)

    def store(self, image: Dataset) -> int:
        wait_for_reactor(self.association)
        image.ensure_file_meta()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        return int(self.association.send_c_store(image).Status)

    def echo(self) -> int:
        wait_for_reactor(self.association)
        return int(self.association.send_c_echo().Status)


def no_delay(association: Any) -> None:
    association.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def commitment_request(images: Iterable[Dataset], *, uid: str | None = None) -> Dataset:
    information = Dataset()
    information.TransactionUID = uid or generate_uid()
    information.ReferencedSOPSequence = []
    for image in images:
        item = Dataset()
        item.ReferencedSOPClassUID = image.SOPClassUID
        item.ReferencedSOPInstanceUID = image.SOPInstanceUID
        information.ReferencedSOPSequence.append(item)
    return information


@contextmanager
def report_receiver(port: int, reports: Reports, *, ae_title: str = CALLING, **tls: Any) -> Iterator[None]:
    """An AE that takes reports over associations requested from it, as SCU of the service."""
    ae = AE(ae_title=ae_title)
    ae.require_called_aet = True
    ae.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
    server = ae.start_server(
        ("127.0.0.1", port),
        block=False,
        evt_handlers=[(evt.EVT_N_EVENT_REPORT, reports.handle)],
        **tls,
    )
    try:
        yield
    finally:
        server.shutdown()


def proposed_roles(report: Report) -> tuple[bool, bool]:
    """(SCU, SCP) that the requestor of the report's association proposed to be."""
    item = report.association.requestor.role_selection[StorageCommitmentPushModel]
    return bool(item.scu_role), bool(item.scp_role)
