"""The main job against real counterparts: DCMTK sends, Triton infers, Orthanc receives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydicom import dcmread
from pydicom.uid import (
    Comprehensive3DSRStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from node.triton_server import DEFAULT_REPOSITORY, EmbeddedTriton, free_port
from pipelines.noisy_or import noisy_or
from pipelines.triton import InferenceClient
from tests.integration.receiving import wait_for
from tests.integration.running import Pacs, RunningNode, storescu
from tests.processes import children, read
from tests.shared_data import shared
from triton_models.data.dicom_series import write_series
from triton_models.data.phantom import chest_phantom

pytestmark = pytest.mark.integration

RESULT_SOP_CLASSES = {
    SegmentationStorage,
    Comprehensive3DSRStorage,
    SecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
}
#: Orthanc's "simplified tags" that must be the input's
STUDY_TAGS = ("StudyInstanceUID", "PatientID", "PatientName", "AccessionNumber", "StudyDate", "StudyID")


def assert_one_result_set(pacs: Pacs, summary: dict[str, Any], source: Path) -> None:
    held = pacs.instances()
    assert set(held) == {result["sop_instance_uid"] for result in summary["results"]}
    assert {tags["SOPClassUID"] for tags in held.values()} == {str(uid) for uid in RESULT_SOP_CLASSES}
    header = dcmread(next(p for p in sorted(source.iterdir()) if p.suffix != ".txt"), stop_before_pixels=True)
    for tags in held.values():
        for keyword in STUDY_TAGS:
            assert tags.get(keyword, "") == str(header.get(keyword) or ""), keyword


def assert_recomputable(summary: dict[str, Any]) -> None:
    for finding_type, probability in summary["noisy_or"].items():
        inputs = [f["probability"] for f in summary["findings"] if f["type"] == finding_type]
        assert probability == pytest.approx(noisy_or(inputs))


def test_phantom_by_storescu_ends_in_the_archive(node: RunningNode, pacs: Pacs, phantom_series: Path) -> None:
    sent = storescu(node.port, phantom_series)
    assert sent.returncode == 0, sent.stderr
    job = node.job_in("done", "failed")
    assert job["state"] == "done", job["reason"]
    summary = node.summary(job)
    assert_one_result_set(pacs, summary, phantom_series)
    assert_recomputable(summary)
    assert summary["findings"], "the phantom has lesions"
    assert set(summary["models"]) == {"lungs", "lesions", "candidates", "infection_type", "inpaint"}
    assert all(len(model["sha256"]) == 64 for model in summary["models"].values())
    assert node.get("/readyz")["ready"] is True
    metrics = node.text("/metrics")
    assert (
        'pacsnode_jobs_finished_total{code="none",pipeline="chest_ct_pneumonia",state="done"} 1.0' in metrics
    )
    assert 'pacsnode_stage_duration_seconds_count{pipeline="chest_ct_pneumonia",stage="lungs"} 1.0' in metrics
    assert node.stop() == 0


@pytest.mark.parametrize("folder", ["lidc0001_ge_deflated", "lungdx_a0002_siemens_b40f"])
def test_real_series_by_storescu(node: RunningNode, pacs: Pacs, folder: str) -> None:
    source = shared(f"chest_ct/{folder}")
    sent = storescu(node.port, source)
    assert sent.returncode == 0, sent.stderr
    job = node.job_in("done", "failed")
    assert job["state"] == "done", job["reason"]
    assert_one_result_set(pacs, node.summary(job), source)
    assert_recomputable(node.summary(job))


@pytest.mark.parametrize("stage", ["load", "lesions", "results"])
def test_kill_9_during_the_run(node: RunningNode, pacs: Pacs, phantom_series: Path, stage: str) -> None:
    assert storescu(node.port, phantom_series).returncode == 0
    wait_for(
        lambda: any(event["stage"] == stage for event in node.events("job_progress")),
        seconds=60,
        what=f"stage {stage}",
    )
    node.kill()
    assert pacs.instances() == {}
    node.start()
    job = node.job_in("done", "failed")
    assert job["state"] == "done", job["reason"]
    assert_one_result_set(pacs, node.summary(job), phantom_series)


def test_kill_9_with_the_embedded_triton(tmp_path: Path, pacs: Pacs, phantom_series: Path) -> None:
    """As ``make demo`` runs it: the killed node's Triton ends, too, and the next one finishes the job."""
    node = RunningNode(tmp_path / "node", triton_url=None, pacs_port=pacs.port).start()
    try:
        wait_for(lambda: node.get("/readyz")["ready"], seconds=120, what="the embedded Triton")
        (ready,) = node.events("triton_ready")
        assert storescu(node.port, phantom_series).returncode == 0
        wait_for(
            lambda: any(event["stage"] == "lungs" for event in node.events("job_progress")),
            seconds=60,
            what="inference",
        )
        node.kill()
        with InferenceClient(ready["url"], timeout_seconds=1.0) as orphan:
            wait_for(lambda: not orphan.ready(), seconds=20, what="the end of the killed node's Triton")
        node.start()
        job = node.job_in("done", "failed")
        assert job["state"] == "done", job["reason"]
        assert_one_result_set(pacs, node.summary(job), phantom_series)
        assert node.stop() == 0
    finally:
        node.stop()


