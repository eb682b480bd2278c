"""The real counterparts that the contract runs over: how each is started, and what it holds."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom import dcmread

from node.config import CStoreDestination, FolderDestination, StowDestination
from node.deliver import Destination, make_destination
from node.demo.archive import AE_TITLE
from node.errors import DeliveryError
from node.triton_server import free_port
from tests.integration.receiving import wait_for
from tests.integration.running import Pacs, orthanc_program

STORESCP = Path("/usr/bin/storescp")  # pynetdicom installs a script of the same name
DICOM_WEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@dataclass
class Counterpart:
    """A destination and what stands at its other end. held: SOP Instance UIDs there."""

    destination: Destination
    held: Callable[[], list[str]]
    end: Callable[[], object]


def folder(tmp_path: Path) -> Counterpart:
    """A folder; ended, a file is in its place."""
    root = tmp_path / "outbox"

    def held() -> list[str]:
        return [str(dcmread(file).SOPInstanceUID) for file in root.rglob("*.dcm")]

    def end() -> None:
        if root.exists():
            root.rename(tmp_path / "gone")
        root.write_text("")

    made = make_destination("it", FolderDestination(type="folder", path=root), calling_ae_title="PACSNODE")
    return Counterpart(made, held, end)


def storescp(tmp_path: Path, *options: str) -> Counterpart:
    """DCMTK's storescp."""
    if not STORESCP.exists():
        pytest.skip("needs DCMTK (apt install dcmtk)")
    received = tmp_path / "received"
    received.mkdir()
    port = free_port()
    command = [str(STORESCP), *options, "--bit-preserving", "-od", str(received), str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    made = to_peer("STORESCP", port)

    def held() -> list[str]:
        return [str(dcmread(file).SOPInstanceUID) for file in received.iterdir()]

    def end() -> None:
        process.kill()
        process.wait()

    if "--refuse" not in options:
        wait_for(lambda: reachable(made), what="storescp to listen")
    return Counterpart(made, held, end)


def orthanc(tmp_path: Path) -> Counterpart:
    """Orthanc by C-STORE."""
    pacs = _orthanc(tmp_path)
    return Counterpart(to_peer(AE_TITLE, pacs.port), lambda: list(pacs.instances()), pacs.stop)


def dicom_web(tmp_path: Path) -> Counterpart:
    """Orthanc by STOW-RS."""
    if not DICOM_WEB.exists():
        pytest.skip("needs Orthanc's DICOMweb plugin (apt install orthanc-dicomweb)")
    pacs = _orthanc(tmp_path, Plugins=[str(DICOM_WEB)])
    config = StowDestination(type="stow", url=f"{pacs.url}/dicom-web", timeout_seconds=10)
    made = make_destination("it", config, calling_ae_title="PACSNODE")
    return Counterpart(made, lambda: list(pacs.instances()), pacs.stop)


def _orthanc(tmp_path: Path, **options: object) -> Pacs:
    home = tmp_path / "orthanc"
    home.mkdir()
    return Pacs(orthanc_program(), home, **options)


def to_peer(ae_title: str, port: int, **options: object) -> Destination:
    config = CStoreDestination.model_validate(
        {
            "type": "cstore",
            "ae_title": ae_title,
            "host": "127.0.0.1",
            "port": port,
            "timeout_seconds": 10,
            **options,
        }
    )
    return make_destination("it", config, calling_ae_title="PACSNODE")


def reachable(destination: Destination) -> bool:
    try:
        destination.check()
    except DeliveryError:
        return False
    return True


COUNTERPARTS: Mapping[str, Callable[[Path], Counterpart]] = {
    "folder": folder,
    "cstore_dcmtk": storescp,
    "cstore_orthanc": orthanc,
    "stow_orthanc": dicom_web,
}
