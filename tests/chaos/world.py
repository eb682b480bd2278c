"""The processes of a whole installation, each of which may be killed and is started again.

A real Triton with every model that two pipelines need, a real Orthanc that confirms what it keeps, and nodes:
one on SQLite, or listeners and workers on a real PostgreSQL. Everything keeps its ports, so that a restart is
all that its neighbours see. Senders reach listeners, and nodes Orthanc and Triton, through bad networks.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from node import child
from node.config import DatabaseConfig
from node.demo.archive import AE_TITLE
from node.receive.journal import SEGMENT_BYTES
from node.triton_server import DEFAULT_REPOSITORY, EmbeddedTriton
from pipelines.failpoints import REACHED, VARIABLE
from tests.chaos.disk import SmallDisk
from tests.chaos.load import WHOLE
from tests.chaos.network import Network
from tests.integration.running import CALLING, Pacs, RunningNode, orthanc_program
from tests.postgres import PostgresCluster
from tests.processes import children

MODELS = ("lungs", "pneumonia_class", "lesions", "candidates", "infection_type", "inpaint")
#: a light pipeline for every series, and the one with every model for some
ROUTES = [
    {
        "name": "light",
        "pipeline": "chest_ct_triage",
        "when": {"fact": "modality", "equals": "CT"},
        "destinations": ["pacs"],
    },
    {
        "name": "whole",
        "pipeline": "chest_ct_pneumonia",
        "when": {"fact": "manufacturer", "equals": WHOLE},
        "destinations": ["pacs"],
        "priority": 50,
    },
]
#: of memory, as far as it is used
DISK_BYTES = 8 << 30
#: what a node's processes are, by their command line
PARTS = {"node.receive": "receiver", "pipelines.worker": "pipeline"}


class Victim(ABC):
    """Something that can be killed."""

    name: str

    @abstractmethod
    def kill(self, rng: random.Random) -> str:
        """kill -9; does nothing when it isn't running. Returns what exactly was killed, and how."""

    @abstractmethod
    def start(self) -> None:
        """Start it again; returns before it is up."""

    @property
    def is_starting(self) -> bool:
        return False

    def look(self) -> bool:
        """Start it if it ended by itself, as a supervisor would; whether it had."""
        return False


