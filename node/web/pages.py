"""The pages' common frame: Jinja templates, static files, and what browsers may load.

In: a template's name and its values.  Out: one HTML document. Every value is escaped by Jinja; pages hold
UIDs, codes and coded header values, no patient data, unless a template says otherwise. They work without
scripts; ``static/live.js`` keeps what is marked ``data-live`` up to date.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from node import __version__
from node.reasons import incomplete, of_delivery, of_instance, of_job, of_refusal
from node.web.users import Role

_HERE = Path(__file__).parent
#: what the pages may load and do: what we serve ourselves, and forms to ourselves; nothing inline
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
STATIC_TYPES = {
    "style.css": "text/css",
    "live.js": "text/javascript",
    "upload.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
#: (address, name) of the navigation, in order
NAVIGATION = (
    ("/", "Overview"),
    ("/studies", "Studies"),
    ("/destinations", "Destinations"),
    ("/models", "Models"),
    ("/routes", "Routes"),
    ("/upload", "Upload"),
)
#: what a state means for people, as the colour of its label
TONES = {
    "routed": "good",
    "closed": "good",
    "half_open": "warn",
    "done": "good",
    "delivered": "good",
    "complete": "busy",
    "queued": "busy",
    "retry": "busy",
    "running": "busy",
    "delivering": "busy",
    "pending": "busy",
    "stored": "busy",
    "unmatched": "warn",
    "quarantined": "warn",
    "cancelled": "warn",
    "paused": "warn",
    "failed": "bad",
}


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _age(timestamp: float, now: float) -> str:
    seconds = max(0, int(now - timestamp))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def missing_of(evidence: dict[str, Any]) -> list[str]:
    """What is known to be missing of a series that was completed all the same."""
    lines = [why.sentence for why in incomplete(evidence)]
    if error := (evidence.get("query") or {}).get("error"):
        lines.append(error)
    return lines


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_HERE / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.globals.update(tones=TONES, missing_of=missing_of)
_TEMPLATES.globals.update(
    of_job=of_job, of_delivery=of_delivery, of_instance=of_instance, of_refusal=of_refusal
)
_TEMPLATES.filters.update(utc=_utc, iso=_iso, age=_age, size=_size)


def render(name: str, request: Request, status: int = 200, **values: Any) -> HTMLResponse:
    """A page of ``templates``. Knows who asks, and what they may do."""
    principal = request.scope.get("principal")
    session = principal.session if principal is not None else None
    html = _TEMPLATES.get_template(name).render(
        **values,
        version=__version__,
        asset=_asset,
        navigation=NAVIGATION if principal is not None else (),
        path=request.url.path,
        user=session.user if session is not None else None,
        may_ask=principal is not None and principal.role >= Role.OPERATOR,
        may_rule=principal is not None and principal.role >= Role.ADMIN,
    )
    return HTMLResponse(html, status)


def problem(request: Request, status: int, title: str, said: str, hint: str = "") -> HTMLResponse:
    """A page that says what can't be done, and what to do."""
    return render("problem.html", request, status, title=title, said=said, hint=hint)


@cache
def _content(name: str) -> bytes:
    return (_HERE / "static" / name).read_bytes()


def _asset(name: str) -> str:
    """The address of a static file, which changes with its content."""
    return f"/static/{name}?{hashlib.sha256(_content(name)).hexdigest()[:12]}"


def static_routes() -> APIRouter:
    """Style and scripts: the same for everybody, so open."""
    router = APIRouter()

    @router.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in STATIC_TYPES:
            return Response("no such file\n", 404, media_type="text/plain")
        headers = {"Cache-Control": "public, max-age=86400"}
        return Response(_content(name), media_type=STATIC_TYPES[name], headers=headers)

    return router
