"""The compose file: the compose-spec's schema, and that what it names is there and fits together."""

from __future__ import annotations

import json
import re
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from node.app import routes_of
from node.config import CStoreDestination, load_config

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy/compose"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def schema() -> dict[str, Any]:
    """The compose-spec's, as check-jsonschema ships it."""
    text = files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text()
    found: dict[str, Any] = json.loads(text)
    return found


def test_it_is_valid_by_the_compose_spec() -> None:
    jsonschema.validate(COMPOSE, schema())
    broken = COMPOSE | {"services": {"listener": SERVICES["listener"] | {"comand": []}}}
    with pytest.raises(jsonschema.ValidationError, match="comand"):
        jsonschema.validate(broken, schema())


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_refers_to_is_there(name: str) -> None:
    service = SERVICES[name]
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        assert source in COMPOSE["volumes"] or (FOLDER / source).resolve().exists(), volume
    for secret in service.get("secrets", []):
        assert (secret["source"] if isinstance(secret, dict) else secret) in COMPOSE["secrets"], secret
    assert set(service["networks"]) <= set(COMPOSE["networks"])
    assert set(service.get("depends_on", [])) <= set(SERVICES)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "ipc"}
    assert re.search(r":[^:/]*\d", service["image"]), "a version"
    for port in service.get("ports", []):
        assert port.startswith(("127.0.0.1:", "${PACSNODE_LISTEN:-127.0.0.1}:")), port
    if service["image"].startswith(("pacsnode", "nvcr.io", "prom/")):
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
    assert not [name for name in service.get("environment", {}) if re.search(r"PASSWORD$|TOKEN$", name)]


def test_secrets_are_made_by_the_readme_and_never_committed() -> None:
    readme = (FOLDER / "README.md").read_text()
    for secret in COMPOSE["secrets"].values():
        assert f"deploy/compose/{secret['file']}" in readme
    assert "deploy/compose/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_node_s_configuration_is_valid_and_reaches_the_services() -> None:
    config = load_config(FOLDER / "node.yaml")
    assert len(routes_of(config)) == 1
    assert config.shared
    assert config.database.url is not None
    pacs = config.destinations["pacs"]
    assert isinstance(pacs, CStoreDestination)
    named = [config.database.url.split("@")[1], config.triton.url, f"{pacs.host}:{pacs.port}"]
    hosts = [str(address).split(":")[0] for address in named]
    assert hosts == ["postgres", "triton", "orthanc"]
    for node in ("listener", "worker"):
        for host in hosts:
            assert set(SERVICES[node]["networks"]) & set(SERVICES[host]["networks"]), (node, host)
        secrets = SERVICES[node]["secrets"]
        for path in (config.database.password_file, config.web.users):
            assert path is not None
            assert (str(path.parent), path.name in secrets) == ("/run/secrets", True)
        assert f"state:{config.data_dir}" in SERVICES[node]["volumes"]


def test_orthanc_is_the_destination_and_lets_the_node_store() -> None:
    orthanc = json.loads((FOLDER / "orthanc.json").read_text())
    config = load_config(FOLDER / "node.yaml")
    pacs = config.destinations["pacs"]
    assert isinstance(pacs, CStoreDestination)
    assert (orthanc["DicomAet"], orthanc["DicomPort"]) == (pacs.ae_title, pacs.port)
    ours = orthanc["DicomModalities"]["pacsnode"]
    assert (ours["AET"], ours["Port"]) == (config.receive.ae_title, config.receive.port)
    assert orthanc["AuthenticationEnabled"]
    assert orthanc["DicomAet"] in config.receive.allowed_calling_ae_titles


def test_prometheus_asks_every_node_and_triton(tmp_path: Path) -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    nodes = [name for name, service in SERVICES.items() if service["image"].startswith("pacsnode")]
    assert targets == {"pacsnode": [f"{name}:8090" for name in nodes], "triton": ["triton:8002"]}
    for name in (*nodes, "triton", "grafana"):
        assert set(SERVICES[name]["networks"]) & set(SERVICES["prometheus"]["networks"])
    for name in ("prometheus.yml", "alerts.yml"):
        source = FOLDER / name if (FOLDER / name).exists() else ROOT / "deploy/prometheus" / name
        (tmp_path / name).write_text(source.read_text())
    command = ["/usr/bin/promtool", "check", "config", "--syntax-only", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_grafana_gets_prometheus_and_our_dashboards() -> None:
    (source,) = yaml.safe_load((FOLDER / "grafana/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"].startswith("http://prometheus:")
    (provider,) = yaml.safe_load((FOLDER / "grafana/dashboards/pacsnode.yaml").read_text())["providers"]
    mounted = dict(volume.split(":")[:2][::-1] for volume in SERVICES["grafana"]["volumes"])
    dashboards = (FOLDER / mounted[provider["options"]["path"]]).resolve()
    assert len(list(dashboards.glob("*.json"))) >= 4
    for path in dashboards.glob("*.json"):
        assert json.loads(path.read_text())["templating"]["list"][0]["type"] == "datasource"
