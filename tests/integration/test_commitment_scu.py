"""Storage Commitment as SCU: a job is done only when its results are committed, whatever happens before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from node.config import CommitmentOptions, CStoreDestination, NodeConfig
from node.database import commitment_requests
from node.demo.archive import AE_TITLE
from tests.integration.committing_peer import Answer, CommittingPeer, DeliveringNode, report_on
from tests.integration.receiving import ReceivingNode, wait_for
from tests.integration.running import Pacs

pytestmark = pytest.mark.integration

Start = Callable[..., DeliveringNode]


@pytest.fixture
def peer() -> Iterator[CommittingPeer]:
    made = CommittingPeer()
    yield made
    made.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start listener and deliveries for a destination at a port; ``again`` after a stop."""
    stops: list[Callable[[], object]] = []

    def started(port: int, ae_title: str = "PACS", **options: Any) -> DeliveringNode:
        destination = CStoreDestination(
            type="cstore",
            ae_title=ae_title,
            host="127.0.0.1",
            port=port,
            timeout_seconds=5.0,
            retry_seconds=0.1,
            max_retry_seconds=0.5,
            commitment=CommitmentOptions.model_validate({"same_association_seconds": 0.2, **options}),
        )
        receiving = ReceivingNode(tmp_path / "data", destinations={"pacs": destination})
        titles = ("PACS", AE_TITLE)
        receiving.receive = receiving.receive.model_copy(update={"allowed_calling_ae_titles": titles})
        receiving.start()
        config = NodeConfig(
            data_dir=tmp_path / "data", receive=receiving.receive, destinations=receiving.destinations
        )
        node = DeliveringNode(config, receiving.engine)
        node.port = receiving.port  # type: ignore[attr-defined]

        def stop() -> None:
            node.stop()
            receiving.stop(0.1)

        node.stop_all = stop  # type: ignore[attr-defined]
        stops.append(stop)
        return node

    yield started
    for stop in stops[-1:]:
        stop()


def port_of(node: DeliveringNode) -> int:
    return int(node.port)  # type: ignore[attr-defined]


def is_done(node: DeliveringNode) -> None:
    wait_for(lambda: node.job_state() == "done", seconds=20.0, what="the job to be done")
    assert node.delivery()["state"] == "delivered"


@pytest.mark.parametrize("how", ["same", "new"])
@pytest.mark.parametrize("roles", [True, False])
def test_done_when_it_is_committed(start: Start, peer: CommittingPeer, how: Any, roles: bool) -> None:
    node = start(peer.port)
    peer.report_to, peer.answers = port_of(node), [Answer(how=how, roles=roles)]
    uids = node.add_job()
    node.begin()
    is_done(node)
    assert peer.stored == uids
    (request,) = peer.requests
    assert [str(item.ReferencedSOPInstanceUID) for item in request.ReferencedSOPSequence] == uids
    wait_for(lambda: peer.report_statuses == [0x0000])
    assert node.request_states() == ["closed"]
    name = "pacsnode_delivery_turnaround_seconds_sum"
    value = node.metrics.registry.get_sample_value
    stored, committed = (
        value(name, {"destination": "pacs", "until": until}) for until in ("stored", "committed")
    )
    assert stored is not None and committed is not None and stored <= committed


def test_stored_is_not_done(start: Start, peer: CommittingPeer) -> None:
    node = start(peer.port)
    peer.answers = [Answer(how="never")]
    node.add_job()
    node.begin()
    wait_for(lambda: peer.requests and node.delivery()["state"] == "stored")
    assert node.job_state() == "delivering"
    peer.report_to = port_of(node)
    peer.report(report_on(peer.requests[0], Answer()))
    is_done(node)


@pytest.mark.parametrize("answer", [Answer(failed={1: 0x0112}), Answer(forgotten=(1,))])
def test_what_is_not_committed_is_sent_again_and_nothing_else(
    start: Start, peer: CommittingPeer, answer: Answer
) -> None:
    node = start(peer.port)
    peer.report_to, peer.answers = port_of(node), [answer]
    uids = node.add_job()
    node.begin()
    is_done(node)
    assert peer.stored == [*uids, uids[1]]
    second = peer.requests[1]
    assert [str(item.ReferencedSOPInstanceUID) for item in second.ReferencedSOPSequence] == [uids[1]]
    assert second.TransactionUID != peer.requests[0].TransactionUID


def test_what_will_never_be_committed_fails_the_job(start: Start, peer: CommittingPeer) -> None:
    node = start(peer.port)
    peer.report_to, peer.answers = port_of(node), [Answer(failed={0: 0x0122})]
    uids = node.add_job()
    node.begin()
    wait_for(lambda: node.job_state() == "failed")
    error = node.delivery()["last_error"]
    assert uids[0] in error and "0x0122" in error and uids[1] not in error
    assert peer.stored == uids


def test_a_report_that_never_comes_is_asked_for_again(start: Start, peer: CommittingPeer) -> None:
    node = start(peer.port, report_seconds=0.5)
    peer.report_to, peer.answers = port_of(node), [Answer(how="never"), Answer(how="never")]
    uids = node.add_job()
    node.begin()
    is_done(node)
    assert peer.stored == uids  # not sent again
    assert node.request_states()[:2] == ["expired", "expired"]
    assert len({str(request.TransactionUID) for request in peer.requests}) == len(peer.requests) == 3


