"""Helpers: a whole node as a process of its own, with an Orthanc to deliver to, and DCMTK to send with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from node.demo.archive import AE_TITLE as ARCHIVE_AE_TITLE
from node.demo.archive import OrthancArchive
from node.route.defaults import default_routes
from node.triton_server import PORT_TRIES, free_port
from tests.integration.receiving import wait_for

CALLING = "STORESCU"
STORESCU = "/usr/bin/storescu"  # pynetdicom installs a script of the same name into the venv


def orthanc_program() -> str:
    """Orthanc's path; skips the test where it isn't installed, except in CI, which must have it."""
    program = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None and not os.environ.get("CI"):
        pytest.skip("needs Orthanc: apt-get install orthanc")
    assert program is not None, "CI must have Orthanc installed"
    return program


class Pacs(OrthancArchive):
    """An Orthanc whose REST API answers questions about what it holds."""

    @property
    def pid(self) -> int:
        return self._process.pid

    def instances(self) -> dict[str, dict[str, Any]]:
        """SOP Instance UID -> {tag keyword: value} of every instance held."""
        found = {}
        for identifier in self._get("/instances"):
            tags = self._get(f"/instances/{identifier}/simplified-tags")
            found[tags["SOPInstanceUID"]] = tags
        return found

    def count(self) -> int:
        """How many instances it holds."""
        return int(self._get("/statistics")["CountInstances"])

    def upload(self, image: Dataset) -> None:
        """Put an instance in, not by DICOM."""
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file = BytesIO()
        image.save_as(file, enforce_file_format=True)
        self.upload_file(file.getvalue())

    def upload_file(self, content: bytes) -> None:
        """Put a Part 10 file in, not by DICOM."""
        httpx.post(f"{self.url}/instances", content=content, timeout=30.0).raise_for_status()

    def _get(self, path: str) -> Any:
        return httpx.get(f"{self.url}{path}", timeout=30.0).json()


class RunningNode:
    """``pacsnode run`` with one C-STORE destination ``pacs``; may be killed and started again."""

    def __init__(
        self,
        folder: Path,
        *,
        triton_url: str | None,
        pacs_port: int,
        role: str = "all",
        environment: Mapping[str, str] | None = None,
        **sections: Any,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.role = role
        self.tree: Path | None = None  # whose code to run, instead of this checkout's
        self._environment = {**os.environ, **(environment or {})}
        self.data_dir = Path(sections.get("data_dir", folder / "var"))
        self.log_path = folder / "node.log"
        self.config_path = folder / "node.yaml"
        pacs = {"type": "cstore", "ae_title": ARCHIVE_AE_TITLE, "host": "127.0.0.1", "port": pacs_port}
        config: dict[str, Any] = {
            "data_dir": str(self.data_dir),
            "receive": {
                "allowed_calling_ae_titles": [CALLING],
                "free_disk_floor_bytes": 0,
            },
            "series": {"quiet_seconds": 3.0, "released_quiet_seconds": 0.3},
            "triton": {"url": triton_url},
            "run": {"retry_seconds": 0.5},
            "web": {},
            "log": {"format": "json"},
            "destinations": {"pacs": {**pacs, "retry_seconds": 0.5, "max_retry_seconds": 2.0}},
            "routes": [route.model_dump(mode="json") for route in default_routes(["pacs"])],
        }
        for name, section in sections.items():
            config[name] = section
        self._config = config
        self._choose_ports()
        self.process: subprocess.Popen[bytes] | None = None

    def _choose_ports(self) -> None:
        self.port, self.web_port = free_port(), free_port()
        ports = {"receive": self.port, "web": self.web_port}
        chosen = {name: {"port": port} | self._config[name] for name, port in ports.items()}
        self.config_path.write_text(yaml.safe_dump(self._config | chosen))

    def start(self) -> RunningNode:
        """Start it and wait until it answers; the first time with other ports where one was taken."""
        tries_left = PORT_TRIES if self.process is None else 1
        while True:
            tries_left -= 1
            self.begin()
            try:
                wait_for(self._web_answers, seconds=180, what=f"the node to start; see {self.log_path}")
            except AssertionError:
                if not tries_left or "Address already in use" not in self.log_path.read_text():
                    raise
                self._choose_ports()
            else:
                return self

    def begin(self) -> None:
        """Start it without waiting."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "node", "run", "--config", str(self.config_path), "--role", self.role],
                stderr=log,
                env=self._environment,
                cwd=self.tree,
            )

    def _web_answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log_path.read_text()[-3000:]
        try:
            return httpx.get(f"http://127.0.0.1:{self.web_port}/healthz", timeout=2.0).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def get(self, path: str) -> Any:
        return httpx.get(f"http://127.0.0.1:{self.web_port}{path}", timeout=30.0).json()

    def text(self, path: str) -> str:
        return httpx.get(f"http://127.0.0.1:{self.web_port}{path}", timeout=30.0).text

    def jobs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("/api/jobs")
        return found

    def job_in(self, *states: str, seconds: float = 180.0) -> dict[str, Any]:
        """Wait for the only job to reach one of the states."""

        def reached() -> dict[str, Any] | None:
            jobs = self.jobs()
            assert len(jobs) <= 1
            return jobs[0] if jobs and jobs[0]["state"] in states else None

        job: dict[str, Any] = wait_for(reached, seconds=seconds, what=f"a job {states}; see {self.log_path}")
        return job

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log's events of this name so far."""
        lines = self.log_path.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if f'"{name}"' in line and line.startswith("{")]

    def summary(self, job: dict[str, Any]) -> dict[str, Any]:
        text = (self.data_dir / job["result_dir"] / "summary.json").read_text()
        found: dict[str, Any] = json.loads(text)
        return found


def storescu(port: int, *paths: Path) -> subprocess.CompletedProcess[str]:
    """Send files or folders by DCMTK over one association, proposing only what they need; goes on after
    a refused instance."""
    command = [STORESCU, "-aet", CALLING, "-aec", "PACSNODE", "+sd", "+r", "-R", "-nh"]
    return subprocess.run(
        [*command, "127.0.0.1", str(port), *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "TCP_NODELAY": "1"},
        check=False,
    )
