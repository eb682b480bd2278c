"""Connects to Triton as ``request.Access`` says: plainly, or by TLS and with a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tritonclient.grpc as grpcclient

from pipelines.errors import InferenceUnavailable
from pipelines.request import Access


class _Token(grpcclient.InferenceServerClientPlugin):  # type: ignore[misc]  # its module has no types
    """Sends a token with every request."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: Any) -> None:
        request.headers["authorization"] = f"Bearer {self._token}"


def connect(url: str, access: Access) -> grpcclient.InferenceServerClient:
    """A client, connected when it is first used. Raises InferenceUnavailable when a file can't be read."""
    try:
        name = access.server_name
        client = grpcclient.InferenceServerClient(
            url,
            ssl=access.tls,
            root_certificates=access.ca,
            private_key=access.key,
            certificate_chain=access.certificate,
            channel_args=None if name is None else _channel_args(name),
        )
        if access.token_file is not None:
            client.register_plugin(_Token(Path(access.token_file).read_text(encoding="utf-8").strip()))
    except OSError as error:
        raise InferenceUnavailable(
            f"Triton at {url}: {error.filename}: {error.strerror}",
            hint="triton.tls and triton.token_file name files that the node's user can read",
        ) from error
    return client


def _channel_args(server_name: str) -> list[tuple[str, Any]]:
    """Ours replace the client's own, so its bounds of messages are among them."""
    return [
        ("grpc.max_send_message_length", grpcclient.MAX_GRPC_MESSAGE_SIZE),
        ("grpc.max_receive_message_length", grpcclient.MAX_GRPC_MESSAGE_SIZE),
        ("grpc.ssl_target_name_override", server_name),
    ]
