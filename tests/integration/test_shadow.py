"""A candidate beside what is live, in a real node: compared, kept, and nowhere but here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from node.triton_server import DEFAULT_REPOSITORY, EmbeddedTriton
from tests.integration.receiving import wait_for
from tests.integration.running import Pacs, RunningNode, storescu
from triton_models.data.dicom_series import write_series
from triton_models.data.phantom import chest_phantom

pytestmark = pytest.mark.integration

#: a threshold takes the place of the network that finds the lungs
CANDIDATE = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        hu = pb_utils.get_input_tensor_by_name(request, "HU").as_numpy()
        lungs = ((hu > -950) & (hu < -500)).astype(np.uint8)
        return pb_utils.InferenceResponse([pb_utils.Tensor("LUNGS", lungs)])
"""
CONFIG = """
backend: "python"
max_batch_size: 16
input [ { name: "HU" data_type: TYPE_INT16 dims: [ -1, -1 ] } ]
output [ { name: "LUNGS" data_type: TYPE_UINT8 dims: [ -1, -1 ] } ]
parameters { key: "sha256" value { string_value: "abc" } }
"""
PIPELINE = "chest_ct_pneumonia"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedTriton]:
    """The shipped models with ``lungs_next`` among them."""
    repository = tmp_path / "repository"
    shutil.copytree(DEFAULT_REPOSITORY, repository)
    model = repository / "lungs_next"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.py").write_text(CANDIDATE)
    (model / "config.pbtxt").write_text(CONFIG)
    with EmbeddedTriton(repository) as server:
        yield server


def test_it_is_compared_and_never_delivered(tmp_path: Path, server: EmbeddedTriton, pacs: Pacs) -> None:
    write_series(chest_phantom(11, slices=16, rows=128, columns=128), tmp_path / "phantom", seed=11)
    shadow = {
        "lungs_next": {"pipeline": PIPELINE, "models": {"lungs": {"name": "lungs_next"}}},
        "nowhere": {"pipeline": PIPELINE, "models": {"lungs": {"name": "nowhere"}}},
    }
    node = RunningNode(tmp_path / "node", triton_url=server.url, pacs_port=pacs.port, shadow=shadow).start()
    try:
        assert storescu(node.port, tmp_path / "phantom").returncode == 0
        job = node.job_in("done", "failed")
        assert job["state"] == "done", job["reason"]
        shadows = wait_for(lambda: ended(node, job), seconds=400, what="candidates to end")
        retried = pacsnode(node, "jobs", "retry", job["job_id"])  # what is live goes out once more
        assert retried.returncode == 0
        wait_for(lambda: len(node.events("job_done")) == 2, seconds=60, what="the job to be done again")
        check_delivered(node, pacs, job)
        check_candidates(node, job, shadows)
        shown = pacsnode(node, "jobs", "shadows", "--json")
        counted = {one["candidate"]: one["runs"] for one in json.loads(shown.stdout)}
        assert counted == {"lungs_next": {"done": 1}, "nowhere": {"failed": 1}}
        shown = pacsnode(node, "jobs", "show", job["job_id"][:12])
        assert "lungs_next: done" in shown.stdout and "Dice" in shown.stdout
    finally:
        node.stop()


def ended(node: RunningNode, job: dict[str, Any]) -> dict[str, dict[str, Any]] | None:
    rows: list[dict[str, Any]] = node.get(f"/api/jobs/{job['job_id']}")["shadows"]
    return {row["candidate"]: row for row in rows} if all(row["finished_at"] for row in rows) else None


def pacsnode(node: RunningNode, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "node", *arguments, "--config", str(node.config_path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


def check_delivered(node: RunningNode, pacs: Pacs, job: dict[str, Any]) -> None:
    """The archive holds the live set and nothing else; deliveries are of the live set alone."""
    live = {result["sop_instance_uid"] for result in node.summary(job)["results"]}
    assert set(pacs.instances()) == live
    made = {dcmread(path).SOPInstanceUID for path in (node.data_dir / "shadows").rglob("*.dcm")}
    assert len(made) == len(live) and not made & live
    assert {event["objects"] for event in node.events("delivered")} == {len(live)}
    assert len(node.events("delivered")) == 2


def check_candidates(node: RunningNode, job: dict[str, Any], shadows: dict[str, dict[str, Any]]) -> None:
    found = shadows["lungs_next"]
    assert found["state"] == "done", found["reason"]
    dice = found["agreement"]["dice"]
    assert 0.3 < min(dice["Left lung"], dice["Right lung"]) < 1.0
    summary = json.loads((node.data_dir / found["result_dir"] / "summary.json").read_text())
    assert summary["agreement"] == found["agreement"]
    assert summary["models"]["lungs_next"] == {"version": "1", "sha256": "abc"}
    assert (shadows["nowhere"]["state"], shadows["nowhere"]["reason_code"]) == ("failed", "model_not_served")
    assert "no model named nowhere" in shadows["nowhere"]["reason"]
    text = node.text("/metrics")
    assert 'pacsnode_shadow_runs_total{candidate="nowhere",outcome="failed"} 1.0' in text
    assert 'pacsnode_shadow_dice_ratio_count{candidate="lungs_next",segment="Left lung"} 1.0' in text
    assert job["state"] == "done"
