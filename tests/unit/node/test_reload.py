"""Reading the configuration again: all of it or nothing, and what waits for a restart is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import Engine

from node.app import routes_of
from node.audit import AuditTrail
from node.audit_message import Source
from node.config import NodeConfig, load_config
from node.database import open_database
from node.deliver import make_gates
from node.metrics import Metrics
from node.reload import Gates, Reloading, version_of
from node.retention import Retention
from node.route.router import Router
from tests.unit.node.web.asking import asking

ROUTE: dict[str, Any] = {
    "name": "chest",
    "pipeline": "chest_ct_triage",
    "when": {"fact": "modality", "equals": "CT"},
    "destinations": ["outbox"],
}
FOLDER: dict[str, Any] = {"type": "folder", "path": "outbox"}
FIRST: dict[str, Any] = {"destinations": {"outbox": FOLDER}, "routes": [ROUTE]}


class Running:
    """The parts of a node that a reload changes, put together as ``node.app`` does."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        self.path = folder / "node.yaml"
        self.write(FIRST)
        self.config = load_config(self.path)
        self.metrics = Metrics("1")
        source = Source("PACSNODE", "node", None)
        self._audit = AuditTrail(self.config.audit, folder, source, self.metrics.audit)
        self._engine = engine
        self.gates = Gates(self._gates(self.config))
        self.router = Router(engine, folder, routes_of(self.config), lambda _: None, self.metrics)
        self.retention = Retention(self.config, engine, self.metrics)
        self.reloading = Reloading(self.config, lambda: load_config(self.path), self._use, self.metrics)

    def write(self, raw: dict[str, Any]) -> None:
        self.path.write_text(yaml.safe_dump(raw))

    def _gates(self, config: NodeConfig, **options: Any) -> Any:
        return make_gates(config, self._engine, self._audit, self.metrics, **options)

    def _use(self, config: NodeConfig) -> None:
        routes = routes_of(config)
        self.gates.replace(self._gates(config, kept=self.gates))
        self.retention.use(config.routes)
        self.router.use(routes)

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """Of one kind only: nothing of this is in the database."""
    engine = open_database(tmp_path)
    yield engine
    engine.dispose()


@pytest.fixture
def running(tmp_path: Path, engine: Engine) -> Running:
    return Running(tmp_path, engine)


def test_routes_and_destinations_change_and_what_did_not_keeps_its_state(running: Running) -> None:
    kept, before = running.gates["outbox"], running.reloading.running.version
    second = {**ROUTE, "name": "second", "destinations": ["outbox", "new"], "retention_seconds": 60.0}
    running.write(
        {"destinations": {"outbox": FOLDER, "new": {**FOLDER, "path": "x"}}, "routes": [ROUTE, second]}
    )
    done = running.reloading.reload("anna")
    assert (done.ok, done.restart) == (True, ())
    assert "2 route(s) and 2 destination(s)" in done.said
    assert [route.config.name for route in running.router.routes] == ["chest", "second"]
    assert running.gates["outbox"] is kept and set(running.gates) == {"outbox", "new"}
    assert running.retention._seconds == {"second": 60.0}
    now = running.reloading.running.version
    assert now != before and now == version_of(load_config(running.path))
    name = "pacsnode_configuration_loaded_timestamp_seconds"
    assert running.value(name, version=now) and running.value(name, version=before) is None
    running.write(FIRST)
    running.reloading.reload("anna")
    assert (set(running.gates), running.reloading.running.version) == ({"outbox"}, before)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"routes": [{**ROUTE, "destinations": ["nowhere"]}]}, "'nowhere' is not defined"),
        ({"routes": [{**ROUTE, "pipeline": "nothing"}]}, "'nothing' isn't known"),
        ({"routes": [{**ROUTE, "when": {"fact": "colour", "equals": "red"}}]}, "colour"),
        ({"destinations": {"outbox": {**FOLDER, "max_attempts": 0}}}, "max_attempts"),
        (
            {
                "destinations": {
                    "outbox": FOLDER,
                    "new": {"type": "stow", "url": "https://x", "tls": {"ca": "gone.pem"}},
                }
            },
            "gone.pem",
        ),
        ({"receive": {"port": "many"}}, "receive.port"),
    ],
)
def test_a_mistake_changes_nothing(running: Running, changed: dict[str, Any], message: str) -> None:
    before = (running.gates["outbox"], running.router.routes, running.reloading.running)
    running.write(FIRST | changed)
    done = running.reloading.reload("anna")
    assert not done.ok and message in done.said and "nothing changed" in done.said
    assert (running.gates["outbox"], running.router.routes, running.reloading.running) == before
    assert running.value("pacsnode_configuration_reloads_total", outcome="refused") == 1


def test_what_needs_a_restart_is_named_and_not_used(running: Running) -> None:
    running.write({**FIRST, "routes": [], "receive": {"port": 104}, "log": {"level": "debug"}})
    done = running.reloading.reload("anna")
    assert (done.ok, set(done.restart)) == (True, {"receive", "log"})
    assert running.router.routes == ()
    assert set(running.reloading.running.restart) == {"receive", "log"}
    assert running.reloading._config.receive.port == 11112


@pytest.mark.anyio
async def test_the_button_is_for_admins(running: Running, engine: Engine, tmp_path: Path) -> None:
    parts: dict[str, Any] = {
        "reloading": running.reloading,
        "routes": lambda: running.router.routes,
        "gates": lambda: running.gates,
    }
    running.write({**FIRST, "routes": [], "web": {"port": 1}})
    async with asking(engine, tmp_path, "operator", **parts) as client:
        assert (await client.post("/reload")).status_code == 403
        assert "Read the configuration again" not in (await client.get("/routes")).text
    async with asking(engine, tmp_path, "admin", **parts) as client:
        page = await client.post("/reload")
        assert page.status_code == 200 and "Needs a restart: web." in page.text
        assert running.reloading.running.version in (await client.get("/")).text
        running.path.write_text("routes: [")
        page = await client.post("/reload")
        assert page.status_code == 409 and "nothing changed" in page.text
