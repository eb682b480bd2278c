"""Triton hangs, dies and comes back while series arrive: nothing fails, all is delivered, in priority order.

``PACSNODE_TRITON_STOPPED_SECONDS`` says how long it is away; ten minutes are 600.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from node.triton_server import EmbeddedTriton
from tests.integration.receiving import wait_for
from tests.integration.running import Pacs, RunningNode, storescu
from triton_models.data.dicom_series import write_series
from triton_models.data.phantom import chest_phantom

pytestmark = pytest.mark.integration

STOPPED_SECONDS = float(os.environ.get("PACSNODE_TRITON_STOPPED_SECONDS", "10"))
#: what hangs is given up after it; a machine that is very busy may take longer, and tries again
REQUEST_SECONDS = 6.0
#: by what a route tells from the series' description
PRIORITIES = {"low": 300, "middle": 200, "high": 100}
ARRIVE = ("low", "middle", "high", "low", "high")
PIPELINE = "chest_ct_triage"


def copy_of(series: Path, folder: Path, description: str) -> Path:
    """The same images as another series."""
    folder.mkdir()
    uid = generate_uid()
    for number, path in enumerate(sorted(series.glob("*.dcm"))):
        image = dcmread(path)
        image.SeriesDescription, image.SeriesInstanceUID = description, uid
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        image.save_as(folder / f"{number}.dcm")
    return folder


def routes() -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "pipeline": PIPELINE,
            "when": {"fact": "series_description", "equals": name},
            "destinations": ["pacs"],
            "priority": priority,
        }
        for name, priority in PRIORITIES.items()
    ]


@pytest.mark.timeout(900 + STOPPED_SECONDS)
def test_nothing_fails_and_what_is_urgent_comes_first(tmp_path: Path, pacs: Pacs) -> None:
    write_series(chest_phantom(11, slices=16, rows=128, columns=128), tmp_path / "phantom", seed=11)
    series = [copy_of(tmp_path / "phantom", tmp_path / f"{n}-{name}", name) for n, name in enumerate(ARRIVE)]
    first = copy_of(tmp_path / "phantom", tmp_path / "first", "low")
    triton = EmbeddedTriton()
    triton.start()
    node = RunningNode(
        tmp_path / "node",
        triton_url=triton.url,
        pacs_port=pacs.port,
        routes=routes(),
        triton={"url": triton.url, "request_timeout_seconds": REQUEST_SECONDS},
        run={"retry_seconds": 0.5, "max_attempts": 10},
    ).start()
    try:
        assert storescu(node.port, first).returncode == 0
        wait_for(lambda: has_begun(node, "lungs"), seconds=120, what="a job in the middle of its run")
        port = int(triton.url.rpartition(":")[2])
        away(node, triton, series)
        triton = EmbeddedTriton(grpc_port=port)
        triton.start()
        jobs = wait_for(lambda: all_done(node), seconds=600, what=f"all jobs; see {node.log_path}")
        check(node, pacs, jobs)
    finally:
        node.stop()
        triton.stop()


def has_begun(node: RunningNode, stage: str) -> bool:
    return any(event["stage"] == stage for event in node.events("job_progress"))


def away(node: RunningNode, triton: EmbeddedTriton, series: list[Path]) -> None:
    """Triton hangs for half of the time, then it is gone. Series arrive in the first half."""
    began = time.monotonic()
    os.kill(triton.pid, signal.SIGSTOP)
    wait_for(lambda: node.events("job_waits_for_triton"), seconds=120, what="the job to wait for Triton")
    for folder in series:
        assert storescu(node.port, folder).returncode == 0
    wait_for(lambda: len(node.jobs()) == 1 + len(series), seconds=120, what="all jobs to be queued")
    assert node.get("/readyz")["failing"].keys() == {"triton"}
    time.sleep(max(0.0, STOPPED_SECONDS / 2 - (time.monotonic() - began)))
    assert triton._folder is not None and triton._process is not None
    backends = f"{triton._folder.backends}/"
    triton._process.kill()
    triton.stop()
    wait_for(lambda: not running(backends), seconds=60, what="backends to end with their server")
    time.sleep(max(0.0, STOPPED_SECONDS - (time.monotonic() - began)))
    waiting = [(job["state"], job["reason_code"]) for job in node.jobs()]
    assert {state for state, _ in waiting} == {"queued"}
    assert waiting.count(("queued", "triton_unavailable")) == 1, "one of them is in its place"
    assert not node.events("delivered")


def running(folder: str) -> list[str]:
    """Programs below a folder."""
    return [program for program in map(program_of, Path("/proc").glob("[0-9]*")) if folder in program]


def program_of(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace")
    except OSError:
        return ""


def all_done(node: RunningNode) -> list[dict[str, Any]] | None:
    jobs = node.jobs()
    failed = [job["reason"] for job in jobs if job["state"] == "failed"]
    assert not failed, failed
    return jobs if all(job["state"] == "done" for job in jobs) else None


def check(node: RunningNode, pacs: Pacs, jobs: list[dict[str, Any]]) -> None:
    expected = {result["sop_instance_uid"] for job in jobs for result in node.summary(job)["results"]}
    assert set(pacs.instances()) == expected
    first, *later = sorted(jobs, key=lambda job: job["started_at"])
    assert first["created_at"] == min(job["created_at"] for job in jobs), "it kept its place"
    assert later == sorted(later, key=lambda job: (job["priority"], job["created_at"]))
    finished = {
        priority: [job["finished_at"] for job in later if job["priority"] == priority]
        for priority in PRIORITIES.values()
    }
    assert max(finished[PRIORITIES["high"]]) < min(finished[PRIORITIES["low"]])
    assert not node.events("job_failed")
    retried = {event["job_id"]: event["code"] for event in node.events("job_retried")}
    assert retried[first["job_id"]] == "inference_interrupted"
    assert set(retried.values()) <= {"inference_interrupted", "triton_unavailable"}  # of a busy machine
