"""Logging in and out: a form, guarded against guessing.

In: a name and a password.  Out: a session's cookie, and what happened in the audit trail and the log.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal
from urllib.parse import parse_qs, quote, urlsplit

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from node.config import WebConfig
from node.web.access import COOKIE, LOGIN, LOGOUT, SINGLE_SIGN_ON, same_origin
from node.web.pages import render
from node.web.sessions import LoginLimit, Sessions
from node.web.users import UsersFile

log = structlog.get_logger("node.web")

#: (user, address, what, whether it succeeded)
Audited = Callable[[str, str, Literal["login", "logout"], bool], None]

LARGEST_FORM_BYTES = 8192
LONGEST_NAME = 64
#: Argon2 takes 64 MiB each
VERIFIED_AT_ONCE = 2


class Login:
    """The routes ``/login`` and ``/logout``."""

    def __init__(
        self, users: UsersFile, sessions: Sessions, limit: LoginLimit, audited: Audited, config: WebConfig
    ) -> None:
        self._users = users
        self._sessions = sessions
        self._audited = audited
        self._limit = limit
        self._config = config
        self._verifying = threading.BoundedSemaphore(VERIFIED_AT_ONCE)
        self.router = APIRouter()
        self.router.add_api_route(LOGIN, self.form, methods=["GET"])
        self.router.add_api_route(LOGIN, self.log_in, methods=["POST"])
        self.router.add_api_route(LOGOUT, self.log_out, methods=["POST"])

    def form(self, request: Request) -> Response:
        return self._page(request, local_path(request.query_params.get("next", "")))

    async def log_in(self, request: Request) -> Response:
        fields = await _fields(request)
        if not self._config.password_login:
            return JSONResponse({"error": "logins by password are off (web.password_login)"}, 403)
        if fields is None or not same_origin(request):
            return JSONResponse({"error": "not the login form of this node"}, 400)
        name, password = fields.get("name", "")[:LONGEST_NAME], fields.get("password", "")
        address, after = request.client.host if request.client else "", local_path(fields.get("next", ""))
        wait = round(self._limit.wait_seconds(address, name) + 0.5)
        if wait > 0:
            page = self._page(request, after, f"Too many tries. Try again in {wait} s.", 429)
            page.headers["Retry-After"] = str(wait)
            return page
        right = await run_in_threadpool(self._verify, name, password)
        self._audited(name, address, "login", right)
        if not right:
            self._limit.failed(address, name)
            log.warning("login_failed", address=address)
            return self._page(request, after, "Name or password is wrong.", 401)
        self._limit.succeeded(address, name)
        log.info("login", user=name, address=address)
        answer = RedirectResponse(after, 303)
        answer.set_cookie(
            COOKIE,
            self._sessions.begin(name),
            max_age=self._sessions.seconds,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    def log_out(self, request: Request) -> Response:
        self._sessions.end(request.cookies.get(COOKIE, ""))
        principal = request.scope["principal"]
        self._audited(principal.user, request.client.host if request.client else "", "logout", True)
        session = principal.session
        with_provider = session is not None and session.role is not None
        answer = RedirectResponse(f"{LOGIN}?out=sso" if with_provider else LOGIN, 303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    def _page(self, request: Request, after: str, said: str = "", status: int = 200) -> Response:
        config, single = self._config, ""
        if config.oidc is not None:  # by the name that the provider sends the browser back to
            single = f"{config.public_url}{SINGLE_SIGN_ON}"
        return render(
            "login.html",
            request,
            status,
            after=after,
            said=said,
            passwords=config.password_login,
            single=f"{single}?next={quote(after, safe='')}" if single else "",
            out=f"{single}/out" if single and request.query_params.get("out") == "sso" else "",
        )

    def _verify(self, name: str, password: str) -> bool:
        with self._verifying:
            return self._users.current().verify(name, password)


async def _fields(request: Request) -> dict[str, str] | None:
    """Of a form of moderate size; None for anything else."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_FORM_BYTES:
            return None
    try:
        return {name: values[0] for name, values in parse_qs(body.decode("ascii")).items()}
    except (UnicodeDecodeError, ValueError):
        return None


def local_path(target: str) -> str:
    """A path of ours, wherever a link to the form wants to lead."""
    parts = urlsplit(target)
    ours = not parts.scheme and not parts.netloc and parts.path.startswith("/") and "\\" not in target
    return quote(parts.path) if ours and not parts.path.startswith("//") else "/"
