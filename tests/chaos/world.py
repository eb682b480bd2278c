"""The processes of a whole installation, each of which may be killed and is started again.

A real Triton with two models, a real Orthanc, and nodes: one on SQLite, or listeners and workers on a real
PostgreSQL. Everything keeps its ports, so that a restart is all that its neighbours see.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node import child
from node.config import DatabaseConfig
from node.receive.journal import SEGMENT_BYTES
from node.triton_server import DEFAULT_REPOSITORY, EmbeddedTriton
from tests.integration.running import CALLING, Pacs, RunningNode, orthanc_program
from tests.postgres import PostgresCluster

MODELS = ("lungs", "pneumonia_class")
ROUTE = {
    "name": "chaos",
    "pipeline": "chest_ct_triage",
    "when": {"fact": "modality", "equals": "CT"},
    "destinations": ["pacs"],
}


class Victim(ABC):
    """Something that can be killed."""

    name: str

    @abstractmethod
    def kill(self) -> None:
        """kill -9; does nothing when it isn't running."""

    @abstractmethod
    def start(self) -> None:
        """Start it again."""

    def look(self) -> bool:
        """Start it if it ended by itself, as a supervisor would; whether it had."""
        return False


class NodeVictim(Victim):
    def __init__(self, name: str, node: RunningNode) -> None:
        self.name, self.node = name, node

    def kill(self) -> None:
        self.node.kill()

    def start(self) -> None:
        self.node.begin()

    def look(self) -> bool:
        assert self.node.process is not None
        ended = self.node.process.poll() is not None
        if ended:
            self.start()
        return ended


class TritonVictim(Victim):
    name = "triton"

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._server = EmbeddedTriton(repository)
        self._server.start()
        self.url = self._server.url

    def kill(self) -> None:
        process = self._server._process
        assert process is not None
        process.kill()

    def start(self) -> None:
        self._server.stop()
        self._server = EmbeddedTriton(self._repository, grpc_port=int(self.url.rpartition(":")[2]))
        self._server.start()

    def stop(self) -> None:
        self._server.stop()


class OrthancVictim(Victim):
    name = "orthanc"

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        # as an archive that is killed must have it: what it acknowledged is on disk
        self.pacs = Pacs(orthanc_program(), folder, SyncStorageArea=True)

    def kill(self) -> None:
        self.pacs._process.kill()
        self.pacs._process.wait()

    def start(self) -> None:
        log = self._folder / "orthanc.log"
        with log.open("ab") as stream:
            self.pacs._process = subprocess.Popen(
                child.command(orthanc_program(), str(self._folder / "orthanc.json")),
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        self.pacs._wait(log)


class PostgresVictim(Victim):
    name = "postgresql"

    def __init__(self, cluster: PostgresCluster) -> None:
        self._cluster = cluster

    def kill(self) -> None:
        self._cluster.stop()

    def start(self) -> None:
        self._cluster.start()


@dataclass(frozen=True)
class Setup:
    """Which nodes there are: listeners and workers on PostgreSQL, or without listeners one node on SQLite."""

    listeners: int = 0
    workers: int = 1

    @property
    def shared(self) -> bool:
        return self.listeners > 0


class World:
    """Everything, started; ``stack`` ends it."""

    def __init__(self, folder: Path, setup: Setup, stack: ExitStack) -> None:
        self.folder, self.setup = folder, setup
        self.data_dir = folder / "data"
        repository = folder / "repository"
        for model in MODELS:
            shutil.copytree(DEFAULT_REPOSITORY / model, repository / model)
        self.triton = TritonVictim(repository)
        stack.callback(self.triton.stop)
        self.orthanc = OrthancVictim(folder / "orthanc")
        stack.callback(self.orthanc.pacs.stop)
        self.database = DatabaseConfig()
        self.others: list[Victim] = [self.triton, self.orthanc]
        if setup.shared:
            cluster = PostgresCluster()
            stack.callback(cluster.remove)
            self.database = stack.enter_context(cluster.database())
            self.others.append(PostgresVictim(cluster))
        self.listeners = [self._node("listener", number) for number in range(setup.listeners)]
        self.workers = [self._node("worker" if setup.shared else "all", n) for n in range(setup.workers)]
        for victim in (*self.listeners, *self.workers):
            stack.callback(self._end, victim.node)
            victim.start()

    @property
    def victims(self) -> list[Victim]:
        return [*self.listeners, *self.workers, *self.others]

    @property
    def ports(self) -> list[int]:
        """Where DICOM is received."""
        return [victim.node.port for victim in self.listeners or self.workers]

    def _node(self, role: str, number: int) -> NodeVictim:
        name = f"{role}-{number}"
        sections: dict[str, Any] = {
            "data_dir": str(self.data_dir),
            "routes": [ROUTE],
            "receive": {
                "allowed_calling_ae_titles": [CALLING],
                "free_disk_floor_bytes": 0,
                "journal_bytes": 8 * SEGMENT_BYTES,
            },
            "series": {
                "quiet_seconds": 5.0,
                "released_quiet_seconds": 0.5,
                "interrupted_wait_seconds": 20.0,
                "missing_wait_seconds": 10.0,
            },
            "run": {"retry_seconds": 0.5, "max_attempts": 20},
            "audit": {"enabled": False},
        }
        if self.setup.shared:
            sections |= {"database": self.database.model_dump(mode="json"), "node_id": name}
        node = RunningNode(
            self.folder / name,
            triton_url=self.triton.url,
            pacs_port=self.orthanc.pacs.port,
            role=role,
            **sections,
        )
        return NodeVictim(name, node)

    @staticmethod
    def _end(node: RunningNode) -> None:
        if node.process is not None and node.process.poll() is None:
            node.process.send_signal(signal.SIGTERM)
            try:
                node.process.wait(20)
            except subprocess.TimeoutExpired:
                os.kill(node.process.pid, signal.SIGKILL)
                node.process.wait()
