"""Reading the configuration again while the node runs: routes and destinations change, the rest is named.

In: the file.  Out: the new routes and destinations in use from one moment to the next, or the error and
nothing changed. What else differs waits for a restart, and is said so; the version that runs is a hash of
what is in use.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import structlog

from node.config import NodeConfig
from node.deliver.gate import Gate
from node.errors import ConfigError
from node.metrics import Metrics

log = structlog.get_logger(__name__)

#: what ``Reloading`` changes; every other section is read at the start only
LIVE = frozenset(("routes", "destinations"))


@dataclass(frozen=True)
class Running:
    """The configuration in use. restart: what the file has otherwise, and a restart would change."""

    version: str
    loaded_at: float
    restart: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reloaded:
    """What came of reading it again. said: a sentence."""

    ok: bool
    said: str
    restart: tuple[str, ...] = ()


class Gates(Mapping[str, Gate]):
    """The destinations' gates: who looks one up has those of now."""

    def __init__(self, gates: Mapping[str, Gate]) -> None:
        self._gates = dict(gates)

    def replace(self, gates: Mapping[str, Gate]) -> None:
        """All at once."""
        self._gates = dict(gates)

    def __getitem__(self, name: str) -> Gate:
        return self._gates[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._gates)

    def __len__(self) -> int:
        return len(self._gates)


def version_of(config: NodeConfig) -> str:
    """Of its content: comments and the order of sections change nothing."""
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:12]


class Reloading:
    """Reads the file again when it is asked to, one at a time."""

    def __init__(
        self,
        config: NodeConfig,
        read: Callable[[], NodeConfig],
        use: Callable[[NodeConfig], None],
        metrics: Metrics,
    ) -> None:
        """read: the file.  use: make its routes and destinations the ones in use.  Both raise ConfigError
        before anything has changed."""
        self._config = config
        self._read = read
        self._use = use
        self._metrics = metrics
        self._lock = threading.Lock()
        self.running = self._now(config, ())

    def reload(self, user: str) -> Reloaded:
        """user: who asks, for the log."""
        with self._lock:
            try:
                wanted = self._read()
                restart = _differing(self._config, wanted)
                changed = {name: getattr(wanted, name) for name in LIVE}
                applied = self._config.model_copy(update=changed)
                self._use(applied)
            except ConfigError as error:
                self._metrics.configuration_reloads.labels(outcome="refused").inc()
                log.error("configuration_refused", reason=str(error), hint=error.hint, user=user)
                return Reloaded(False, f"Refused, nothing changed: {error}")
            self._config = applied
            self.running = self._now(applied, restart)
            self._metrics.configuration_reloads.labels(outcome="applied").inc()
            log.info(
                "configuration_reloaded",
                version=self.running.version,
                routes=len(applied.routes),
                destinations=len(applied.destinations),
                needs_restart=list(restart),
                user=user,
            )
            counted = f"{len(applied.routes)} route(s) and {len(applied.destinations)} destination(s)"
            return Reloaded(True, f"In use: {counted}, version {self.running.version}.", restart)

    def _now(self, config: NodeConfig, restart: tuple[str, ...]) -> Running:
        running = Running(version_of(config), time.time(), restart)
        self._metrics.configuration.clear()
        self._metrics.configuration.labels(version=running.version).set(running.loaded_at)
        return running


def _differing(running: NodeConfig, wanted: NodeConfig) -> tuple[str, ...]:
    """The sections that only a restart changes."""
    found = [
        name
        for name in NodeConfig.model_fields
        if name not in LIVE and getattr(running, name) != getattr(wanted, name)
    ]
    if wanted.expects_commitment and not running.expects_commitment:
        found.append("destinations: the listener takes reports of commitment after a restart")
    return tuple(found)
