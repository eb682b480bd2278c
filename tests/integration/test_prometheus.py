"""A real Prometheus scrapes a node at work: every query of the dashboards returns data."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from pydicom import dcmread

from node.route.defaults import default_routes
from node.triton_server import EmbeddedTriton, free_port
from tests.integration.receiving import wait_for
from tests.integration.running import Pacs, RunningNode, storescu
from tests.integration.short_alerts import ALERTS

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "deploy/grafana").glob("*.json"))
#: what Grafana puts in place of its variables
VARIABLES = {"$__rate_interval": "30s", "$instance": ".*", "$pipeline": ".*", "$destination": ".*"}


class Prometheus:
    """The real one, with the alerts that we ship, or those in ``rules``."""

    def __init__(self, folder: Path, *, node: str, triton: str, rules: Path = ALERTS) -> None:
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(rules)]
        for job in config["scrape_configs"]:
            target = {"pacsnode": node, "triton": triton}[job["job_name"]]
            job["static_configs"] = [{"targets": [target]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._process = subprocess.Popen(
            [
                "/usr/bin/prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ]
        )
        wait_for(self._ready, seconds=30, what="Prometheus")

    def _ready(self) -> bool:
        assert self._process.poll() is None, "Prometheus ended"
        try:
            return httpx.get(f"{self._url}/-/ready", timeout=2.0).status_code == 200
        except httpx.TransportError:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self._url}/api/v1/query", params={"query": expression}, timeout=10.0).json()
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)


def expressions() -> list[tuple[str, str]]:
    """(dashboard and panel, expression) of every query, as Grafana would ask it."""
    found = []
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                expression = target["expr"]
                for name, value in VARIABLES.items():
                    expression = expression.replace(name, value)
                assert "$" not in expression, expression
                found.append((f"{path.stem}: {panel['title']}", expression))
    return found


@pytest.fixture
def busy(tmp_path: Path, triton: EmbeddedTriton, pacs: Pacs) -> Iterator[RunningNode]:
    """A node with two pipelines, one of which delivers to an archive, the other to nobody."""
    archive = {"type": "cstore", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": pacs.port}
    gone = archive | {"port": free_port(), "retry_seconds": 0.5, "max_attempts": 2}
    (route,) = (route.model_dump(mode="json") for route in default_routes(["pacs"]))
    lost = route | {"name": "lost", "pipeline": "chest_ct_triage", "destinations": ["gone"]}
    running = RunningNode(
        tmp_path / "node",
        triton_url=triton.url,
        pacs_port=pacs.port,
        destinations={"pacs": archive, "gone": gone},
        routes=[route, lost],
    ).start()
    yield running
    running.stop()


@pytest.fixture
def prometheus(tmp_path: Path, busy: RunningNode, triton: EmbeddedTriton) -> Iterator[Prometheus]:
    folder = tmp_path / "prometheus"
    folder.mkdir()
    metrics = triton.metrics_url.removeprefix("http://").removesuffix("/metrics")
    running = Prometheus(folder, node=f"127.0.0.1:{busy.web_port}", triton=metrics)
    yield running
    running.stop()


def _trouble(node: RunningNode, series: Path, folder: Path) -> None:
    """A sender that isn't known, an instance without a series, a series for which there is no route."""
    unknown = ["/usr/bin/echoscu", "-aet", "NOBODY", "-aec", "PACSNODE", "127.0.0.1", str(node.port)]
    assert subprocess.run(unknown, capture_output=True, timeout=30, check=False).returncode != 0
    folder.mkdir()
    image = dcmread(min(series.iterdir()))
    image.SeriesInstanceUID = ""
    image.save_as(folder / "no-series.dcm")
    image.SeriesInstanceUID, image.Modality = "1.2.3.4", "XX"
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.1"
    image.save_as(folder / "no-route.dcm")
    assert storescu(node.port, folder).returncode == 0


def test_every_query_returns_data(
    busy: RunningNode, prometheus: Prometheus, phantom_series: Path, tmp_path: Path
) -> None:
    _trouble(busy, phantom_series, tmp_path / "trouble")
    assert storescu(busy.port, phantom_series).returncode == 0
    wait_for(lambda: busy.events("job_failed"), seconds=180, what="the delivery that is given up")
    wait_for(lambda: busy.events("job_done"), seconds=180, what="the delivery to the archive")
    for sign in ('pacsnode_deliveries_total{outcome="failed"}', "pacsnode_turnaround_seconds_count"):
        wait_for(lambda: prometheus.query(f"{sign} offset 2s"), seconds=20, what="scrapes after it")  # noqa: B023
    assert not [(where, text) for where, text in expressions() if not prometheus.query(text)]
    firing = {alert["metric"]["alertname"] for alert in prometheus.query('ALERTS{alertstate="firing"}')}
    assert {"PacsnodeUnknownSender", "PacsnodeInstancesQuarantined", "PacsnodeDeliveryGivenUp"} <= firing
    assert "PacsnodeDown" not in firing
    text = busy.text("/metrics")
    checked = subprocess.run(
        ["/usr/bin/promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
