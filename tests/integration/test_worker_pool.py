"""A real worker with a real Triton: a whole run, and inputs that it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from node.run.worker_pool import PipelineFailed, WorkerPool
from node.triton_server import EmbeddedTriton
from pipelines.process import Request

pytestmark = pytest.mark.integration

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, triton: EmbeddedTriton) -> Iterator[Run]:
    pool = WorkerPool(1)

    def run(*paths: Path, on_progress: Callable[[str, int, int], None] = lambda *_: None) -> dict[str, Any]:
        request = Request(
            pipeline="chest_ct_pneumonia",
            paths=paths,
            out=tmp_path,
            software_version="0",
            content_datetime=datetime(2026, 1, 1, tzinfo=UTC),
        )
        return pool.run(
            request,
            on_progress,
            triton_url=triton.url,
            request_timeout_seconds=60.0,
            step_timeout_seconds=300.0,
        )

    yield run
    pool.stop()


def test_what_is_no_series_is_refused_with_its_code_and_the_next_run_succeeds(
    run: Run, tmp_path: Path, phantom_series: Path
) -> None:
    with pytest.raises(PipelineFailed, match="the series has no instances") as raised:
        run()
    assert (raised.value.code, raised.value.retryable) == ("no_instances", False)
    with pytest.raises(PipelineFailed, match="not readable as DICOM") as raised:
        run(Path(__file__))
    assert (raised.value.code, raised.value.retryable) == ("unreadable_instance", False)
    stages: list[str] = []
    summary = run(
        *phantom_series.iterdir(),
        on_progress=lambda stage, _done, total: None if total else stages.append(stage),
    )
    assert stages == ["check", "load", "lungs", "lesions", "regions", "results"]
    assert summary == json.loads((tmp_path / "summary.json").read_text())