class Service(Victim):
    """What is started in a thread of its own, which lives as long as the world: it ends with its thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._started: Future[None] | None = None

    def start(self) -> None:
        self._started = self._thread.submit(self.start_now)

    @property
    def is_starting(self) -> bool:
        return self._started is not None and not self._started.done()

    def wait(self) -> None:
        """Until it is up. Raises what kept it from it."""
        if self._started is not None:
            self._started.result()

    @abstractmethod
    def start_now(self) -> None:
        """Start it, and wait until it is up."""


class NodeVictim(Victim):
    def __init__(self, name: str, node: RunningNode) -> None:
        self.name, self.node = name, node

    def kill(self, rng: random.Random) -> str:
        """The node, or one of its processes, which it has to replace by itself."""
        assert self.node.process is not None
        parts = self._parts(self.node.process.pid)
        if parts and rng.random() < 0.4:
            pid, part = rng.choice(parts)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has just ended
            else:
                return f"{self.name}: {part}"
        self.node.kill()
        return self.name

    def start(self) -> None:
        assert self.node.process is not None
        if self.node.process.poll() is not None:  # else it was a part of it that was killed
            self.node.begin()

    def answers(self) -> bool:
        """Whether it is up."""
        assert self.node.process is not None
        return self.node.process.poll() is None and self.node._web_answers()

    def look(self) -> bool:
        assert self.node.process is not None
        ended = self.node.process.poll() is not None
        if ended:
            self.start()
        return ended

    @staticmethod
    def _parts(pid: int) -> list[tuple[int, str]]:
        """The node's child processes: receiver, movers, pipelines."""
        found = []
        for child_pid in children(pid):
            try:
                words = Path(f"/proc/{child_pid}/cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            part = next((name for module, name in PARTS.items() if module in words), None)
            if part is not None:
                found.append((child_pid, part))
            if part == "receiver":
                found += [(mover, "mover") for mover in children(child_pid)]
        return found


class TritonVictim(Service):
    name = "triton"

    def __init__(self, repository: Path) -> None:
        super().__init__()
        self._repository = repository
        self._server = EmbeddedTriton(repository)
        self._thread.submit(self._server.start).result()
        self.port = int(self._server.url.rpartition(":")[2])

    def kill(self, rng: random.Random) -> str:
        process = self._server._process
        assert process is not None
        process.kill()
        return self.name

    def start_now(self) -> None:
        self._server.stop()
        self._server = EmbeddedTriton(self._repository, grpc_port=self.port)
        self._server.start()

    def stop(self) -> None:
        self._server.stop()


class OrthancVictim(Service):
    name = "orthanc"

    def __init__(self, folder: Path, report_port: int) -> None:
        """report_port: of a listener, for reports on Storage Commitment."""
        super().__init__()
        folder.mkdir()
        self._folder = folder
        ours = {"AET": "PACSNODE", "Host": "127.0.0.1", "Port": report_port, "AllowStorageCommitment": True}
        # as an archive that is killed must have it: what it acknowledged is on disk
        self.pacs = Pacs(orthanc_program(), folder, SyncStorageArea=True, DicomModalities={"node": ours})

    def kill(self, rng: random.Random) -> str:
        self.pacs._process.kill()
        self.pacs._process.wait()
        return self.name

    def start_now(self) -> None:
        log = self._folder / "orthanc.log"
        with log.open("ab") as stream:
            self.pacs._process = subprocess.Popen(
                child.command(orthanc_program(), str(self._folder / "orthanc.json")),
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        self.pacs._wait(log)


class PostgresVictim(Service):
    name = "postgresql"
    HOW: ClassVar = {
        "restarted": signal.SIGINT,
        "stopped at once": signal.SIGQUIT,
        "postmaster killed": signal.SIGKILL,
    }

    def __init__(self, cluster: PostgresCluster) -> None:
        super().__init__()
        self._cluster = cluster

    def kill(self, rng: random.Random) -> str:
        how = rng.choice(list(self.HOW))
        self._cluster.stop(self.HOW[how])
        return f"{self.name}: {how}"

    def start_now(self) -> None:
        self._cluster.start_again()


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

    def __init__(self, folder: Path, setup: Setup, seed: int, stack: ExitStack) -> None:
        self.folder, self.setup = folder, setup
        self.disk = SmallDisk(folder / "disk", DISK_BYTES)
        stack.callback(self.disk.remove)
        self.data_dir = self.disk.folder / "data"
        self.armed = folder / "armed"
        (self.armed / REACHED).mkdir(parents=True)
        self.network = Network(seed)
        stack.callback(self.network.stop)
        self._to_triton, self._to_pacs = self.network.proxy("triton"), self.network.proxy("pacs")
        repository = folder / "repository"
        for model in MODELS:
            shutil.copytree(DEFAULT_REPOSITORY / model, repository / model)
        self.triton = TritonVictim(repository)
        stack.callback(self.triton.stop)
        self._to_triton.target = self.triton.port
        self.others: list[Service] = [self.triton]
        self.database = DatabaseConfig()
        if setup.shared:
            cluster = PostgresCluster()
            stack.callback(cluster.remove)
            self.database = stack.enter_context(cluster.database())
            self.others.append(PostgresVictim(cluster))
        self.listeners = [self._node("listener", number) for number in range(setup.listeners)]
        self.workers = [self._node("worker" if setup.shared else "all", n) for n in range(setup.workers)]
        self.ports = []  # where series are sent to
        for victim in self.listeners or self.workers:
            proxy = self.network.proxy(victim.name)
            proxy.target = victim.node.port
            self.ports.append(proxy.port)
        self.orthanc = OrthancVictim(folder / "orthanc", self.ports[0])
        stack.callback(self.orthanc.pacs.stop)
        self._to_pacs.target = self.orthanc.pacs.port
        self.others.append(self.orthanc)
        for victim in self.nodes:
            stack.callback(self._end, victim.node)
            victim.node.begin()
        for service in self.others:
            stack.callback(service.wait)

    @property
    def nodes(self) -> list[NodeVictim]:
        return [*self.listeners, *self.workers]

    @property
    def victims(self) -> list[Victim]:
        return [*self.nodes, *self.others]

    def _node(self, role: str, number: int) -> NodeVictim:
        name = f"{role}-{number}"
        pacs = {
            **{"type": "cstore", "ae_title": AE_TITLE, "host": "127.0.0.1", "port": self._to_pacs.port},
            **{"retry_seconds": 0.5, "max_retry_seconds": 2.0, "timeout_seconds": 10.0},
            "commitment": {"same_association_seconds": 0.2, "report_seconds": 6.0},
        }
        sections: dict[str, Any] = {
            "data_dir": str(self.data_dir),
            "routes": ROUTES,
            "destinations": {"pacs": pacs},
            "receive": {
                "allowed_calling_ae_titles": [CALLING, AE_TITLE],
                "free_disk_floor_bytes": 0,  # the disk is to be full in the middle of anything
                "network_timeout_seconds": 10.0,
                "acse_timeout_seconds": 5.0,
                # too few segments for all senders at once: some instances go into files of their own
                "journal_bytes": 2 * SEGMENT_BYTES,
            },
            "series": {
                "quiet_seconds": 5.0,
                "released_quiet_seconds": 0.5,
                "interrupted_wait_seconds": 30.0,
                "missing_wait_seconds": 10.0,
            },
            "run": {"retry_seconds": 0.5, "max_attempts": 50},
            "audit": {"enabled": False},
        }
        if self.setup.shared:
            sections |= {"database": self.database.model_dump(mode="json"), "node_id": name}
        node = RunningNode(
            self.folder / name,
            triton_url=f"127.0.0.1:{self._to_triton.port}",
            pacs_port=self._to_pacs.port,
            role=role,
            environment={VARIABLE: str(self.armed)},
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
