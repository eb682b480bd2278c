"""Storage Commitment over the wire: pynetdicom and Orthanc ask, and are reported to."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom import Dataset, dcmwrite
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pynetdicom.dimse_primitives import N_ACTION
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance, Verification

from node.config import ClientTls, CommitmentConfig, CommitmentPeer, NodeConfig, ReceiveConfig
from node.receive.commitment_ledger import DUPLICATE_TRANSACTION, NO_SUCH_INSTANCE
from node.scu import wait_for_reactor
from node.triton_server import free_port
from tests.certificates import Authority, Signed
from tests.integration.commitment_peers import (
    Report,
    Reports,
    Requestor,
    commitment_request,
    proposed_roles,
    report_receiver,
)
from tests.integration.receiving import CALLING, ReceivingNode, ct_slice, wait_for
from tests.integration.running import Pacs

pytestmark = pytest.mark.integration

Start = Callable[..., ReceivingNode]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts receiving nodes on the same data, with options of ``receive.commitment``."""
    with ExitStack() as stack:

        def start_node(**options: Any) -> ReceivingNode:
            commitment = CommitmentConfig(
                **{"report_delay_seconds": 0.2, "retry_seconds": 0.2, "timeout_seconds": 5.0, **options}
            )
            node = ReceivingNode(tmp_path / "data", receive_config(commitment))
            node.start()
            stack.callback(node.stop)
            return node

        yield start_node


def receive_config(commitment: CommitmentConfig) -> ReceiveConfig:
    return ReceiveConfig(
        port=0,
        allowed_calling_ae_titles=(CALLING, "ARCHIVE"),
        network_timeout_seconds=10.0,
        free_disk_floor_bytes=0,
        journal_bytes=0,
        commitment=commitment,
    )


def peer(port: int) -> dict[str, CommitmentPeer]:
    return {CALLING: CommitmentPeer(host="127.0.0.1", port=port)}


def images(count: int) -> list[Dataset]:
    series = generate_uid()
    return [ct_slice(series, number) for number in range(count)]


def uids(datasets: list[Dataset]) -> tuple[str, ...]:
    return tuple(str(dataset.SOPInstanceUID) for dataset in datasets)


def metric(node: ReceivingNode, name: str, **labels: str) -> float:
    return node.metrics.registry.get_sample_value(f"pacsnode_commitment_{name}", labels) or 0.0


def test_a_report_over_the_same_association_while_it_goes_on_being_used(start: Start) -> None:
    node = start(report_delay_seconds=2.0)
    stored = images(12)
    with Requestor(node.port) as requestor:
        for image in stored[:2]:
            assert requestor.store(image) == 0x0000
        transaction = requestor.ask(stored[:2])
        for image in stored[2:]:
            assert requestor.store(image) == 0x0000
            assert requestor.echo() == 0x0000
            time.sleep(0.23)
            assert requestor.reports.none_more(), "it comes when nothing else is expected"
        report = requestor.reports.next()
        assert report == Report(1, transaction, uids(stored[:2]), (), None)
        assert report.association is requestor.association
        second = requestor.ask(stored[2:])
        assert requestor.echo() == 0x0000
        assert requestor.reports.next() == Report(1, second, uids(stored[2:]), (), None)
        assert requestor.store(images(1)[0]) == 0x0000
    wait_for(lambda: metric(node, "reports_total", outcome="same_association") == 2)
    wait_for(lambda: metric(node, "instances_total", outcome="committed") == 12)
    wait_for(lambda: node.metrics.registry.get_sample_value("pacsnode_commitments_open") == 0)


