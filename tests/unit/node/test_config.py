"""deploy/config.example.yaml is the manual: complete, in order, and its defaults are the code's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from node.app import routes_of
from node.config import (
    ClientTls,
    CommitmentConfig,
    CommitmentOptions,
    CommitmentPeer,
    CStoreDestination,
    FolderDestination,
    NodeConfig,
    QueryPeer,
    RouteConfig,
    ServerTls,
    ShadowConfig,
    ShadowModel,
    StowDestination,
    TritonTls,
    load_config,
    parse_config,
)
from node.config_oidc import OidcConfig
from node.errors import ConfigError
from node.route.defaults import default_routes
from node.route.facts import FACTS
from node.route.router import compile_routes
from node.route.rules import _OPERATORS

EXAMPLE = Path(__file__).parents[3] / "deploy" / "config.example.yaml"
TEXT = EXAMPLE.read_text(encoding="utf-8")
#: Options whose value in the example is an example, not the default.
EXAMPLES = {"receive.allowed_calling_ae_titles", "destinations", "routes"}

MODELS: dict[str, type[BaseModel]] = {
    "": NodeConfig,
    **{
        name: field.annotation
        for name, field in NodeConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    },
    "receive.tls": ServerTls,
    "receive.commitment": CommitmentConfig,
    "receive.commitment.peers.ORTHANC": CommitmentPeer,
    "receive.commitment.peers.ORTHANC.tls": ClientTls,
    "query.archive": QueryPeer,
    "triton.tls": TritonTls,
    "web.oidc": OidcConfig,
    "destinations.pacs": CStoreDestination,
    "destinations.pacs.tls": ClientTls,
    "destinations.pacs.commitment": CommitmentOptions,
    "destinations.cloud": StowDestination,
    "destinations.cloud.tls": ClientTls,
    "destinations.outbox": FolderDestination,
    "routes": RouteConfig,
    "shadow.lungs_next": ShadowConfig,
    "shadow.lungs_next.models.lungs": ShadowModel,
}


def options() -> dict[str, str | None]:
    """Dotted option -> the text after "Default:" in the comment before it (None: "No default")."""
    found: dict[str, str | None] = {}
    path: list[tuple[int, str]] = []
    default: str | None = None
    for line in TEXT.splitlines():
        if stated := re.match(r"\s*# Default: (.+)$", line):
            default = stated[1]
        elif "No default." in line:
            default = None
        option = re.match(r"(\s*)(?:#|- )?(\w+):", line)
        if option is None or "{" in line.split(":")[0]:
            continue
        indent = len(option[1]) + (2 if option[0].strip().startswith("- ") else 0)
        while path and path[-1][0] >= indent:
            path.pop()
        path.append((indent, option[2]))
        dotted = ".".join(name for _, name in path)
        if not dotted.startswith("routes.when."):
            found[dotted] = default
    return found


def switched_on() -> str:
    """The example with every option that is off by default switched on."""
    return re.sub(r"^(\s*)#(?=\w)", r"\1", TEXT, flags=re.MULTILINE)


@pytest.mark.parametrize("section", MODELS)
def test_every_field_is_there_in_file_order(section: str) -> None:
    prefix = f"{section}." if section else ""
    names = [
        option.removeprefix(prefix)
        for option in options()
        if option.startswith(prefix) and "." not in option.removeprefix(prefix)
    ]
    assert names == in_order(MODELS[section])


def in_order(model: type[BaseModel]) -> list[str]:
    """Its fields, its own before those that it has in common with others."""
    return [
        name
        for each in model.__mro__
        for name in vars(each).get("__annotations__", ())
        if name in model.model_fields
    ]


@pytest.mark.parametrize("section", MODELS)
def test_stated_defaults_are_the_models(section: str) -> None:
    stated = options()
    for name, field in MODELS[section].model_fields.items():
        option = f"{section}.{name}" if section else name
        if option in MODELS and option != "routes":  # a section of its own
            continue
        text = stated[option]
        if field.is_required():
            assert text is None, option
            continue
        default = field.get_default(call_default_factory=True)
        expected = str(default) if isinstance(default, Path) else default
        assert text is not None, option
        value = yaml.safe_load(text)
        assert (tuple(value) if isinstance(expected, tuple) else value) == expected, option


def test_values_that_are_no_examples_are_the_defaults() -> None:
    raw = yaml.safe_load(TEXT)
    for section, model in MODELS.items():
        if "." in section or section == "routes":
            continue
        values = raw[section] if section else raw
        for name, field in model.model_fields.items():
            option = f"{section}.{name}" if section else name
            if option in EXAMPLES or option in MODELS or name not in values:
                continue
            default = field.get_default(call_default_factory=True)
            if isinstance(default, Path | tuple):  # as YAML has them
                default = str(default) if isinstance(default, Path) else list(default)
            assert values[name] == default, option


def test_it_loads_with_and_without_the_optional_parts() -> None:
    config = load_config(EXAMPLE)
    assert config.data_dir == EXAMPLE.parent / "var"
    assert isinstance(config.destinations["pacs"], CStoreDestination)
    compile_routes(config.routes)
    everything = parse_config(yaml.safe_load(switched_on()), source="all", base=Path("/srv"))
    outbox = everything.destinations["outbox"]
    assert isinstance(outbox, FolderDestination) and outbox.path == Path("/srv/outbox")
    pacs = everything.destinations["pacs"]
    assert isinstance(pacs, CStoreDestination) and pacs.tls is not None and everything.receive.tls is not None
    assert (pacs.tls.ca, everything.receive.tls.key) == (
        Path("/srv/tls/hospital-ca.crt"),
        Path("/srv/tls/node.key"),
    )
    assert everything.triton.url == "triton.example.org:8001"


def test_the_shipped_route_is_the_examples() -> None:
    assert default_routes(["pacs"]) == load_config(EXAMPLE).routes


def test_the_further_routes_of_the_example_work() -> None:
    before, routes = TEXT.split("  #- name: chest_ct_triage")
    text = before + "  - name: chest_ct_triage" + re.sub(r"\n  #(?! )|\n  #(?=  )", "\n  ", routes)
    config = parse_config(yaml.safe_load(text), source="all", base=Path("/srv"))
    assert len(routes_of(config)) == 3
    assert [r.pipeline for r in config.routes] == [
        *("chest_ct_pneumonia", "chest_ct_triage", "chest_ct_picture")
    ]
    assert config.routes[0].when == config.routes[1].when
    assert config.routes[2].destinations == (), "whose they are nobody knows"


def test_every_fact_and_operator_is_explained() -> None:
    manual = TEXT[TEXT.index("# What runs on which series") :]
    for name in (*FACTS, *_OPERATORS):
        assert re.search(rf"\b{name}\b", manual), name


@pytest.mark.parametrize(
    ("raw", "mentions"),
    [
        (
            {"query": {name: {"ae_title": name, "host": "h", "port": 1} for name in ("a", "b")}},
            ["query.b.senders", "query.a", "all others"],
        ),
        ({"receive": {"port": 70000}}, ["node.yaml", "receive.port", "70000"]),
        ({"receive": {"ae_title": "A" * 17}}, ["receive.ae_title", "16"]),
        ({"recieve": {}}, ["recieve"]),
        ({"web": {"port": "x"}}, ["web.port", "'x'"]),
        ({"triton": {"url": "http://x:1"}}, ["triton.url"]),
        (
            {"receive": {"tls": {"certificate": "a", "key": "b"}}},
            ["receive.tls", "client_ca", "require_client_certificate: false"],
        ),
        (
            {
                "destinations": {
                    "pacs": {
                        "type": "cstore",
                        "ae_title": "P",
                        "host": "h",
                        "port": 104,
                        "tls": {"ca": "a", "certificate": "b"},
                    }
                }
            },
            ["destinations.pacs.cstore.tls", "key"],
        ),
        (
            {"routes": [{"name": "a", "pipeline": "p", "when": {}, "destinations": ["pax"]}]},
            ["'pax'", "not defined"],
        ),
    ],
)
def test_mistakes_are_named(raw: dict[str, Any], mentions: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_config(raw, source="node.yaml", base=Path())
    for text in mentions:
        assert text in str(raised.value)
