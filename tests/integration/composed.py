"""Helper: the compose file's listener and worker as processes, by its own commands and node.yaml.

What a container would see is put in its place: host names of services, folders that are mounted, ports.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from node.triton_server import free_port
from tests.integration.receiving import wait_for

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/compose"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]


@dataclass
class Service:
    """A node of the compose file."""

    name: str
    port: int
    web_port: int
    log_path: Path
    process: subprocess.Popen[bytes]

    def get(self, path: str, token: str | None = None) -> httpx.Response:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        return httpx.get(f"http://127.0.0.1:{self.web_port}{path}", headers=headers, timeout=10.0)

    def healthy(self) -> bool:
        """By the image's own health check."""
        assert self.process.poll() is None, self.log_path.read_text()[-3000:]
        dockerfile = (ROOT / "deploy/docker/Dockerfile").read_text()
        _, _, said = dockerfile.partition("HEALTHCHECK")
        command = json.loads(said.split("CMD", 1)[1].splitlines()[0])
        assert command[0] == "python"
        asked = [sys.executable, *(part.replace(":8090/", f":{self.web_port}/") for part in command[1:])]
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0

    def wait(self) -> None:
        wait_for(self.healthy, seconds=300, what=f"{self.name} to be healthy; see {self.log_path}")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def start(name: str, folder: Path, *, secrets: Path, addresses: dict[str, str]) -> Service:
    """addresses: what node.yaml says (host:port) -> where that is here. Doesn't wait until it is healthy."""
    config = yaml.safe_load((FOLDER / "node.yaml").read_text())
    config["data_dir"] = str(folder / "state")
    config["database"]["url"] = _moved(config["database"]["url"], addresses)
    config["triton"]["url"] = _moved(config["triton"]["url"], addresses)
    config["database"]["password_file"] = _mounted(config["database"]["password_file"], secrets)
    config["web"]["users"] = _mounted(config["web"]["users"], secrets)
    pacs = config["destinations"]["pacs"]
    host, port = addresses[f"{pacs['host']}:{pacs['port']}"].split(":")
    pacs |= {"host": host, "port": int(port)}
    config["receive"]["port"], config["web"]["port"] = free_port(), free_port()
    own = folder / name
    own.mkdir(parents=True)
    (own / "node.yaml").write_text(yaml.safe_dump(config))
    command = [
        str(own / "node.yaml") if part == "/etc/pacsnode/node.yaml" else part for part in _command(name)
    ]
    with (own / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "node", *command], stderr=log)
    return Service(name, config["receive"]["port"], config["web"]["port"], own / "log", process)


def _command(name: str) -> list[str]:
    command: list[str] = SERVICES[name]["command"]
    return command


def _moved(url: str, addresses: dict[str, str]) -> str:
    (there,) = [address for address in addresses if address in url]
    return url.replace(there, addresses[there])


def _mounted(path: str, secrets: Path) -> str:
    assert path.startswith("/run/secrets/")
    return str(secrets / Path(path).name)
