"""A provider that answers wrongly, as no real one can be made to: ID tokens as a test wants them."""

from __future__ import annotations

import hmac
import json
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

from tests.identity_provider import CLIENT, SECRET, signing_key


@dataclass
class Wrong:
    """A provider of a page, whose ID tokens are made as a test wants them."""

    change: Callable[[dict[str, Any]], object] = lambda _claims: None
    sign: Callable[[dict[str, Any], RSAKey], str] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    token_status: int = 200
    nonce: str = ""
    issuer: str = ""
    key: RSAKey = field(default_factory=lambda: RSAKey.import_key(signing_key()))

    def claims(self) -> dict[str, Any]:
        now = int(time.time())
        claims = {"iss": self.issuer, "sub": "s", "aud": CLIENT, "iat": now, "exp": now + 60}
        return {**claims, "nonce": self.nonce, "groups": ["radiology"], "preferred_username": "eve"}

    def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        if path == "/.well-known/openid-configuration":
            names = ("authorization_endpoint", "token_endpoint", "jwks_uri")
            return 200, {
                "issuer": self.issuer,
                **{name: f"{self.issuer}/{name}" for name in names},
                "token_endpoint_auth_methods_supported": ["client_secret_post"],
                **self.metadata,
            }
        if path == "/jwks_uri":
            odd = {"kty": "unheard of", "kid": "odd"}
            return 200, {"keys": [odd, self.key.as_dict(private=False)]}
        claims = self.claims()
        self.change(claims)
        header = {"alg": "RS256", "kid": self.key.kid}
        made = self.sign(claims, self.key) if self.sign else jwt.encode(header, claims, self.key)
        return self.token_status, {"id_token": made, "access_token": "x", "token_type": "Bearer"}


@pytest.fixture
def wrong() -> Iterator[Wrong]:
    behaviour = Wrong()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            self.rfile.read(length)
            status, body = behaviour.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        do_POST = do_GET  # noqa: N815 - the library's names

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("localhost", 0), Handler)
    behaviour.issuer = f"http://localhost:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield behaviour
    server.shutdown()
    server.server_close()


def by_another(claims: dict[str, Any], key: RSAKey) -> str:
    return jwt.encode({"alg": "RS256", "kid": key.kid}, claims, RSAKey.import_key(signing_key()))


def by_our_secret(claims: dict[str, Any], key: RSAKey) -> str:
    return jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(SECRET), algorithms=["HS256"])


def by_the_public_key_as_secret(claims: dict[str, Any], key: RSAKey) -> str:
    """By hand: joserfc refuses to."""

    def text(data: bytes) -> str:
        return urlsafe_b64encode(data).decode().rstrip("=")

    header = {"alg": "HS256", "kid": key.kid}
    signed = ".".join(text(json.dumps(part).encode()) for part in (header, claims))
    return f"{signed}.{text(hmac.digest(key.as_pem(private=False), signed.encode(), 'sha256'))}"


def by_nobody(claims: dict[str, Any], key: RSAKey) -> str:
    _, payload, _ = jwt.encode({"alg": "RS256"}, claims, key).split(".")
    return f"eyJhbGciOiJub25lIn0.{payload}."  # {"alg":"none"}


def changed_after(claims: dict[str, Any], key: RSAKey) -> str:
    header, _, signature = jwt.encode({"alg": "RS256", "kid": key.kid}, claims, key).split(".")
    _, payload, _ = jwt.encode({"alg": "RS256"}, claims | {"groups": ["pacs-admins"]}, key).split(".")
    return f"{header}.{payload}.{signature}"
