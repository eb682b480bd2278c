"""The demo's archive: Orthanc where it is installed, otherwise a small storage SCP of ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Protocol

import httpx
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import Verification

from node import child
from node.errors import NodeError
from node.triton_server import PORT_TRIES, free_port

AE_TITLE = "ARCHIVE"
START_SECONDS = 30.0


class Archive(Protocol):
    """Somewhere that results are sent to and can be had back from."""

    name: str
    port: int

    def fetch(self, sop_instance_uid: str) -> bytes | None:
        """The Part 10 file of an instance, or None if it isn't there."""

    def stop(self) -> None: ...


def start_archive(folder: Path) -> Archive:
    """Start the best archive that this machine has; it keeps its data in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    program = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    return OrthancArchive(program, folder) if program else StorageArchive(folder)


class _PortInUse(NodeError):
    """Another program was faster to take a port."""


class OrthancArchive:
    """An Orthanc of the demo's own, on the loopback, with an empty storage."""

    def __init__(self, program: str, folder: Path, **options: Any) -> None:
        """options: of Orthanc's configuration, beside ours."""
        for tries_left in reversed(range(PORT_TRIES)):
            try:
                self.name = f"Orthanc {self._start(program, folder, options)}"
            except _PortInUse:
                if not tries_left:
                    raise
            else:
                return

    def _start(self, program: str, folder: Path, options: dict[str, Any]) -> str:
        """Start it on free ports; returns its version."""
        self.port, http_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{http_port}"
        configuration = folder / "orthanc.json"
        configuration.write_text(
            json.dumps(
                {
                    "Name": "Demo archive",
                    "StorageDirectory": str(folder / "storage"),
                    "IndexDirectory": str(folder / "storage"),
                    "DicomAet": AE_TITLE,
                    "DicomPort": self.port,
                    "HttpPort": http_port,
                    "RemoteAccessAllowed": False,
                    "AuthenticationEnabled": False,
                    "DicomAlwaysAllowStore": True,
                    "DicomAlwaysAllowEcho": True,
                    **options,
                }
            )
        )
        with (folder / "orthanc.log").open("wb") as log:
            self._process = subprocess.Popen(
                child.command(program, str(configuration)), stdout=log, stderr=subprocess.STDOUT
            )
        return self._wait(folder / "orthanc.log")

    def _wait(self, log: Path) -> str:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                version: str = httpx.get(f"{self.url}/system", timeout=2.0).json()["Version"]
                return version
            except httpx.TransportError:
                time.sleep(0.1)
        self.stop()
        said = log.read_text(errors="replace")[-2000:]
        error = _PortInUse if "already in use" in said else NodeError
        raise error(f"Orthanc didn't start; it said:\n{said}")

    def fetch(self, sop_instance_uid: str) -> bytes | None:
        found = httpx.post(f"{self.url}/tools/lookup", content=sop_instance_uid, timeout=30.0).json()
        ids = [item["ID"] for item in found if item["Type"] == "Instance"]
        if not ids:
            return None
        return httpx.get(f"{self.url}/instances/{ids[0]}/file", timeout=120.0).content

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class StorageArchive:
    """A storage SCP that keeps what it gets as files; for machines without Orthanc."""

    name = "a small storage SCP of ours (Orthanc isn't installed)"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        ae = AE(ae_title=AE_TITLE)
        ae.supported_contexts = AllStoragePresentationContexts
        ae.add_supported_context(Verification)
        handlers = [(evt.EVT_C_STORE, self._store)]
        self._server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = int(self._server.server_address[1])

    def _store(self, event: evt.Event) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        partial = self._folder / f"{uid}.partial"
        partial.write_bytes(event.encoded_dataset())
        partial.replace(self._folder / f"{uid}.dcm")
        return 0x0000

    def fetch(self, sop_instance_uid: str) -> bytes | None:
        path = self._folder / f"{sop_instance_uid}.dcm"
        return path.read_bytes() if path.is_file() else None

    def stop(self) -> None:
        self._server.shutdown()
