"""The C-STORE destination against DCMTK's storescp: result objects arrive byte for byte."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from node.config import CStoreDestination
from node.deliver import make_deliverer
from node.deliver.base import Deliverer
from node.errors import DeliveryError
from node.triton_server import free_port
from pipelines.results import ResultSet, write_result_set
from pipelines.results.capture import build_capture
from pipelines.results.report import build_report
from pipelines.results.segmentation import build_segmentation
from tests.integration.receiving import dataset_bytes, wait_for
from tests.unit.pipelines.results.synthetic import chest, context

pytestmark = pytest.mark.integration
STORESCP = Path("/usr/bin/storescp")  # pynetdicom installs a script of the same name

Start = Callable[..., Deliverer]


@pytest.fixture(scope="module")
def result_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A segmentation, a report with non-ASCII text and a secondary capture."""
    volume, findings = chest()
    segmentation = build_segmentation(volume, findings, context())
    report = build_report(volume, findings, segmentation, context())
    picture = build_capture(np.zeros((1, 16, 16, 3), np.uint8), volume, context(), role="picture")
    objects = (("segmentation", segmentation), ("report", report), ("picture", picture))
    return [entry.path for entry in write_result_set(ResultSet(objects), tmp_path_factory.mktemp("results"))]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a storescp with these options, that writes to tmp_path; returns a deliverer for it."""
    if not STORESCP.exists():
        pytest.skip("needs DCMTK (apt install dcmtk)")
    processes = []

    def started(*options: str) -> Deliverer:
        port = free_port()
        command = [STORESCP, *options, "--bit-preserving", "-od", tmp_path, str(port)]
        processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        config = CStoreDestination(
            type="cstore", ae_title="STORESCP", host="127.0.0.1", port=port, timeout_seconds=10
        )
        deliverer = make_deliverer("dcmtk", config, calling_ae_title="PACSNODE")
        if "--refuse" not in options:
            wait_for(lambda: reachable(deliverer), what="storescp to listen")
        return deliverer

    yield started
    for process in processes:
        process.kill()
        process.wait()


def reachable(deliverer: Deliverer) -> bool:
    try:
        deliverer.check()
    except DeliveryError:
        return False
    return True


def test_result_objects_arrive_byte_for_byte(tmp_path: Path, start: Start, result_files: list[Path]) -> None:
    start().deliver(result_files)
    received = [dataset_bytes(path) for path in tmp_path.iterdir()]
    assert sorted(received) == sorted(dataset_bytes(path) for path in result_files)


@pytest.mark.parametrize("option", ["--abort-during", "--abort-after"])
def test_a_storescp_that_aborts(start: Start, result_files: list[Path], option: str) -> None:
    with pytest.raises(DeliveryError, match="no answer to C-STORE") as raised:
        start(option).deliver(result_files)
    assert raised.value.retryable


def test_a_storescp_that_refuses(start: Start, result_files: list[Path]) -> None:
    deliverer = start("--refuse")

    def rejected() -> bool:
        with pytest.raises(DeliveryError) as raised:
            deliverer.deliver(result_files)
        assert raised.value.retryable
        return "association rejected" in str(raised.value)

    wait_for(rejected, what="storescp to refuse")