def test_a_busy_association_is_reported_to_between_two_messages(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.receive.commitment_reports.BUSY_SECONDS", 0.3)
    node = start(report_delay_seconds=0.3)
    many = images(600)
    with Requestor(node.port) as requestor:
        assert requestor.store(many[0]) == 0x0000
        transaction = requestor.ask(many[:400])
        for image in many[1:]:
            assert requestor.store(image) == 0x0000
            if not requestor.reports.none_more():
                break
        report = requestor.reports.next()
        assert (report.event_type, report.transaction_uid) == (2, transaction)
        assert len(report.committed) + len(report.failed) == 400
        assert requestor.echo() == 0x0000


def test_failures_are_listed_with_their_reasons(start: Start) -> None:
    node = start()
    (stored, unknown) = images(2)
    wrong_class = Dataset()
    wrong_class.SOPClassUID, wrong_class.SOPInstanceUID = MRImageStorage, stored.SOPInstanceUID
    unsupported = Dataset()
    unsupported.SOPClassUID, unsupported.SOPInstanceUID = StorageCommitmentPushModel, generate_uid()
    with Requestor(node.port) as requestor:
        assert requestor.store(stored) == 0x0000
        transaction = requestor.ask([stored, unknown, wrong_class, unsupported])
        failed = (
            (str(unknown.SOPInstanceUID), 0x0112),
            (str(stored.SOPInstanceUID), 0x0119),
            (str(unsupported.SOPInstanceUID), 0x0122),
        )
        assert requestor.reports.next() == Report(2, transaction, uids([stored]), failed, None)


def test_a_transaction_uid_that_comes_again(start: Start) -> None:
    node = start()
    (image,) = images(1)
    with Requestor(node.port) as requestor:
        requestor.store(image)
        transaction = requestor.ask([image])
        assert requestor.reports.next() == Report(1, transaction, uids([image]), (), None)
        requestor.ask([image], uid=transaction)
        failed = ((str(image.SOPInstanceUID), DUPLICATE_TRANSACTION),)
        assert requestor.reports.next() == Report(2, transaction, (), failed, None)


def test_a_bad_request_gets_its_status_and_leaves_the_association_open(start: Start) -> None:
    node = start()
    (image,) = images(1)
    empty = commitment_request([])
    nameless = commitment_request([image])
    del nameless.TransactionUID
    with Requestor(node.port) as requestor:
        good = commitment_request([image])
        assert requestor.action(good, instance_uid="1.2.3") == 0x0112
        assert requestor.action(good, action_type=2) == 0x0123
        assert requestor.action(None) == 0x0115
        assert requestor.action(empty) == 0x0115
        assert requestor.action(nameless) == 0x0115
        for data in (b"\0", b"\xff" * 5000, bytes(range(256)) * 8):
            assert raw_action(requestor, data) == 0x0115
        assert raw_action(requestor, b"", action_type=None) == 0x0212
        assert raw_action(requestor, b"", sop_class=Verification) == 0x0118
        assert requestor.echo() == 0x0000
        transaction = requestor.ask([image])
        assert requestor.reports.next().transaction_uid == transaction
    assert metric(node, "requests_total", outcome="invalid_argument") == 6
    assert metric(node, "requests_total", outcome="accepted") == 1


def raw_action(
    requestor: Requestor,
    data: bytes,
    *,
    action_type: int | None = 1,
    sop_class: str = StorageCommitmentPushModel,
) -> int:
    """N-ACTION with any bytes as Action Information."""
    request = N_ACTION()
    request.MessageID = 77
    request.RequestedSOPClassUID = sop_class
    request.RequestedSOPInstanceUID = StorageCommitmentPushModelInstance
    request.ActionTypeID = action_type
    request.ActionInformation = BytesIO(data) if data else None
    association = requestor.association
    (context,) = [c for c in association.accepted_contexts if c.abstract_syntax == StorageCommitmentPushModel]
    # the reactor would take the answer for a request of the peer
    wait_for_reactor(association)
    association._reactor_checkpoint.clear()
    wait_for(lambda: association._is_paused)
    try:
        association.dimse.send_msg(request, context.context_id)
        _, response = association.dimse.get_msg(block=True)
    finally:
        association._reactor_checkpoint.set()
    assert response is not None and response.MessageIDBeingRespondedTo == 77
    return int(response.Status)


def test_who_has_released_is_reported_to_over_a_new_association(start: Start) -> None:
    port = free_port()
    node = start(peers=peer(port), report_delay_seconds=5.0)
    reports, stored = Reports(), images(2)
    with report_receiver(port, reports):
        with Requestor(node.port) as requestor:
            for image in stored:
                requestor.store(image)
            transactions = {requestor.ask(stored), requestor.ask(stored[:1])}
        first, second = reports.next(), reports.next()
        assert {first.transaction_uid, second.transaction_uid} == transactions
        assert {first.committed, second.committed} == {uids(stored), uids(stored[:1])}
        assert proposed_roles(first) == (False, True)
        calling = first.association.requestor.primitive.calling_ae_title
        assert calling.strip() == "PACSNODE"
        wait_for(lambda: first.association.is_released and second.association.is_released)
    wait_for(lambda: metric(node, "reports_total", outcome="new_association") == 2)


def test_a_requestor_that_is_down_is_reported_to_when_it_is_back(start: Start) -> None:
    port = free_port()
    node = start(peers=peer(port))
    (image,) = images(1)
    with Requestor(node.port) as requestor:
        transaction = requestor.ask([image])
    wait_for(lambda: metric(node, "reports_total", outcome="failed") >= 2, what="attempts")
    reports = Reports(0x0110)  # once more it can't
    with report_receiver(port, reports):
        failed = ((str(image.SOPInstanceUID), NO_SUCH_INSTANCE),)
        assert reports.next() == reports.next() == Report(2, transaction, (), failed, None)
    wait_for(lambda: metric(node, "reports_total", outcome="new_association") == 1)


def test_a_report_that_the_requestor_does_not_want_is_given_up(start: Start) -> None:
    node = start()
    with Requestor(node.port, Reports(0x0115)) as requestor:
        requestor.ask(images(1))
        requestor.reports.next()
        wait_for(lambda: metric(node, "reports_total", outcome="given_up") == 1)


def test_an_unreachable_requestor_is_given_up_in_the_end(start: Start) -> None:
    node = start(give_up_seconds=0.5, retry_seconds=0.1)
    with Requestor(node.port) as requestor:
        requestor.ask(images(1))
    wait_for(lambda: metric(node, "reports_total", outcome="given_up") == 1)
    node.stop()
    node = start()
    assert node.metrics.registry.get_sample_value("pacsnode_commitments_open") == 0


def test_a_report_through_tls(start: Start, authority: Authority, sender: Signed) -> None:
    port = free_port()
    ours = authority.sign("reporting-node")
    files = ClientTls(ca=authority.ca, certificate=ours.certificate, key=ours.key)
    node = start(peers={CALLING: CommitmentPeer(host="127.0.0.1", port=port, tls=files)})
    with Requestor(node.port) as requestor:
        transaction = requestor.ask(images(1))
    plain, secure = Reports(), Reports()
    with report_receiver(port, plain):
        failed = metric(node, "reports_total", outcome="failed")
        wait_for(lambda: metric(node, "reports_total", outcome="failed") > failed + 1, what="an attempt")
    assert plain.none_more(), "nothing is told without TLS"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.ca))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(sender.certificate, sender.key)
    with report_receiver(port, secure, ssl_context=context):
        assert secure.next().transaction_uid == transaction


