"""The whole node as Storage Commitment SCU, killed with -9 between its request and the report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine, insert, select

from node.database import commitment_requests, jobs, open_database, series
from pipelines.request import SUMMARY
from tests.integration.committing_peer import Answer, CommittingPeer, report_on
from tests.integration.receiving import wait_for
from tests.integration.running import RunningNode
from tests.unit.node.deliver.conftest import write_object
from tests.unit.node.rows import job_row, series_row

pytestmark = pytest.mark.integration
JOB = "j1"


@pytest.fixture
def peer() -> Iterator[CommittingPeer]:
    made = CommittingPeer()
    yield made
    made.stop()


@pytest.fixture
def node(tmp_path: Path, peer: CommittingPeer) -> Iterator[RunningNode]:
    """Not started: with a queued job whose result set is there already."""
    pacs = {"type": "cstore", "ae_title": "PACS", "host": "127.0.0.1", "port": peer.port}
    more = {"retry_seconds": 0.2, "commitment": {"same_association_seconds": 0.1}}
    receive = {"allowed_calling_ae_titles": ["PACS"], "free_disk_floor_bytes": 0, "movers": 0}
    running = RunningNode(
        tmp_path, triton_url="127.0.0.1:1", pacs_port=1, destinations={"pacs": pacs | more}, receive=receive
    )
    folder = running.data_dir / "results" / JOB
    folder.mkdir(parents=True)
    files = [write_object(folder, number) for number in range(2)]
    summary = {"results": [{"path": file.name} for file in files], "findings": [], "noisy_or": {}}
    (folder / SUMMARY).write_text(json.dumps(summary | {"case_type": "", "timings_seconds": {}}))
    engine = open_database(running.data_dir)
    with engine.begin() as connection:
        connection.execute(insert(series).values(series_row()))
        connection.execute(insert(jobs).values(job_row(job_id=JOB)))
    engine.dispose()
    yield running
    if running.process is not None:
        running.stop()


def request_states(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return [row[0] for row in connection.execute(select(commitment_requests.c.state))]


def test_killed_between_request_and_report(node: RunningNode, peer: CommittingPeer) -> None:
    peer.answers = [Answer(how="never")]
    node.start()
    engine = open_database(node.data_dir)
    wait_for(lambda: peer.requests and request_states(engine) == ["open"], seconds=60)
    wait_for(lambda: node.jobs()[0]["deliveries"][0]["state"] == "stored")
    node.kill()
    node.start()
    peer.report_to = node.port
    # one isn't kept: it is sent again, and asked for by a request that is answered at once
    peer.report(report_on(peer.requests[0], Answer(failed={1: 0x0110})))
    assert node.job_in("done", seconds=60)["deliveries"][0]["state"] == "delivered"
    assert len(peer.stored) == 3 and len(peer.requests) == 2
    assert set(request_states(engine)) == {"closed"}
    engine.dispose()
    (destination,) = httpx.get(f"http://127.0.0.1:{node.web_port}/api/destinations", timeout=10.0).json()
    assert (destination["name"], destination["state"], destination["waiting"]) == ("pacs", "closed", 0)
    assert 'pacsnode_committed_instances_total{destination="pacs",outcome="committed"} 2.0' in node.text(
        "/metrics"
    )
    assert "Destinations" in node.text("/")
