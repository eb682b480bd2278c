"""Helpers: a storage SCP that also confirms storage, or doesn't, as told; and a node that delivers to it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydicom import Dataset
from pydicom.uid import CTImageStorage
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance, Verification
from sqlalchemy import Engine, insert, select

from node.audit import AuditTrail
from node.audit_message import Source
from node.commitment_requests import Delivery
from node.config import NodeConfig
from node.database import commitment_requests, deliveries, jobs, series
from node.deliver import make_gates
from node.metrics import Metrics
from node.run.boundary import Next
from node.run.committing import CommitmentWatch
from node.run.delivering import Delivering
from node.run.results import ResultSets, Services
from node.run.worker_pool import WorkerPool
from pipelines.request import SUMMARY
from tests.unit.node.deliver.conftest import write_object
from tests.unit.node.rows import job_row, series_row

JOB = "j1"


@dataclass(frozen=True)
class Answer:
    """To one N-ACTION. failed: Failure Reason by the place of the reference. forgotten: places that the
    report doesn't mention. roles: whether the report's association proposes to be SCP."""

    status: int = 0x0000
    how: Literal["same", "new", "never"] = "new"
    failed: dict[int, int] = field(default_factory=dict)
    forgotten: tuple[int, ...] = ()
    roles: bool = True


class CommittingPeer:
    """AE ``PACS``. ``answers``: one a request, then success over a new association to ``report_to``."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.stored: list[str] = []
        self.requests: list[Dataset] = []
        self.report_statuses: list[int] = []
        self.report_to = 0
        ae = AE(ae_title="PACS")
        for sop_class in (CTImageStorage, Verification, StorageCommitmentPushModel):
            ae.add_supported_context(sop_class)
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_N_ACTION, self._action)]
        self._server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = int(self._server.server_address[1])

    def stop(self) -> None:
        self._server.shutdown()

    def _store(self, event: evt.Event) -> int:
        self.stored.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    def _action(self, event: evt.Event) -> tuple[int, None]:
        answer = self.answers.pop(0) if self.answers else Answer()
        self.requests.append(event.action_information)
        if answer.status == 0x0000 and answer.how != "never":
            information = report_on(event.action_information, answer)
            send = self._report_here if answer.how == "same" else self.report
            arguments = (event.assoc, information) if answer.how == "same" else (information, answer.roles)
            threading.Thread(target=send, args=arguments, daemon=True).start()
        return answer.status, None

    def _report_here(self, association: Any, information: tuple[int, Dataset]) -> None:
        time.sleep(0.05)  # until the N-ACTION is answered
        event_type, dataset = information
        status, _ = association.send_n_event_report(
            dataset, event_type, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        self.report_statuses.append(int(status.Status))

    def report(self, information: tuple[int, Dataset], roles: bool = True) -> None:
        """Over an association to ``report_to``."""
        ae = AE(ae_title="PACS")
        role = build_role(StorageCommitmentPushModel, scu_role=False, scp_role=True)
        association = ae.associate(
            "127.0.0.1",
            self.report_to,
            ae_title="PACSNODE",
            contexts=[build_context(StorageCommitmentPushModel)],
            ext_neg=[role] if roles else [],
        )
        assert association.is_established
        event_type, dataset = information
        status, _ = association.send_n_event_report(
            dataset, event_type, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        self.report_statuses.append(int(status.Status))
        association.release()


def report_on(request: Dataset, answer: Answer) -> tuple[int, Dataset]:
    """Event type and Event Information."""
    information = Dataset()
    information.TransactionUID = request.TransactionUID
    information.ReferencedSOPSequence, information.FailedSOPSequence = [], []
    for place, reference in enumerate(request.ReferencedSOPSequence):
        item = Dataset()
        item.ReferencedSOPClassUID = reference.ReferencedSOPClassUID
        item.ReferencedSOPInstanceUID = reference.ReferencedSOPInstanceUID
        if place in answer.failed:
            item.FailureReason = answer.failed[place]
            information.FailedSOPSequence.append(item)
        elif place not in answer.forgotten:
            information.ReferencedSOPSequence.append(item)
    for keyword in ("ReferencedSOPSequence", "FailedSOPSequence"):
        if not information[keyword].value:
            delattr(information, keyword)
    return (2 if answer.failed else 1), information


class DeliveringNode:
    """A job with a result set, delivered turn by turn in threads; may be left and taken up by another."""

    def __init__(self, config: NodeConfig, engine: Engine) -> None:
        self.config, self.engine = config, engine
        self.metrics = Metrics("test")
        audit = AuditTrail(config.audit, config.data_dir, Source("T", "node"), self.metrics.audit)
        self.gates = make_gates(config, engine, audit, self.metrics)
        services = Services(config, engine, WorkerPool(0), self.gates, self.metrics, lambda: "")
        self._delivering = Delivering(ResultSets(services), engine, self.gates, self.metrics)
        self._done: set[int] = set()
        self._stopped = threading.Event()
        self.watch = CommitmentWatch(engine, self._enqueue)
        self.watch.start()

    def add_job(self, count: int = 3, destinations: Sequence[str] = ("pacs",)) -> list[str]:
        """Returns the SOP Instance UIDs of its results."""
        folder = self.config.data_dir / "results" / JOB
        folder.mkdir(parents=True)
        files = [write_object(folder, number) for number in range(count)]
        (folder / SUMMARY).write_text(json.dumps({"results": [{"path": file.name} for file in files]}))
        row = job_row(job_id=JOB, state="delivering", result_dir=f"results/{JOB}")
        with self.engine.begin() as connection:
            connection.execute(insert(series).values(series_row()))
            connection.execute(insert(jobs).values(row | {"destinations": list(destinations)}))
            for name in destinations:
                pending = {"job_id": JOB, "destination": name, "state": "pending", "updated_at": 1.0}
                connection.execute(insert(deliveries).values(pending))
        return [uid_of(file) for file in files]

    def begin(self, destination: str = "pacs") -> None:
        self._turn(destination, 1)

    def _turn(self, destination: str, turn: int) -> None:
        def work() -> None:
            outcome: Next = self._delivering.deliver(JOB, destination, 0)
            wait = outcome["retry_in_seconds"]
            if wait is not None and not self._stopped.wait(wait):
                self._turn(destination, turn + 1)

        if turn not in self._done and not self._stopped.is_set():
            self._done.add(turn)
            threading.Thread(target=work, daemon=True).start()

    def _enqueue(self, delivery: Delivery, turn: int) -> None:
        self._turn(delivery.destination, turn)

    def stop(self) -> None:
        self._stopped.set()
        self.watch.stop()

    def delivery(self) -> dict[str, Any]:
        with self.engine.connect() as connection:
            return dict(connection.execute(select(deliveries)).one()._mapping)

    def job_state(self) -> str:
        with self.engine.connect() as connection:
            return str(connection.execute(select(jobs.c.state)).scalar_one())

    def request_states(self) -> list[str]:
        query = select(commitment_requests.c.state).order_by(commitment_requests.c.id)
        with self.engine.connect() as connection:
            return [row[0] for row in connection.execute(query)]


def uid_of(file: Path) -> str:
    from pydicom import dcmread

    return str(dcmread(file).SOPInstanceUID)
