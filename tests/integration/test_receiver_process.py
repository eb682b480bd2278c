"""The receiver as a process of its own: it dies, it can't start, and it is heard in the node's metrics."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydicom.uid import generate_uid

from node.config import DatabaseConfig, NodeConfig, load_config
from node.triton_server import free_port
from tests.integration.raw_scu import RawScu, store_message
from tests.integration.receiving import ct_slice, encoded, wait_for
from tests.integration.running import RunningNode
from tests.processes import children, read

pytestmark = pytest.mark.integration


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    """Without Triton and without routes: only receiving matters here."""
    sections: dict[str, Any] = {
        "routes": [],
        # a receiver that was killed takes its time to be back on a busy machine
        "series": {"quiet_seconds": 10.0, "released_quiet_seconds": 0.3},
        "receive": {
            "port": 0,
            "allow_any_calling_ae_title": True,
            "free_disk_floor_bytes": 0,
            "journal_bytes": 67_108_864,
        },
    }
    running = RunningNode(tmp_path, triton_url="127.0.0.1:1", pacs_port=1, **sections).start()
    yield running
    running.stop()


def listening_port(node: RunningNode) -> int:
    return int(node.events("listening")[-1]["port"])


def receiver_pid(node: RunningNode) -> int:
    assert node.process is not None
    (found,) = [pid for pid in children(node.process.pid) if "node.receive" in read(pid, "cmdline")]
    return found


def test_a_receiver_that_dies_is_started_again_and_loses_nothing(node: RunningNode) -> None:
    uid = generate_uid()
    images = [ct_slice(uid, number) for number in range(4)]
    with RawScu(listening_port(node)) as scu:
        for image in images[:2]:
            scu.socket.sendall(store_message(image.SOPInstanceUID, encoded(image)))
            assert scu.status() == 0x0000
        os.kill(receiver_pid(node), signal.SIGKILL)
    wait_for(lambda: len(node.events("listening")) == 2, seconds=60, what="the second receiver")
    assert [event["code"] for event in node.events("receiver_died")] == [-signal.SIGKILL]
    with RawScu(listening_port(node)) as scu:
        for image in images[2:]:
            scu.socket.sendall(store_message(image.SOPInstanceUID, encoded(image)))
            assert scu.status() == 0x0000
    (series,) = wait_for(lambda: [s for s in node.get("/api/series") if s["state"] == "routed"], seconds=40)
    assert series["instance_count"] == 4
    assert node.stop() == 0


def mover_pids(node: RunningNode) -> list[int]:
    return children(receiver_pid(node))


def test_a_mover_that_dies_loses_nothing(node: RunningNode) -> None:
    """The receiver can't go on without it; what it acknowledged is in its journal."""
    uid = generate_uid()
    image = ct_slice(uid, 1)
    movers = mover_pids(node)
    assert len(movers) == 2
    with RawScu(listening_port(node)) as scu:
        scu.socket.sendall(store_message(image.SOPInstanceUID, encoded(image)))
        assert scu.status() == 0x0000
        for pid in movers:
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: len(node.events("listening")) == 2, seconds=60, what="the second receiver")
    assert len(node.events("mover_died")) >= 1
    (series,) = wait_for(lambda: [s for s in node.get("/api/series") if s["state"] == "routed"], seconds=40)
    assert series["instance_count"] == 1


def test_a_receiver_ends_with_a_killed_node(node: RunningNode) -> None:
    pids = [receiver_pid(node), *mover_pids(node)]
    node.kill()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), what="the receiver to end")


def test_its_metrics_are_the_node_s(node: RunningNode) -> None:
    image = ct_slice(generate_uid(), 1)
    with RawScu(listening_port(node)) as scu:
        scu.socket.sendall(store_message(image.SOPInstanceUID, encoded(image)))
        assert scu.status() == 0x0000
        stored = 'pacsnode_instances_total{code="none",outcome="stored"} 1.0'
        wait_for(lambda: stored in node.text("/metrics"), what="the instance to be counted")
        families = list(text_string_to_metric_families(node.text("/metrics")))
    assert len({family.name for family in families}) == len(families)
    samples = {sample.name: sample.value for family in families for sample in family.samples}
    assert samples["pacsnode_associations_open"] == 1.0
    assert samples["pacsnode_instances_total"] == 1.0
    assert samples["pacsnode_receive_process_resident_memory_bytes"] < 150_000_000


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        node = RunningNode(tmp_path, triton_url="127.0.0.1:1", pacs_port=1, receive={"port": port}, routes=[])
        done = subprocess.run(
            [sys.executable, "-m", "node", "run", "--config", str(node.config_path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert f"receive 127.0.0.1:{port}: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_configuration_survives_the_way_to_the_receiver(node: RunningNode) -> None:
    loaded = load_config(node.config_path)
    assert type(loaded).model_validate_json(loaded.model_dump_json()) == loaded


@pytest.mark.parametrize("position", [0, 1], ids=["dicom", "web"])
def test_a_running_node_gets_other_ports_when_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    """What other tests rely on: a port that was free may be taken before the node binds it."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        ports = [free_port() for _ in range(3)]
        ports.insert(position, other.getsockname()[1])
        monkeypatch.setattr("tests.integration.running.free_port", lambda: ports.pop(0))
        node = RunningNode(tmp_path, triton_url="127.0.0.1:1", pacs_port=1, routes=[]).start()
        assert ports == []
        assert node.stop() == 0


def test_one_that_finds_no_database_says_so_and_ends_with_its_movers(tmp_path: Path) -> None:
    """PostgreSQL is being restarted: the node starts the receiver again, if it ends."""
    config = NodeConfig(
        data_dir=tmp_path, database=DatabaseConfig(url=f"postgresql://nobody@127.0.0.1:{free_port()}/none")
    )
    assert config.receive.movers
    with subprocess.Popen(
        [sys.executable, "-m", "node.receive"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(config.model_dump_json() + "\n")
        process.stdin.flush()
        try:
            assert process.wait(60) == 1
        finally:
            process.kill()
        assert json.loads(process.stdout.readline())["event"] == "failed"