def test_a_dead_requestor_holds_up_nobody_else(start: Start) -> None:
    """Of two AE titles, one accepts connections and never answers."""
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        peers = {
            "ARCHIVE": CommitmentPeer(host="127.0.0.1", port=silent.getsockname()[1]),
            **peer(port),
        }
        node = start(peers=peers)
        with Requestor(node.port, calling="ARCHIVE") as requestor:
            requestor.ask(images(1))
        silent.settimeout(10)
        connection, _address = silent.accept()
        reports = Reports()
        with report_receiver(port, reports), connection:
            with Requestor(node.port) as requestor:
                transaction = requestor.ask(images(1))
            started = time.monotonic()
            assert reports.next().transaction_uid == transaction
            assert time.monotonic() - started < 3.0


class Receiver:
    """``python -m node.receive`` as a process to be killed."""

    def __init__(self, config: NodeConfig) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "node.receive"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(config.model_dump_json().encode() + b"\n")
        self.process.stdin.flush()
        event = json.loads(self.process.stdout.readline())
        assert event["event"] == "ready", event
        self.port = int(event["port"])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def test_a_receiver_that_is_killed_before_the_report_reports_after_its_restart(tmp_path: Path) -> None:
    port = free_port()
    commitment = CommitmentConfig(peers=peer(port), report_delay_seconds=60.0)
    config = NodeConfig(data_dir=tmp_path / "data", receive=receive_config(commitment))
    stored, transactions = images(3), []
    receiver = Receiver(config)
    requestor = Requestor(receiver.port)
    for image in stored:
        assert requestor.store(image) == 0x0000
        transactions.append(requestor.ask([image]))
    receiver.kill()
    reports = Reports()
    with report_receiver(port, reports):
        again = Receiver(config)
        found = [reports.next() for _ in stored]
        again.kill()
    assert [report.transaction_uid for report in found] == transactions
    assert [report.committed for report in found] == [uids([image]) for image in stored]
    assert reports.none_more()