def test_a_late_report_counts(start: Start, peer: CommittingPeer) -> None:
    """It comes when the question was already put again, and nobody answers that."""
    node = start(peer.port)
    peer.report_to, peer.answers = port_of(node), [Answer(how="never")] * 100
    node.add_job()
    node.begin()
    wait_for(lambda: peer.requests and node.request_states() == ["open"])
    with node.engine.begin() as connection:
        connection.execute(update(commitment_requests).values(report_by=1.0))
    wait_for(lambda: node.request_states() == ["expired", "open"] and len(peer.requests) == 2)
    peer.report(report_on(peer.requests[0], Answer(failed={1: 0x0110})))
    wait_for(lambda: node.request_states() == ["closed", "open"])
    assert node.job_state() == "delivering"
    peer.report(report_on(peer.requests[0], Answer()))
    peer.report(report_on(peer.requests[1], Answer(failed={0: 0x0110})))
    is_done(node)


def test_a_request_that_is_refused_is_put_again(start: Start, peer: CommittingPeer) -> None:
    node = start(peer.port)
    peer.report_to, peer.answers = port_of(node), [Answer(status=0x0213), Answer(status=0x0110)]
    uids = node.add_job()
    node.begin()
    is_done(node)
    assert peer.stored == uids
    assert node.request_states() == ["withdrawn", "withdrawn", "closed"]


def test_a_peer_that_does_not_offer_it(start: Start, peer: CommittingPeer) -> None:
    node = start(peer.port)
    peer.answers = [Answer(status=0x0122)]
    node.add_job()
    node.begin()
    wait_for(lambda: node.job_state() == "failed")
    assert "N-ACTION" in node.delivery()["last_error"]


def test_reports_that_make_no_sense(start: Start, peer: CommittingPeer) -> None:
    node = start(peer.port)
    peer.report_to, peer.answers = port_of(node), [Answer(how="never")]
    node.add_job()
    node.begin()
    wait_for(lambda: node.request_states() == ["open"] and peer.requests)
    event_type, information = report_on(peer.requests[0], Answer())
    peer.report((3, information))
    information.TransactionUID = "1.2.3"
    peer.report((event_type, information))
    del information.TransactionUID
    peer.report((event_type, information))
    assert peer.report_statuses == [0x0113, 0x0115, 0x0115]
    assert node.job_state() == "delivering"


@pytest.mark.parametrize("when", ["while we are away", "after the restart"])
def test_a_restart_between_request_and_report(start: Start, peer: CommittingPeer, when: str) -> None:
    """The report finds the listener of the next process; or it was on record, and nothing had come of it."""
    node = start(peer.port)
    peer.answers = [Answer(how="never")]
    uids = node.add_job()
    node.begin()
    wait_for(lambda: node.request_states() == ["open"] and peer.requests)
    if when == "while we are away":
        node.stop()
        peer.report_to = port_of(node)
        peer.report(report_on(peer.requests[0], Answer()))
    node.stop_all()  # type: ignore[attr-defined]
    again = start(peer.port)
    if when == "after the restart":
        peer.report_to = port_of(again)
        peer.report(report_on(peer.requests[0], Answer()))
    is_done(again)
    assert peer.stored == uids and len(peer.requests) == 1


def test_commitment_that_is_no_longer_configured(start: Start, peer: CommittingPeer) -> None:
    """What waits for a report then is delivered when the report is due."""
    node = start(peer.port)
    peer.answers = [Answer(how="never")]
    node.add_job()
    node.begin()
    wait_for(lambda: peer.requests and node.request_states() == ["open"])
    node.gates["pacs"].commitment = None
    with node.engine.begin() as connection:
        connection.execute(update(commitment_requests).values(report_by=1.0))
    is_done(node)


def test_reports_of_jobs_that_ops_asked_for_again_are_nobody_s(start: Start, peer: CommittingPeer) -> None:
    node = start(peer.port)
    peer.report_to, peer.answers = port_of(node), [Answer(how="never")]
    node.add_job()
    node.begin()
    wait_for(lambda: node.request_states() == ["open"] and peer.requests)
    with node.engine.begin() as connection:
        connection.execute(update(commitment_requests).values(generation=7))
    peer.report(report_on(peer.requests[0], Answer()))
    assert peer.report_statuses == [0x0000]
    assert node.job_state() == "delivering"


def test_orthanc_commits(start: Start, pacs: Pacs) -> None:
    node = start(pacs.port, AE_TITLE)
    ours = {"AET": "PACSNODE", "Host": "127.0.0.1", "Port": port_of(node), "AllowStorageCommitment": True}
    httpx.put(f"{pacs.url}/modalities/node", json=ours, timeout=30.0).raise_for_status()
    uids = node.add_job()
    node.begin()
    is_done(node)
    assert set(pacs.instances()) == set(uids)


def test_orthanc_lost_one(start: Start, pacs: Pacs) -> None:
    """Deleted between store and commitment: Orthanc says so, and it is sent again."""
    node = start(pacs.port, AE_TITLE)
    uids = node.add_job()
    scu = node.gates["pacs"].commitment
    assert scu is not None
    ask = scu.request
    lost: list[str] = []

    def lose_one_then_ask(transaction_uid: str, references: Any) -> None:
        if not lost:
            found = httpx.post(f"{pacs.url}/tools/lookup", content=uids[1], timeout=30.0).json()
            lost.append(found[0]["ID"])
            httpx.delete(f"{pacs.url}/instances/{lost[0]}", timeout=30.0).raise_for_status()
        ask(transaction_uid, references)

    scu.request = lose_one_then_ask  # type: ignore[method-assign]
    ours = {"AET": "PACSNODE", "Host": "127.0.0.1", "Port": port_of(node), "AllowStorageCommitment": True}
    httpx.put(f"{pacs.url}/modalities/node", json=ours, timeout=30.0).raise_for_status()
    node.begin()
    is_done(node)
    assert set(pacs.instances()) == set(uids)
    assert len(node.request_states()) == 2