def test_kill_9_during_delivery(node: RunningNode, pacs: Pacs, phantom_series: Path) -> None:
    assert storescu(node.port, phantom_series).returncode == 0
    wait_for(lambda: node.events("job_ran"), seconds=120, what="the results")
    node.kill()
    node.start()
    job = node.job_in("done", "failed")
    assert_one_result_set(pacs, node.summary(job), phantom_series)


def test_what_matches_no_route_is_kept_with_its_reason(node: RunningNode, pacs: Pacs) -> None:
    folders = ["ge_head_tilt_variable_spacing", "philips_localizer", "philips_exam_summary_sc"]
    for folder in folders:
        sent = storescu(node.port, shared(f"geometry/{folder}"))
        assert sent.returncode == 0, sent.stderr
    series = wait_for(
        lambda: (
            [s for s in node.get("/api/series") if s["state"] == "routed"][len(folders) - 1 :]
            and node.get("/api/series")
        ),
        seconds=20,
        what="three routed series",
    )
    assert node.jobs() == []
    assert pacs.instances() == {}
    logged = {event["series_instance_uid"]: event["reasons"] for event in node.events("series_unmatched")}
    for version in series:
        (route,) = version["decision"]["routes"]
        assert route["matches"] is False
        assert route["why"] == logged[version["series_instance_uid"]][route["route"]]
        assert "wanted" in route["why"] or "is" in route["why"]


