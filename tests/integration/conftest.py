"""The real counterparts, started once for the tests that need them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from node.triton_server import EmbeddedTriton
from tests.certificates import Authority, Signed
from tests.integration.running import Pacs, RunningNode, orthanc_program
from triton_models.data.dicom_series import write_series
from triton_models.data.phantom import chest_phantom


@pytest.fixture(scope="session")
def triton() -> Iterator[EmbeddedTriton]:
    """The embedded Triton with the shipped models."""
    with EmbeddedTriton() as server:
        yield server


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The CA of TLS tests."""
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="session")
def sender(authority: Authority) -> Signed:
    """A sender's certificate."""
    return authority.sign("sender")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    """A certificate of a CA that nobody knows."""
    return Authority(tmp_path_factory.mktemp("other"), "Other CA").sign("stranger")


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Pacs]:
    """An empty Orthanc."""
    folder = tmp_path / "pacs"
    folder.mkdir()
    archive = Pacs(orthanc_program(), folder)
    yield archive
    archive.stop()


@pytest.fixture
def node(tmp_path: Path, triton: EmbeddedTriton, pacs: Pacs) -> Iterator[RunningNode]:
    """A running node that uses ``triton`` and delivers to ``pacs``."""
    running = RunningNode(tmp_path / "node", triton_url=triton.url, pacs_port=pacs.port).start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def phantom_series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a chest CT phantom: 24 slices of 256 x 256, with lesions."""
    folder = tmp_path_factory.mktemp("phantom")
    write_series(chest_phantom(11, slices=24, rows=256, columns=256, lesions=True), folder, seed=11)
    return folder
