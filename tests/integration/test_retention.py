"""Retention beside a real receiver: what was purged doesn't come back, and what is sent again does."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import Dataset
from sqlalchemy import insert, update

from node.config import NodeConfig, RouteConfig
from node.database import jobs, series
from node.metrics import Metrics
from node.retention import Retention
from tests.integration.commitment_peers import Reports, Requestor
from tests.integration.receiving import CT, ReceivingNode, Sender, ct_slice, wait_for
from tests.unit.node.rows import job_row

pytestmark = pytest.mark.integration
SERIES = "1.2.826.0.1.3680043.8.498.78"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ReceivingNode]:
    running = ReceivingNode(tmp_path / "data").start()
    yield running
    running.stop(0.1)


def images() -> list[Dataset]:
    return [ct_slice(SERIES, number) for number in (1, 2, 3)]


def send_and_finish(node: ReceivingNode, *, journal: Path | None = None) -> Retention:
    """Send the series and let its job be done. journal: where to copy it, before anything is filed."""
    sender = Sender(node.port, CT)
    for image in images():
        assert sender.store_image(image) == 0x0000
    if journal is not None:
        shutil.copytree(node.data_dir / "spool/journal", journal)
    sender.release()
    wait_for(lambda: node.completed)
    row = job_row(series_instance_uid=SERIES, state="done", finished_at=time.time() - 1)
    with node.engine.begin() as connection:
        connection.execute(update(series).values(state="routed"))
        connection.execute(insert(jobs).values(row))
    route = RouteConfig(name="r", pipeline="p", when={}, destinations=("x",), retention_seconds=0)
    config = NodeConfig.model_construct(data_dir=node.data_dir, routes=(route,))
    return Retention(config, node.engine, Metrics("test"))


def states(node: ReceivingNode) -> list[str]:
    return [row["state"] for row in node.rows()]


def test_a_journal_that_a_crash_left_brings_nothing_back(node: ReceivingNode, tmp_path: Path) -> None:
    """Its segments weren't used again since."""
    assert send_and_finish(node, journal=tmp_path / "left").look() == 1
    assert states(node) == ["purged"] * 3
    journal = node.data_dir / "spool/journal"
    node.stop()
    shutil.rmtree(journal)
    shutil.copytree(tmp_path / "left", journal)
    again = ReceivingNode(node.data_dir).start()
    try:
        assert states(again) == ["purged"] * 3
        assert [row["version"] for row in again.series_rows()] == [1]
    finally:
        again.stop()
    node.start()


def test_what_is_sent_again_is_a_new_version(node: ReceivingNode) -> None:
    assert send_and_finish(node).look() == 1
    node.completed.clear()
    sender = Sender(node.port, CT)
    for image in images():
        assert sender.store_image(image) == 0x0000
    sender.release()
    wait_for(lambda: node.completed == [(SERIES, 2)])
    assert states(node) == ["purged"] * 3 + ["stored"] * 3


def test_what_we_have_committed_stays(node: ReceivingNode) -> None:
    retention = send_and_finish(node)
    with Requestor(node.port, Reports()) as requestor:
        requestor.ask(images()[:1])
        assert len(requestor.reports.next().committed) == 1
    assert retention.look() == 0
    assert states(node) == ["stored"] * 3


def test_what_is_purged_is_not_committed(node: ReceivingNode) -> None:
    assert send_and_finish(node).look() == 1
    with Requestor(node.port, Reports()) as requestor:
        requestor.ask(images()[:1])
        assert [reason for _, reason in requestor.reports.next().failed] == [0x0112]
