"""The watch over Triton, without one. With one, and with one that dies: tests/integration/test_triton.py."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from node.config import TritonConfig
from node.errors import TritonStartError
from node.metrics import Metrics
from node.triton_server import free_port
from node.triton_watch import TritonWatch


def test_an_external_server_may_be_away(tmp_path: Path) -> None:
    metrics = Metrics("test")
    url = f"127.0.0.1:{free_port()}"
    watch = TritonWatch(TritonConfig(url=url), metrics)
    started = time.monotonic()
    watch.start()
    assert watch.url == url
    assert watch.why_not_ready() == f"Triton at {url} isn't ready"
    watch.stop()
    assert time.monotonic() - started < 10
    assert metrics.registry.get_sample_value("pacsnode_triton_ready") == 0.0


def test_an_embedded_server_that_can_never_start_is_said_at_once(tmp_path: Path) -> None:
    watch = TritonWatch(TritonConfig(model_repository=tmp_path / "nowhere"), Metrics("test"))
    with pytest.raises(TritonStartError, match="nowhere isn't a folder"):
        watch.start()
    assert watch.why_not_ready() is not None
    watch.stop()


def test_one_that_may_start_later_lets_the_node_go_on(tmp_path: Path) -> None:
    """A model that can't be loaded yet: the node receives meanwhile."""
    (tmp_path / "lungs").mkdir()
    (tmp_path / "lungs" / "config.pbtxt").write_text('backend: "onnxruntime"')
    watch = TritonWatch(TritonConfig(model_repository=tmp_path), Metrics("test"))
    watch.start()
    try:
        assert watch.why_not_ready() is not None
    finally:
        watch.stop()


def test_the_first_server_that_is_ready_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    ready: set[str] = set()
    monkeypatch.setattr(TritonWatch, "_is_ready", lambda _watch, url: url in ready)
    watch = TritonWatch(TritonConfig(url="a:1", fallback_urls=("b:1", "c:1")), Metrics("test"))

    def look(*urls: str) -> tuple[str, bool]:
        ready.clear()
        ready.update(urls)
        watch._look()
        return watch.url, watch.wait_ready(0.0)

    assert look("a:1", "b:1") == ("a:1", True)
    assert look("b:1", "c:1") == ("b:1", True)
    assert look() == ("b:1", False)
    assert watch.why_not_ready() == "Triton at a:1, b:1, c:1 isn't ready"
    assert look("c:1") == ("c:1", True)
    assert look("a:1", "c:1") == ("a:1", True)
