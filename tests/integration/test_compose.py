"""The compose file's listener and worker, and the autoscalers' queries, without a container engine: the same
commands and configuration, with PostgreSQL, Triton, Orthanc and Prometheus as processes beside them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from node.demo.archive import OrthancArchive
from node.triton_server import EmbeddedTriton, free_port
from tests.integration import composed
from tests.integration.composed import FOLDER, ROOT, Service
from tests.integration.receiving import wait_for
from tests.integration.running import orthanc_program, storescu
from tests.postgres import PostgresCluster

pytestmark = pytest.mark.integration


class ComposedPacs(OrthancArchive):
    """Orthanc with the compose file's orthanc.json, but on free ports, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        said = json.loads((FOLDER / "orthanc.json").read_text())
        for mine in ("DicomPort", "HttpPort", "StorageDirectory", "IndexDirectory", "AuthenticationEnabled"):
            said.pop(mine)
        said["DicomModalities"]["pacsnode"]["Host"] = "127.0.0.1"
        super().__init__(orthanc_program(), folder, **said)

    def modalities(self) -> list[str]:
        """Of the instances that it holds."""
        ids = httpx.get(f"{self.url}/instances", timeout=30.0).json()
        tags = [httpx.get(f"{self.url}/instances/{one}/simplified-tags", timeout=30.0).json() for one in ids]
        return sorted(tag["Modality"] for tag in tags)


class Stack:
    """Everything that the compose file has, less Grafana."""

    def __init__(
        self, folder: Path, cluster: PostgresCluster, triton: EmbeddedTriton, stack: ExitStack
    ) -> None:
        self.secrets = folder / "secrets"
        self.secrets.mkdir()
        database = stack.enter_context(cluster.database())
        assert database.password_file is not None
        (self.secrets / "database-password").write_text(database.password_file.read_text())
        self.token = self._users("token", "prometheus")
        (self.secrets / "prometheus-token").write_text(self.token)
        (folder / "pacs").mkdir()
        self.pacs = ComposedPacs(folder / "pacs")
        stack.callback(self.pacs.stop)
        addresses = {
            "postgres:5432/pacsnode": str(database.url).split("@")[1],
            "triton:8001": triton.url,
            "orthanc:4242": f"127.0.0.1:{self.pacs.port}",
        }
        for name in ("listener", "worker"):
            service = composed.start(name, folder, secrets=self.secrets, addresses=addresses)
            stack.callback(service.stop)
            setattr(self, name, service)
        self.listener.wait()
        self.worker.wait()
        self.triton = triton

    listener: Service
    worker: Service

    def _users(self, *command: str) -> str:
        users = [sys.executable, "-m", "node", "users", *command, "--file", str(self.secrets / "users.yaml")]
        return subprocess.run(users, capture_output=True, text=True, check=True).stdout.strip()

    def metrics(self, service: Service) -> str:
        return service.get("/metrics", self.token).text


@pytest.fixture
def stack(tmp_path: Path, postgres: PostgresCluster, triton: EmbeddedTriton) -> Iterator[Stack]:
    with ExitStack() as cleanup:
        yield Stack(tmp_path, postgres, triton, cleanup)


def autoscalers_queries() -> dict[str, str]:
    """Metric -> query, as the adapter would ask it."""
    rules = yaml.safe_load((ROOT / "deploy/kubernetes/prometheus-adapter.yaml").read_text())["rules"]
    found = {}
    for rule in (*rules["external"], *rules["custom"]):
        query = rule["metricsQuery"].replace("<<.Series>>", rule["seriesQuery"].split("{")[0])
        by = "namespace" if rule in rules["external"] else "pod"
        found[rule["name"]["as"]] = query.replace("<<.GroupBy>>", by).replace(
            "<<.LabelMatchers>>", 'namespace="pacsnode"'
        )
    return found


class Prometheus:
    """With the compose file's configuration; targets are where they are here, with Kubernetes' labels."""

    def __init__(self, folder: Path, stack: Stack) -> None:
        folder.mkdir()
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        here = {
            "listener:8090": f"127.0.0.1:{stack.listener.web_port}",
            "worker:8090": f"127.0.0.1:{stack.worker.web_port}",
            "triton:8002": stack.triton.metrics_url.split("/")[2],
        }
        for job in config["scrape_configs"]:
            (static,) = job["static_configs"]
            static["targets"] = [here[target] for target in static["targets"]]
            static["labels"] = {"namespace": "pacsnode", "pod": job["job_name"]}
            if "authorization" in job:
                job["authorization"]["credentials_file"] = str(stack.secrets / "prometheus-token")
        (folder / "alerts.yml").write_text((ROOT / "deploy/prometheus/alerts.yml").read_text())
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        address = f"127.0.0.1:{free_port()}"
        self._url = f"http://{address}"
        paths = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        self._process = subprocess.Popen(
            ["/usr/bin/prometheus", *paths, f"--web.listen-address={address}", "--log.level=error"]
        )

    def query(self, expression: str) -> list[dict[str, Any]]:
        assert self._process.poll() is None
        try:
            answer = httpx.get(f"{self._url}/api/v1/query", params={"query": expression}, timeout=10.0).json()
        except httpx.TransportError:
            return []
        return list(answer["data"]["result"]) if answer["status"] == "success" else []

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)


def test_a_series_that_comes_to_the_listener_has_its_results_in_the_archive_by_the_worker(
    stack: Stack, phantom_series: Path, tmp_path: Path
) -> None:
    prometheus = Prometheus(tmp_path / "prometheus", stack)
    try:
        sent = storescu(stack.listener.port, phantom_series)
        assert sent.returncode == 0, sent.stderr
        wait_for(
            lambda: 'pacsnode_jobs{state="done"} 1.0' in stack.metrics(stack.worker),
            seconds=180,
            what=f"the job; see {stack.worker.log_path}",
        )
        assert stack.pacs.modalities().count("SEG") == 1
        assert {"SEG", "SR", "OT"} <= set(stack.pacs.modalities())
        # a listener knows the jobs, too, and runs none
        assert 'pacsnode_jobs{state="done"} 1.0' in stack.metrics(stack.listener)
        assert "pacsnode_turnaround_seconds_count" not in stack.metrics(stack.listener)
        wait_for(lambda: len(prometheus.query("up == 1")) == 3, seconds=60, what="three targets that are up")
        for name, query in autoscalers_queries().items():
            wait_for(lambda: prometheus.query(query), seconds=60, what=f"{name}: {query}")  # noqa: B023 - at once
    finally:
        prometheus.stop()
    # who has neither token nor login, and isn't on the machine itself, sees nothing
    assert stack.listener.get("/metrics", "not a token").status_code == 401
