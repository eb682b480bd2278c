"""Destinations: how they do, and what ops ask of them.

GET  /destinations                  the page
GET  /api/destinations              the same for machines
POST /destinations/{name}/pause     and /resume: kept over a restart; and back to the page
POST /destinations/{name}/test      whether it answers now
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from sqlalchemy import Engine

from node.config import CStoreDestination, StowDestination
from node.deliver.gate import Gate
from node.deliver.pauses import Pauses
from node.errors import DeliveryError
from node.web.now import count_waiting
from node.web.pages import render

log = structlog.get_logger("node.web")

Gates = Callable[[], Mapping[str, Gate]]


@dataclass(frozen=True)
class Tested:
    """What a destination answered."""

    ok: bool
    said: str
    hint: str = ""


def destination_routes(engine: Engine, gates: Gates) -> APIRouter:
    """The routes of destinations."""
    router = APIRouter()
    pauses = Pauses(engine)
    actions: dict[str, Callable[[str, str], bool]] = {
        "pause": pauses.pause,
        "resume": lambda name, _user: pauses.resume(name),
    }

    def page(request: Request, tested: Tested | None = None) -> Response:
        return render(
            "destinations.html",
            request,
            rows=[(gate.condition, _kind(gate)) for gate in gates().values()],
            waiting=count_waiting(engine),
            now=time.time(),
            tested=tested,
        )

    @router.get("/api/destinations")
    def as_json() -> list[dict[str, Any]]:
        waiting = count_waiting(engine)
        conditions = [gate.condition for gate in gates().values()]
        return [asdict(each) | {"waiting": waiting.get(each.name, 0)} for each in conditions]

    @router.get("/destinations")
    def shown(request: Request) -> Response:
        return page(request)

    @router.post("/destinations/{name}/test")
    def test(name: str, request: Request) -> Response:
        gate = gates().get(name)
        if gate is None:
            return _unknown(name)
        try:
            gate.destination.check()
        except DeliveryError as error:
            return page(request, Tested(False, str(error), error.hint))
        return page(request, Tested(True, f"{name} answers."))

    @router.post("/destinations/{name}/{action}")
    def ask(name: str, action: str, request: Request) -> Response:
        if action not in actions or name not in gates():
            return _unknown(name)
        user = request.scope["principal"].user
        if actions[action](name, user):
            log.info("destination_asked", what=action, destination=name, user=user)
        return RedirectResponse("/destinations", 303)

    return router


def _unknown(name: str) -> JSONResponse:
    return JSONResponse({"error": f"destination {name!r} isn't here, or can't be asked that"}, 404)


def _kind(gate: Gate) -> str:
    options = gate.options
    if isinstance(options, CStoreDestination):
        return f"C-STORE, {options.ae_title}" + (", TLS" if options.tls is not None else "")
    return "STOW-RS" if isinstance(options, StowDestination) else "folder"
