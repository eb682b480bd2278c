"""A real worker with a real Triton: inputs that the pipeline refuses. Whole runs: test_node.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from node.run.worker_pool import PipelineFailed, WorkerPool
from node.triton_server import EmbeddedTriton
from pipelines.request import Request

pytestmark = pytest.mark.integration

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, triton: EmbeddedTriton) -> Iterator[Run]:
    pool = WorkerPool(1)

    def run(*paths: Path) -> dict[str, Any]:
        request = Request(
            pipeline="chest_ct_pneumonia",
            paths=paths,
            out=tmp_path,
            software_version="0",
            content_datetime=datetime(2026, 1, 1, tzinfo=UTC),
        )
        return pool.run(
            request,
            lambda *_: None,
            triton_url=triton.url,
            request_timeout_seconds=60.0,
            step_timeout_seconds=300.0,
        )

    yield run
    pool.stop()


def test_what_is_no_series_is_refused_with_its_code(run: Run) -> None:
    with pytest.raises(PipelineFailed, match="the series has no instances") as raised:
        run()
    assert (raised.value.code, raised.value.retryable) == ("no_instances", False)
    with pytest.raises(PipelineFailed, match="not readable as DICOM") as raised:
        run(Path(__file__))
    assert (raised.value.code, raised.value.retryable) == ("unreadable_instance", False)
