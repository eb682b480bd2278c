"""The inference client without a server: what it says when nobody answers. With one: tests/integration."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc.service_pb2 import ServerReadyResponse

from node.triton_server import free_port
from pipelines.errors import InferenceUnavailable, ModelNotServed, PipelineError
from pipelines.request import PLAIN, Access
from pipelines.triton import InferenceClient, ModelSpec, ServedModel, TensorSpec
from pipelines.volume import ModelIdentity
from tests.certificates import Authority

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
    """Without limit where nobody answers a question; a request that takes too long counts."""
    with pytest.raises(InferenceUnavailable, match=f"model lungs at {client.url}: StatusCode") as raised:
        client.check(SPEC)
    assert (raised.value.code, raised.value.retryable) == ("triton_unavailable", True)
    with pytest.raises(PipelineError, match=f"model lungs at {client.url}: StatusCode") as failed:
        client.run(MODEL, INPUTS)
    timed_out = "DEADLINE_EXCEEDED" in str(failed.value)
    expected = "inference_interrupted" if timed_out else "triton_unavailable"
    assert (failed.value.code, failed.value.retryable) == (expected, True)


def test_a_model_that_is_being_loaded_is_waited_for(
    client: InferenceClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client._client, "is_model_ready", lambda *_args, **_more: False)
    for state, expected in (("LOADING", InferenceUnavailable), ("UNAVAILABLE", ModelNotServed)):
        index = {"models": [{"name": "lungs", "version": "1", "state": state}]}
        monkeypatch.setattr(client._client, "get_model_repository_index", lambda i=index, **_more: i)
        with pytest.raises(expected, match=state):
            client.check(SPEC)


def test_tls_and_a_token(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    signed = authority.sign("triton")
    keys = [(signed.key.read_bytes(), signed.certificate.read_bytes())]
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    heard: dict[str, str] = {}

    def ready_and_heard(_request: bytes, context: grpc.ServicerContext) -> ServerReadyResponse:
        heard.update((key, str(value)) for key, value in context.invocation_metadata())
        return ServerReadyResponse(ready=True)

    answering = grpc.unary_unary_rpc_method_handler(
        ready_and_heard, response_serializer=ServerReadyResponse.SerializeToString
    )
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ServerReady": answering})]
    )
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(keys))
    server.start()
    try:
        trusted = Access(tls=True, ca=str(authority.ca), token_file=str(token))
        stranger = Access(tls=True, ca=str(Authority(tmp_path / "other").ca))
        for access, ready in ((trusted, True), (stranger, False), (PLAIN, False)):
            with InferenceClient(f"127.0.0.1:{port}", timeout_seconds=3.0, access=access) as client:
                assert client.ready() == ready, access
        assert heard["authorization"] == "Bearer s3cret"
    finally:
        server.stop(None)