def test_many_transactions_at_once(start: Start) -> None:
    """Four associations, each with C-STOREs and requests from one thread and reports from another."""
    node = start(report_delay_seconds=0.0)
    wrong: list[str] = []

    def use(stored: list[Dataset]) -> None:
        with Requestor(node.port) as requestor:
            for image in stored:
                if requestor.store(image) != 0x0000:
                    wrong.append("not stored")
                expected = Report(1, requestor.ask([image]), uids([image]), (), None)
                if requestor.reports.next() != expected:
                    wrong.append("not reported")

    threads = [threading.Thread(target=use, args=(images(8),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    wait_for(lambda: metric(node, "reports_total", outcome="same_association") == 32)


class OrthancRequestor:
    """Orthanc, told of our node; it releases after its N-ACTION and waits for an association of ours."""

    def __init__(self, pacs: Pacs, node_port: int) -> None:
        self.url = pacs.url
        node = {"AET": "PACSNODE", "Host": "127.0.0.1", "Port": node_port, "AllowStorageCommitment": True}
        self._put("/modalities/node", node)

    def add(self, image: Dataset) -> str:
        buffer = BytesIO()
        image.PatientID, image.PatientName = "P", "P"
        image.ensure_file_meta()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dcmwrite(buffer, image, enforce_file_format=True)
        answer = httpx.post(f"{self.url}/instances", content=buffer.getvalue(), timeout=30.0)
        return str(answer.raise_for_status().json()["ID"])

    def store_and_ask(self, identifiers: list[str]) -> str:
        body = {"Resources": identifiers, "StorageCommitment": True, "Synchronous": True}
        return str(self._post("/modalities/node/store", body)["StorageCommitmentTransactionUID"])

    def ask(self, references: list[tuple[str, str]]) -> str:
        body = {"DicomInstances": [list(pair) for pair in references]}
        return str(self._post("/modalities/node/storage-commitment", body)["ID"])

    def result(self, transaction: str) -> dict[str, Any]:
        def answered() -> dict[str, Any] | None:
            url = f"{self.url}/storage-commitment/{transaction}"
            found: dict[str, Any] = httpx.get(url, timeout=30.0).raise_for_status().json()
            return found if found["Status"] != "Pending" else None

        found: dict[str, Any] = wait_for(answered, what="Orthanc to hear of its transaction")
        return found

    def _put(self, path: str, body: Any) -> None:
        httpx.put(f"{self.url}{path}", json=body, timeout=30.0).raise_for_status()

    def _post(self, path: str, body: Any) -> Any:
        return httpx.post(f"{self.url}{path}", json=body, timeout=30.0).raise_for_status().json()


def test_orthanc_asks_and_understands_the_report(start: Start, pacs: Pacs) -> None:
    peers = {"ARCHIVE": CommitmentPeer(host="127.0.0.1", port=pacs.port)}
    node = start(peers=peers, report_delay_seconds=2.0)  # by then Orthanc has released its association
    orthanc = OrthancRequestor(pacs, node.port)
    stored = images(3)
    transaction = orthanc.store_and_ask([orthanc.add(image) for image in stored])
    result = orthanc.result(transaction)
    assert result["Status"] == "Success", result
    assert {item["SOPInstanceUID"] for item in result["Success"]} == set(uids(stored))

    unknown = generate_uid()
    known = str(stored[0].SOPInstanceUID)
    result = orthanc.result(
        orthanc.ask([(CTImageStorage, known), (CTImageStorage, unknown), (MRImageStorage, known)])
    )
    assert result["Status"] == "Failure"
    assert [item["SOPInstanceUID"] for item in result["Success"]] == [known]
    reasons = {
        (item["SOPClassUID"], item["SOPInstanceUID"]): item["FailureReason"] for item in result["Failures"]
    }
    assert reasons == {(CTImageStorage, unknown): 0x0112, (MRImageStorage, known): 0x0119}
    wait_for(lambda: metric(node, "reports_total", outcome="new_association") == 2)
    assert metric(node, "reports_total", outcome="failed") == 0