def test_garbage_beside_a_good_series_changes_nothing(
    node: RunningNode, pacs: Pacs, phantom_series: Path, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    good = sorted(phantom_series.iterdir())
    for i, path in enumerate(good):
        (mixed / f"{i:03d}-good.dcm").write_bytes(path.read_bytes())
        broken = dcmread(path)
        broken.SOPInstanceUID = f"1.2.826.0.1.3680043.8.498.{i}"
        broken.SeriesInstanceUID = ""
        broken.file_meta.MediaStorageSOPInstanceUID = broken.SOPInstanceUID
        broken.save_as(mixed / f"{i:03d}-no-series.dcm")
    storescu(node.port, mixed)
    job = node.job_in("done", "failed")
    assert job["state"] == "done", job["reason"]
    assert_one_result_set(pacs, node.summary(job), phantom_series)


def test_a_node_that_waits_to_start_can_be_stopped(tmp_path: Path, triton: EmbeddedTriton) -> None:
    """Its receiver never answers: SIGTERM ends the node all the same, as if it had started."""
    node = RunningNode(tmp_path / "node", triton_url=triton.url, pacs_port=free_port())
    node.begin()
    assert node.process is not None
    pid = node.process.pid

    def receiver() -> int | None:
        found = [child for child in children(pid) if "node.receive" in read(child, "cmdline")]
        return found[0] if found else None

    stopped = wait_for(receiver, seconds=60, what="the receiver's process")
    os.kill(stopped, signal.SIGSTOP)
    time.sleep(2.0)
    assert not node.events("node_ready")
    node.process.send_signal(signal.SIGTERM)
    time.sleep(2.0)
    os.kill(stopped, signal.SIGCONT)  # else it takes its time to be killed
    assert node.process.wait(60) == 0
    assert node.events("node_stopping") and not node.events("node_ready")


def test_a_dead_archive_delays_and_loses_nothing(
    tmp_path: Path, triton: EmbeddedTriton, pacs: Pacs, phantom_series: Path
) -> None:
    """The node first knows a port where nobody listens; after a restart with the right one, it delivers."""
    node = RunningNode(tmp_path / "node", triton_url=triton.url, pacs_port=free_port()).start()
    try:
        assert storescu(node.port, phantom_series).returncode == 0
        wait_for(lambda: len(node.events("delivery_retried")) >= 2, seconds=120, what="two attempts")
        assert node.job_in("delivering")["deliveries"][0]["state"] == "pending"
        node.stop()
        edited = yaml.safe_load(node.config_path.read_text())
        edited["destinations"]["pacs"]["port"] = pacs.port
        node.config_path.write_text(yaml.safe_dump(edited))
        node.start()
        job = node.job_in("done", "failed")
        assert job["state"] == "done", job["reason"]
        assert_one_result_set(pacs, node.summary(job), phantom_series)
    finally:
        node.stop()


def test_a_model_that_differs_from_the_contract_is_named(
    tmp_path: Path, pacs: Pacs, phantom_series: Path
) -> None:
    """A repository without ``lesions``: no job is begun, and the message names both sides."""
    repository = tmp_path / "repository"
    shutil.copytree(DEFAULT_REPOSITORY / "lungs", repository / "lungs")
    with EmbeddedTriton(repository) as triton:
        node = RunningNode(tmp_path / "node", triton_url=triton.url, pacs_port=pacs.port).start()
        try:
            assert storescu(node.port, phantom_series).returncode == 0
            job = node.job_in("failed", "done")
            assert (job["state"], job["reason_code"]) == ("failed", "model_not_served")
            assert "lesions version 1 is expected" in job["reason"]
            assert "no model named lesions" in job["reason"]
            assert "lungs" not in {event["stage"] for event in node.events("job_progress")}
        finally:
            node.stop()
    assert pacs.instances() == {}


def test_jobs_wait_for_triton(
    tmp_path: Path, triton: EmbeddedTriton, pacs: Pacs, phantom_series: Path
) -> None:
    """An external Triton that is down holds the job; it runs when Triton is back."""
    port = free_port()
    node = RunningNode(tmp_path / "node", triton_url=f"127.0.0.1:{port}", pacs_port=pacs.port).start()
    try:
        assert storescu(node.port, phantom_series).returncode == 0
        wait_for(lambda: node.events("job_waits_for_triton"), seconds=60, what="a job that waits")
        assert node.get("/readyz")["failing"].keys() == {"triton"}
        with EmbeddedTriton(grpc_port=port):
            job = node.job_in("done", "failed")
        assert job["state"] == "done", job["reason"]
        assert_one_result_set(pacs, node.summary(job), phantom_series)
    finally:
        node.stop()


def test_interleaved_series_give_two_result_sets(
    node: RunningNode, pacs: Pacs, phantom_series: Path, tmp_path: Path
) -> None:
    both = tmp_path / "both"
    both.mkdir()
    other = tmp_path / "other"
    write_series(chest_phantom(12, slices=24, rows=256, columns=256, lesions=False), other, seed=12)
    for i, (a, b) in enumerate(zip(sorted(phantom_series.iterdir()), sorted(other.iterdir()), strict=True)):
        (both / f"{i:03d}-a.dcm").write_bytes(a.read_bytes())
        (both / f"{i:03d}-b.dcm").write_bytes(b.read_bytes())
    assert storescu(node.port, both).returncode == 0
    jobs = wait_for(
        lambda: [j for j in node.jobs() if j["state"] in ("done", "failed")][1:] and node.jobs(),
        seconds=180,
        what="two jobs",
    )
    assert {job["state"] for job in jobs} == {"done"}
    expected = {r["sop_instance_uid"] for job in jobs for r in node.summary(job)["results"]}
    assert set(pacs.instances()) == expected


def test_ops_commands(node: RunningNode, pacs: Pacs, phantom_series: Path) -> None:
    def pacsnode(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "node", *arguments, "--config", str(node.config_path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert pacsnode("check").returncode == 0
    assert storescu(node.port, phantom_series).returncode == 0
    job = node.job_in("done")
    (listed,) = json.loads(pacsnode("jobs", "list", "--json").stdout)
    assert listed["job_id"] == job["job_id"]
    shown = json.loads(pacsnode("jobs", "show", job["job_id"][:8], "--json").stdout)
    assert [d["state"] for d in shown["deliveries"]] == ["delivered"]
    before = set(pacs.instances())
    assert pacsnode("jobs", "retry", job["job_id"]).returncode == 0
    wait_for(lambda: len(node.events("job_done")) == 2, seconds=60, what="the second delivery")
    assert set(pacs.instances()) == before
    assert pacsnode("jobs", "cancel", job["job_id"]).returncode == 1
    explained = pacsnode("explain", str(phantom_series))
    assert "matches" in explained.stdout
