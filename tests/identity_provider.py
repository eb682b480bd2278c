"""A real identity provider for tests: npm's oidc-provider (certified by the OpenID Foundation) as a process.

In: people and their claims.  Out: an issuer on the loopback, and what a person would click there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc.jwk import RSAKey

from node.triton_server import free_port
from tests.integration.receiving import wait_for

HERE = Path(__file__).parent / "oidc"
INSTALLED = Path(__file__).parents[1] / "build" / "oidc"
CLIENT, SECRET = "pacsnode", "a secret: with/odd+characters"
_FETCH_SECONDS = 300.0


def provider_program() -> Path:
    """provider.mjs beside what it needs, which npm fetches once as package-lock.json pins it.

    Skips the test without npm, except in CI, which must have it.
    """
    if shutil.which("npm") is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have npm installed")
        pytest.skip("NOT TESTED: single sign-on. It needs: apt-get install npm")
    INSTALLED.mkdir(parents=True, exist_ok=True)
    lock = (HERE / "package-lock.json").read_text()
    for name in ("package.json", "package-lock.json", "provider.mjs"):
        shutil.copy(HERE / name, INSTALLED / name)
    done = INSTALLED / "installed"
    if not done.is_file() or done.read_text() != lock:
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        fetched = subprocess.run(
            command, cwd=INSTALLED, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False
        )
        assert fetched.returncode == 0, fetched.stderr[-1000:]
        done.write_text(lock)
    return INSTALLED / "provider.mjs"


def signing_key() -> dict[str, Any]:
    key = RSAKey.generate_key(2048, {"use": "sig", "alg": "RS256"}, private=True, auto_kid=True)
    return dict(key.as_dict(private=True))


class IdentityProvider:
    """Use as a context manager. people: login -> claims."""

    def __init__(self, folder: Path, people: Mapping[str, Any], callback: str, **options: Any) -> None:
        self.port = free_port()
        self.issuer = f"http://localhost:{self.port}"
        self._folder = folder
        self.settings = {
            "port": self.port,
            "issuer": self.issuer,
            "people": people,
            "jwks": {"keys": [signing_key()]},
            "clients": [
                {
                    "client_id": CLIENT,
                    "client_secret": SECRET,
                    "redirect_uris": [callback],
                    "post_logout_redirect_uris": [callback.replace("/login/sso/callback", "/login")],
                }
            ],
            **options,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> IdentityProvider:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, **changes: Any) -> None:
        """Again with changed settings, as at first on the same port."""
        self.settings |= changes
        path = self._folder / "provider.json"
        path.write_text(json.dumps(self.settings))
        with (self._folder / "provider.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["node", str(provider_program()), str(path)], stdout=log, stderr=log
            )
        wait_for(self._answers, seconds=60, what="the identity provider")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.issuer}/.well-known/openid-configuration", timeout=5).is_success
        except httpx.HTTPError:
            return False


def clicked_through(url: str, login: str, callback: str) -> str:
    """What a person does at the provider whom a browser brought to ``url``: logs in, and agrees.

    Returns where the browser is sent back to.
    """
    with httpx.Client(timeout=30) as browser:
        answer = browser.get(url)
        for _ in range(12):
            if answer.is_redirect:
                target = str(answer.next_request.url) if answer.next_request is not None else ""
                if target.startswith(callback):
                    return target
                answer = browser.get(target)
                continue
            form = re.search(r'action="([^"]+)"', answer.text)
            prompt = re.search(r'name="prompt" value="(\w+)"', answer.text)
            assert form is not None and prompt is not None, answer.text[:2000]
            filled = {"prompt": prompt[1], "login": login, "password": "any"}
            answer = browser.post(httpx.URL(url).join(form[1]), data=filled)
    raise AssertionError("the provider sends the browser round and round")
