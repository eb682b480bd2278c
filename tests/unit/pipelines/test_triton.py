"""The inference client without a server: what it says when nobody answers. With one: tests/integration."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest

from node.triton_server import free_port
from pipelines.errors import InferenceUnavailable
from pipelines.triton import InferenceClient, ModelSpec, ServedModel, TensorSpec
from pipelines.volume import ModelIdentity

SPEC = ModelSpec("lungs", "1", (TensorSpec("HU", "INT16", (-1, -1)),), (TensorSpec("L", "UINT8", (-1, -1)),))
MODEL = ServedModel(SPEC, ModelIdentity("lungs", "1", "00"), 4)
INPUTS = {"HU": np.zeros((9, 8, 8), np.int16)}


@pytest.fixture(params=["nobody", "silent"])
def client(request: pytest.FixtureRequest) -> Iterator[InferenceClient]:
    """For a port where nobody listens, and for one where a server takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = free_port() if request.param == "nobody" else silent.getsockname()[1]
        with InferenceClient(f"127.0.0.1:{port}", timeout_seconds=0.5) as client:
            yield client


def test_a_tensor_reads_as_in_the_error_messages() -> None:
    assert str(TensorSpec("PROBABILITIES", "UINT8", (2, -1, -1))) == "PROBABILITIES UINT8[2, -1, -1]"


def test_a_server_that_does_not_answer_is_not_ready(client: InferenceClient) -> None:
    assert not client.ready()


def test_waiting_for_it_ends(client: InferenceClient) -> None:
    started = time.monotonic()
    with pytest.raises(InferenceUnavailable, match=f"Triton at {client.url} isn't ready after 0 s"):
        client.wait_ready(0.3)
    assert time.monotonic() - started < 5


def test_it_can_be_asked_again_later(client: InferenceClient) -> None:
    for ask in (lambda: client.check(SPEC), lambda: client.run(MODEL, INPUTS)):
        with pytest.raises(InferenceUnavailable, match=f"model lungs at {client.url}: StatusCode") as raised:
            ask()
        assert (raised.value.code, raised.value.retryable) == ("triton_unavailable", True)
