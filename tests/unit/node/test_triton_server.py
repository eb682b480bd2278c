"""The embedded Triton: what a repository that can't be served says, and that nothing is left behind.

A good start with the shipped models is in tests/integration.
"""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from node import triton_server
from node.errors import TritonStartError
from node.triton_server import DEFAULT_REPOSITORY, EmbeddedTriton
from pipelines.triton import InferenceClient


def test_a_repository_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(TritonStartError, match=r"nowhere isn't a folder") as raised:
        EmbeddedTriton(tmp_path / "nowhere").start()
    assert not raised.value.retryable


def test_a_broken_model_is_named_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    model = tmp_path / "repository" / "lungs"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text((DEFAULT_REPOSITORY / "lungs" / "config.pbtxt").read_text())
    (model / "1" / "model.onnx").write_bytes(b"not a model")
    server = EmbeddedTriton(tmp_path / "repository")
    with pytest.raises(TritonStartError) as raised:
        server.start()
    message = str(raised.value)
    assert "the embedded Triton ended with code" in message
    assert "lungs" in message and "model.onnx" in message
    assert not server.alive()
    assert list((tmp_path / "temporary").iterdir()) == []


def test_start_and_stop_with_an_empty_repository(tmp_path: Path) -> None:
    server = EmbeddedTriton(tmp_path)
    assert not server.alive()
    with server:
        assert server.alive()
        with InferenceClient(server.url, timeout_seconds=5.0) as client:
            assert client.ready()
        assert "nv_cpu_utilization" in httpx.get(server.metrics_url).text
        process = server._process
        assert process is not None
        started = time.monotonic()
    assert time.monotonic() - started < triton_server.STOP_SECONDS, "it had to be killed"
    assert process.returncode == 0
    assert not server.alive()
    server.stop()  # again does nothing


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that another program has."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@pytest.mark.parametrize("position", [0, 1, 2], ids=["grpc", "http", "metrics"])
def test_a_port_that_was_taken_meanwhile_is_left_to_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int, position: int
) -> None:
    ports = [triton_server.free_port() for _ in range(5)]
    ports.insert(position, taken)
    monkeypatch.setattr(triton_server, "free_port", lambda: ports.pop(0))
    with EmbeddedTriton(tmp_path) as server:
        assert ports == []
        assert str(taken) not in server.url + server.metrics_url
        assert server.alive()


def test_ports_are_not_tried_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    ports = [taken, 0, 0] * triton_server.PORT_TRIES
    free_port = triton_server.free_port
    monkeypatch.setattr(triton_server, "free_port", lambda: ports.pop(0) or free_port())
    with pytest.raises(TritonStartError, match=f"can't have port {taken}, which is in use"):
        EmbeddedTriton(tmp_path).start()
    assert ports == []


@pytest.mark.parametrize("name", ["grpc", "http", "metrics"])
def test_a_port_that_was_asked_for_is_not_replaced(tmp_path: Path, taken: int, name: str) -> None:
    with pytest.raises(TritonStartError, match=f"Triton's {name} port {taken} is in use") as raised:
        EmbeddedTriton(tmp_path, **{f"{name}_port": taken}).start()
    assert "another Triton" in raised.value.hint
