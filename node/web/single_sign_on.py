"""Logging in at an identity provider: what a browser is sent there with, and what it must bring back.

GET /login/sso           to the provider
GET /login/sso/callback  from there, with a code; a session begins as after a password
GET /login/sso/out       to where the provider's own session is ended

A login that is under way is kept here for a while, and belongs to the browser that has its cookie: an answer
is used once, and by nobody else. The cookie is SameSite=Lax, as browsers come back from another site; for the
same reason the callback answers with a page that leads on: the session's cookie, which is Strict, isn't sent
with a redirect that began elsewhere.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from node.config import WebConfig
from node.web.access import COOKIE, SINGLE_SIGN_ON
from node.web.login import Audited, local_path
from node.web.oidc import PREFIX, Asked, Provider, SignOnFailed
from node.web.pages import render
from node.web.sessions import LoginLimit, Sessions
from node.web.users import token_sha256

log = structlog.get_logger("node.web")

STATE_COOKIE = "pacsnode_login"
#: a person may take so long at the provider
UNDER_WAY_SECONDS = 600.0
#: logins under way, of everybody and of one address; the oldest go
MOST, MOST_OF_ONE = 5000, 50
#: requests that wait for the provider; one that is slow must not keep all threads of the pages
AT_ONCE = 8

Clock = Callable[[], float]


@dataclass(frozen=True)
class _UnderWay:
    asked: Asked
    after: str
    address: str
    ends_at: float


class LoginsUnderWay:
    """By the hash of their state."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._logins: OrderedDict[str, _UnderWay] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, after: str, address: str) -> Asked:
        asked = Asked(secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(48))
        one = _UnderWay(asked, after, address, self._clock() + UNDER_WAY_SECONDS)
        with self._lock:
            self._logins[token_sha256(asked.state)] = one
            own = [key for key, each in self._logins.items() if each.address == address]
            for key in dict.fromkeys([*own[:-MOST_OF_ONE], *list(self._logins)[:-MOST]]):
                del self._logins[key]
        return asked

    def take(self, state: str) -> tuple[Asked, str] | None:
        """(what it was asked with, where to go after); once."""
        with self._lock:
            one = self._logins.pop(token_sha256(state), None)
        return (one.asked, one.after) if one is not None and one.ends_at > self._clock() else None


class SingleSignOn:
    """The routes of single sign-on."""

    def __init__(
        self, provider: Provider, config: WebConfig, sessions: Sessions, limit: LoginLimit, audited: Audited
    ) -> None:
        self._provider = provider
        self._public_url = str(config.public_url)
        self._sessions = sessions
        self._limit = limit
        self._audited = audited
        self._under_way = LoginsUnderWay()
        self._places = threading.BoundedSemaphore(AT_ONCE)
        self.router = APIRouter(prefix=SINGLE_SIGN_ON)
        self.router.add_api_route("", self.start, methods=["GET"])
        self.router.add_api_route("/callback", self.callback, methods=["GET"])
        self.router.add_api_route("/out", self.out, methods=["GET"])

    def start(self, request: Request) -> Response:
        address = _address(request)
        wait = round(self._limit.wait_seconds(address) + 0.5)
        if wait > 0:
            return self._failed(
                request, SignOnFailed(429, "limit", f"Too many tries. Try again in {wait} s.")
            )
        asked = self._under_way.begin(local_path(request.query_params.get("next", "")), address)
        try:
            with self._place():
                answer = RedirectResponse(self._provider.authorization_url(asked), 303)
        except SignOnFailed as failed:
            return self._failed(request, failed)
        answer.set_cookie(
            STATE_COOKIE,
            asked.state,
            max_age=round(UNDER_WAY_SECONDS),
            path=SINGLE_SIGN_ON,
            httponly=True,
            samesite="lax",
            secure=self._is_secure,
        )
        return answer

    def callback(self, request: Request) -> Response:
        address = _address(request)
        try:
            asked, after = self._of_this_browser(request)
            with self._place():
                identity = self._provider.identify(request.query_params.get("code", ""), asked)
        except SignOnFailed as failed:
            if failed.status != 503:  # the provider's fault is nobody's guess
                self._limit.failed(address)
                self._audited(f"{PREFIX}unknown", address, "login", False)
            return self._failed(request, failed)
        self._limit.succeeded(address)
        self._audited(identity.user, address, "login", True)
        log.info("login", user=identity.user, address=address, by="oidc")
        answer = render("signed_on.html", request, after=after)
        answer.set_cookie(
            COOKIE,
            self._sessions.begin(identity.user, identity.role),
            max_age=self._sessions.seconds,
            httponly=True,
            samesite="strict",
            secure=self._is_secure,
        )
        answer.delete_cookie(STATE_COOKIE, path=SINGLE_SIGN_ON, httponly=True, samesite="lax")
        return answer

    def out(self, request: Request) -> Response:
        try:
            with self._place():
                return RedirectResponse(self._provider.logout_url(f"{self._public_url}/login"), 303)
        except SignOnFailed as failed:
            return self._failed(request, failed)

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Among those that ask the provider. Raises SignOnFailed when there is none."""
        if not self._places.acquire(blocking=False):
            raise SignOnFailed(503, "busy", "Many are logging in just now. Try again in a moment.")
        try:
            yield
        finally:
            self._places.release()

    @property
    def _is_secure(self) -> bool:
        return self._public_url.startswith("https:")

    def _of_this_browser(self, request: Request) -> tuple[Asked, str]:
        """What its login began with. Raises SignOnFailed."""
        said = request.query_params
        state, cookie = said.get("state", ""), request.cookies.get(STATE_COOKIE, "")
        found = self._under_way.take(state) if state and hmac.compare_digest(*_bytes(state, cookie)) else None
        if found is None:
            raise SignOnFailed(
                400,
                "state",
                "This login isn't one that this browser began here, or it took too long. Log in again.",
            )
        if not self._provider.is_issuer(said.get("iss", "")):
            raise SignOnFailed(401, "issuer", "The answer is of another identity provider.")
        if said.get("error") == "access_denied":
            raise SignOnFailed(403, "access_denied", "The identity provider refused the login.")
        if "error" in said or "code" not in said:
            raise SignOnFailed(401, "no_code", "The identity provider didn't log you in.")
        return found

    def _failed(self, request: Request, failed: SignOnFailed) -> Response:
        log.warning("single_sign_on_failed", code=failed.code, address=_address(request))
        return render("sign_on_failed.html", request, failed.status, said=str(failed))


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _bytes(*texts: str) -> list[bytes]:
    return [text.encode() for text in texts]
