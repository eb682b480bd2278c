"""The Kubernetes objects: Kubernetes' own schemas, and that what they name is there and fits together."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pydantic import TypeAdapter

from node.app import routes_of
from node.config import CStoreDestination, load_config
from node.config_fields import NodeId
from node.metrics import Metrics

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy/kubernetes"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
OBJECTS: list[dict[str, Any]] = [
    one for name in KUSTOMIZATION["resources"] for one in yaml.safe_load_all((FOLDER / name).read_text())
]
#: of the group's own (CRDs have none): the oldest and the newest that are shipped and still supported
VERSIONS = ("1.31", "1.37")


def found(kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in OBJECTS if one["kind"] == kind}


def pods() -> dict[str, dict[str, Any]]:
    """Name -> pod template, of every StatefulSet and Deployment."""
    sets = found("StatefulSet") | found("Deployment")
    return {name: one["spec"]["template"] for name, one in sets.items()}


def containers(template: dict[str, Any]) -> list[dict[str, Any]]:
    spec: dict[str, Any] = template["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


@pytest.mark.parametrize("one", OBJECTS, ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
def test_an_object_is_valid_by_kubernetes_schemas(one: dict[str, Any]) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(one, version, strict=True)


def test_what_kubernetes_does_not_know_is_found() -> None:
    one = found("Service")["triton"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(one | {"specc": {}}, VERSIONS[-1], strict=True)


def test_all_files_are_in_the_kustomization() -> None:
    others = {"kustomization.yaml", "node.yaml", "prometheus-adapter.yaml", "prometheus-scrape.yaml"}
    assert {path.name for path in FOLDER.glob("*.yaml")} - others == set(KUSTOMIZATION["resources"])
    assert KUSTOMIZATION["configMapGenerator"] == [{"name": "node", "files": ["node.yaml"]}]
    assert "namespace" not in {key for one in OBJECTS for key in one["metadata"]}
    assert list(found("Namespace")) == [KUSTOMIZATION["namespace"]]
    images = {c["image"] for template in pods().values() for c in containers(template)}
    named = {image["name"] for image in KUSTOMIZATION["images"]}
    assert all(image in named or re.search(r":\d", image) for image in images)


@pytest.mark.parametrize("name", pods())
def test_pods_are_restricted_and_probed(name: str) -> None:
    spec = pods()[name]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for one in containers(pods()[name]):
        confined = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert one["securityContext"] == confined
    for one in spec["containers"]:
        ports = {port["name"] for port in one["ports"]}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert one[probe]["httpGet"]["port"] in ports
        assert "memory" in one["resources"]["limits"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        assert {mount["name"] for mount in one["volumeMounts"]} <= volumes
    for volume in spec["volumes"]:
        if "persistentVolumeClaim" in volume:
            assert volume["persistentVolumeClaim"]["claimName"] in found("PersistentVolumeClaim")
        if "configMap" in volume:
            assert volume["configMap"]["name"] == KUSTOMIZATION["configMapGenerator"][0]["name"]
        if "secret" in volume:
            secret = volume["secret"]["secretName"]
            assert f"create secret generic {secret} " in (FOLDER / "README.md").read_text()


def test_selectors_select_and_budgets_and_services_fit() -> None:
    labels = {name: template["metadata"]["labels"] for name, template in pods().items()}
    for name, one in (found("StatefulSet") | found("Deployment")).items():
        assert one["spec"]["selector"]["matchLabels"].items() <= labels[name].items()
    assert set(found("PodDisruptionBudget")) == set(labels)
    for name, budget in found("PodDisruptionBudget").items():
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels[name].items()
    for service in found("Service").values():
        (name,) = [n for n, its in labels.items() if service["spec"]["selector"].items() <= its.items()]
        offered = {port["name"] for c in pods()[name]["spec"]["containers"] for port in c["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= offered
    for policy in found("NetworkPolicy").values():
        wanted = policy["spec"]["podSelector"].get("matchLabels", {})
        assert not wanted or [n for n, its in labels.items() if wanted.items() <= its.items()]
    dicom = found("Service")["dicom"]["spec"]
    assert (dicom["sessionAffinity"], dicom["externalTrafficPolicy"]) == ("ClientIP", "Local")


def test_the_node_s_configuration_is_valid_and_fits_the_pods() -> None:
    config = load_config(FOLDER / "node.yaml")
    assert len(routes_of(config)) == 1
    tls, pacs = config.receive.tls, config.destinations["pacs"]
    assert tls is not None
    assert isinstance(pacs, CStoreDestination) and pacs.tls is not None
    assert config.database.password_file is not None
    assert config.web.users is not None
    named = {
        config.database.password_file,
        config.web.users,
        tls.certificate,
        tls.key,
        tls.client_ca,
        pacs.tls.ca,
    }
    readme = (FOLDER / "README.md").read_text()
    for name in ("listener", "worker"):
        (node,) = pods()[name]["spec"]["containers"]
        mounts = {mount["mountPath"] for mount in node["volumeMounts"]}
        assert str(config.data_dir) in mounts
        for path in named:
            assert path is not None
            assert str(path.parent) in mounts
            assert f"--from-file=deploy/kubernetes/secrets/{path.name}" in readme
        assert node["args"][:3] == ["run", "--config", "/etc/pacsnode/node.yaml"]
        assert node["args"][3:] == ["--role", name, "--node-id", "$(POD_NAME)"]
        ports = {port["name"]: port["containerPort"] for port in node["ports"]}
        assert ports["web"] == config.web.port
        assert ports.get("dicom", config.receive.port) == config.receive.port
    assert config.triton.url == "triton:8001"
    assert found("Service")["triton"]["spec"]["ports"][0]["port"] == 8001
    # pods of a Deployment: its name, up to 10 characters of a hash, 5 more
    TypeAdapter(NodeId).validate_python("worker-" + "a" * 10 + "-" + "b" * 5)


def test_what_the_node_needs_is_let_through() -> None:
    config = load_config(FOLDER / "node.yaml")
    policies = found("NetworkPolicy")
    assert policies["nothing-by-default"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}

    def ports(name: str, way: str) -> set[int]:
        return {port["port"] for rule in policies[name]["spec"][way] for port in rule["ports"]}

    assert ports("senders-to-listeners", "ingress") == {config.receive.port}
    pacs = config.destinations["pacs"]
    assert isinstance(pacs, CStoreDestination)
    assert ports("nodes-to-pacs-and-database", "egress") == {pacs.port, 5432}
    assert ports("workers-to-triton", "egress") == ports("triton-from-workers", "ingress") == {8001}
    assert ports("prometheus-to-all", "ingress") == {config.web.port, 8002}
    (senders,) = policies["senders-to-listeners"]["spec"]["ingress"][0]["from"]
    assert [senders["ipBlock"]["cidr"]] == [str(network) for network in config.receive.allowed_hosts]


def test_autoscalers_ask_for_metrics_that_the_adapter_makes_of_ours() -> None:
    rules = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text())["rules"]
    made = {kind: {rule["name"]["as"]: rule for rule in rules[kind]} for kind in rules}
    asked: dict[str, set[str]] = {"external": set(), "custom": set()}
    for name, scaler in found("HorizontalPodAutoscaler").items():
        assert scaler["spec"]["scaleTargetRef"]["name"] == name
        assert name in found("Deployment")
        assert "replicas" not in found("Deployment")[name]["spec"], "applying it again would undo the scaling"
        for metric in scaler["spec"]["metrics"]:
            kind = {"External": "external", "Pods": "custom"}[metric["type"]]
            asked[kind].add(metric[metric["type"].lower()]["metric"]["name"])
    assert asked == {kind: set(names) for kind, names in made.items()}
    gauge = Metrics("0").jobs
    rule = made["external"]["pacsnode_jobs_open"]
    assert rule["seriesQuery"].startswith("pacsnode_jobs{")
    assert list(gauge._labelnames) == ["state"]
    for state in re.findall(r"\w+", rule["metricsQuery"].split('state=~"')[1].split('"')[0]):
        assert state in gauge._documentation


def test_promtool_takes_the_scrape_configuration(tmp_path: Path) -> None:
    """All but the discovery of pods, for which Debian's Prometheus isn't built."""
    config = yaml.safe_load((FOLDER / "prometheus-scrape.yaml").read_text())
    ports = {port["name"] for t in pods().values() for c in t["spec"]["containers"] for port in c["ports"]}
    for job in config["scrape_configs"]:
        (discovery,) = job.pop("kubernetes_sd_configs")
        assert discovery == {"role": "pod", "namespaces": {"names": [KUSTOMIZATION["namespace"]]}}
        assert {rule["regex"] for rule in job["relabel_configs"] if "action" in rule} <= ports
        assert {rule.get("target_label") for rule in job["relabel_configs"]} >= {"namespace", "pod"}
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    command = ["/usr/bin/promtool", "check", "config", "--syntax-only", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
