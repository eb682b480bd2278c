"""From C-STORE to a job or the recorded reason why not, with real series."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from node.database import jobs
from node.metrics import Metrics
from node.route.defaults import default_routes
from node.route.router import Router, compile_routes
from tests.integration.receiving import (
    ReceivingNode,
    Sender,
    contexts_of,
    series_uid_of,
    storescu,
    wait_for,
)
from tests.shared_data import shared

pytestmark = pytest.mark.integration


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ReceivingNode]:
    running = ReceivingNode(tmp_path)
    enqueued: list[str] = []
    running.start()
    router = Router(
        running.engine, tmp_path, compile_routes(default_routes(["pacs"])), enqueued.append, Metrics("test")
    )
    running.on_complete = router.route
    yield running
    running.stop()


def decisions(node: ReceivingNode) -> dict[str, dict[str, Any]]:
    return {row["series_instance_uid"]: row["decision"] for row in node.series_rows() if row["decision"]}


def test_what_is_no_chest_ct_is_received_and_its_reason_recorded(node: ReceivingNode) -> None:
    expected = {
        "geometry/ge_head_tilt_variable_spacing": ("body_part_examined", "body_part_examined is HEAD"),
        "geometry/philips_localizer": ("image_type", "which is excluded"),
        "geometry/philips_exam_summary_sc": ("sop_class", "sop_class is SecondaryCaptureImageStorage"),
    }
    for folder in expected:
        sent = storescu(node.port, sorted(shared(folder).iterdir()), "-R")
        assert sent.returncode == 0, sent.stderr
    wait_for(lambda: len(decisions(node)) == 3)
    for folder, (code, why) in expected.items():
        decision = decisions(node)[series_uid_of(shared(folder))]
        assert (decision["matched"], decision["reason_code"]) == ([], code)
        assert why in decision["routes"][0]["why"]
    with node.engine.connect() as connection:
        assert connection.execute(select(jobs)).all() == []


def test_two_chest_cts_interleaved_become_two_jobs(node: ReceivingNode) -> None:
    folders = [shared("chest_ct/lidc0001_ge_deflated"), shared("chest_ct/lungdx_a0002_siemens_b40f")]
    series = [sorted(folder.iterdir()) for folder in folders]
    mixed = [path for pair in zip(*series, strict=False) for path in pair]
    mixed += [path for paths in series for path in paths if path not in mixed]
    sender = Sender(node.port, contexts_of(mixed))
    assert {sender.store_file(path) for path in mixed} == {0}
    sender.release()
    wait_for(lambda: len(decisions(node)) == 2)
    with node.engine.connect() as connection:
        made = connection.execute(select(jobs)).all()
    assert {job.series_instance_uid for job in made} == {series_uid_of(folder) for folder in folders}
    assert {(job.pipeline, job.state) for job in made} == {("chest_ct_pneumonia", "queued")}
    assert [row["instance_count"] for row in node.series_rows()] == [133, 30]
