"""Who may ask the web server for what: decided before a request reaches a page, by one table.

In: an HTTP request.  Out: it goes on, with who asks as ``scope["principal"]``, or is answered here.

Someone is known by a session (a browser that logged in), by an API token (``Authorization: Bearer``), or by
being on this machine, where ``web.open_loopback`` says so. What the table doesn't name needs a role, so that
a new page is never open by mistake. Requests that change something must come from our own pages, of which the
browser tells us (``Origin``), or carry an API token, which no browser adds by itself; a session's cookie is
SameSite=Strict besides.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import quote, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from node.web.sessions import Session, Sessions
from node.web.users import Role, UsersFile

COOKIE = "pacsnode_session"
LOGIN, LOGOUT = "/login", "/logout"
SINGLE_SIGN_ON = "/login/sso"
#: answered without knowing who asks: they say nothing of any study
OPEN = frozenset(
    {"/healthz", "/readyz", LOGIN, SINGLE_SIGN_ON, f"{SINGLE_SIGN_ON}/callback", f"{SINGLE_SIGN_ON}/out"}
)
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
LOOPBACK_USER = "loopback"
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
#: a proxy on this machine passes on what others ask: such requests aren't the machine's own
PROXY_HEADERS = ("forwarded", "x-forwarded-for", "x-real-ip", "via")

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Principal:
    """Who asks. session: of a browser that logged in.  by_token: known by an API token."""

    user: str
    role: Role
    session: Session | None = None
    by_token: bool = False


#: what isn't as ``role_needed`` has it else: beginning and end of a path, and the role for any method; None
#: is open, for what says nothing of any study, or asks for a secret of its own
TABLE: tuple[tuple[str, str, Role | None], ...] = (
    ("/static/", "", None),
    ("/studies/", "/patient", Role.OPERATOR),
    ("/reload", "", Role.ADMIN),
    ("/upload/", "", None),  # a link for one phone (``uploads``)
    ("/upload", "", Role.OPERATOR),
)


def role_needed(method: str, path: str) -> Role | None:
    """None for what is open. What changes something needs an operator, unless it is to log out."""
    if path in OPEN:
        return None
    if ".." not in path:
        for beginning, end, role in TABLE:
            if path.startswith(beginning) and path.endswith(end):
                return role
    return Role.VIEWER if method in SAFE_METHODS or path == LOGOUT else Role.OPERATOR


class Access:
    """The ASGI application around the pages."""

    def __init__(
        self, app: ASGIApp, users: UsersFile, sessions: Sessions, *, open_loopback: bool, policy: str
    ) -> None:
        """policy: the pages' Content-Security-Policy."""
        self._app = app
        self._users = users
        self._sessions = sessions
        self._open_loopback = open_loopback
        self._headers = {**HEADERS, "Content-Security-Policy": policy}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope)
        scope["principal"] = principal = self._principal(request)
        scope["still_known"] = lambda: self._principal(request) is not None  # for answers that take long
        refusal = self._refusal(request, principal)
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _principal(self, request: Request) -> Principal | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            found = self._users.current().of_token(token.strip())
            return Principal(*found, by_token=True) if found is not None else None
        session = self._sessions.find(request.cookies.get(COOKIE, ""))
        if session is not None:
            role = session.role or self._users.current().role_of(session.user)
            if role is not None:  # else taken out of the file since
                return Principal(session.user, role, session)
        if self._open_loopback and _is_local(request):
            return Principal(LOOPBACK_USER, Role.ADMIN)
        return None

    def _refusal(self, request: Request, principal: Principal | None) -> Response | None:
        """None when the request may go on."""
        method, path = request.method, str(request.scope["path"])  # what decides which page answers
        needed = role_needed(method, path)
        if needed is None:
            return None
        if principal is None:
            if "text/html" in request.headers.get("accept", ""):
                return RedirectResponse(f"{LOGIN}?next={quote(path)}", 303)
            headers = {"WWW-Authenticate": "Bearer"}
            return JSONResponse({"error": "log in, or send an API token"}, 401, headers)
        if principal.role < needed:
            names = (
                f"needs the role {needed.name.lower()}, and {principal.user} is {principal.role.name.lower()}"
            )
            return JSONResponse({"error": f"{method} {path} {names}"}, 403)
        if method not in SAFE_METHODS and not principal.by_token and not same_origin(request):
            return JSONResponse({"error": "the request doesn't come from a page of this node"}, 403)
        return None


def same_origin(request: Request) -> bool:
    """Whether a browser sent it from a page of this address. Browsers say so of every POST (Fetch 3.2)."""
    origin = request.headers.get("origin", "")
    return urlsplit(origin).netloc == request.headers.get("host") != ""


def _is_local(request: Request) -> bool:
    """From this machine, by one of its own names (not one that a page elsewhere made point here), and not
    passed on by a proxy."""
    try:
        local = request.client is not None and ip_address(request.client.host).is_loopback
    except ValueError:
        local = False
    name = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
    passed_on = any(header in request.headers for header in PROXY_HEADERS)
    return local and name in LOOPBACK_NAMES and not passed_on
