"""Routes: as configured, what would happen to a series, and reading the configuration again.

GET  /routes            the page
POST /routes/dry-run    DICOM files or zips of them: which routes match, and why the others don't; nothing is
                        kept
POST /reload            read the configuration again (as SIGHUP does): for admins
"""

from __future__ import annotations

from typing import Any

import yaml
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from node.reload import Reloaded
from node.route.explain import explain
from node.web.intake import IntakeGate, Room
from node.web.multipart import BadBody, Limits, Part, save_parts
from node.web.pages import problem, render
from node.web.sources import Sources
from node.web.unpack import unpack

#: of a dry run: a whole chest CT
DRY_RUN = Limits(body_bytes=1_000_000_000, parts=5000)


def route_routes(sources: Sources, gate: IntakeGate) -> APIRouter:
    """The routes of routes."""
    router = APIRouter()

    def page(request: Request, status: int = 200, **said: Any) -> Response:
        routes = sources.routes()
        values: dict[str, Any] = {"result": None, "problem": "", "reloaded": None, **said}
        return render(
            "routes.html",
            request,
            status,
            routes=routes,
            rules={one.config.name: yaml.safe_dump(one.config.when, sort_keys=False) for one in routes},
            running=sources.reloading.running if sources.reloading is not None else None,
            limit=DRY_RUN.body_bytes,
            **values,
        )

    @router.get("/routes")
    def shown(request: Request) -> Response:
        return page(request)

    @router.post("/routes/dry-run")
    async def dry_run(request: Request) -> Response:
        try:
            with gate.enter(request) as room:
                parts = await save_parts(request, room.folder, DRY_RUN)
                result = await run_in_threadpool(_explained, sources, parts, room)
        except BadBody as error:
            if "application/json" in request.headers.get("accept", ""):
                return JSONResponse({"error": str(error)}, error.status)
            return await run_in_threadpool(page, request, error.status, problem=str(error))
        if "application/json" in request.headers.get("accept", ""):
            return JSONResponse(result)
        return await run_in_threadpool(page, request, result=result)

    @router.post("/reload")
    def reload(request: Request) -> Response:
        if sources.reloading is None:
            return problem(request, 404, "Routes", "This process has no configuration to read again.")
        done: Reloaded = sources.reloading.reload(request.scope["principal"].user)
        return page(request, 200 if done.ok else 409, reloaded=done)

    return router


def _explained(sources: Sources, parts: list[Part], room: Room) -> dict[str, Any]:
    """``pacsnode explain`` of what was sent. It goes back to who sent it, so with free text."""
    folder = room.folder
    found = unpack(parts, folder, min(DRY_RUN.body_bytes, room.free_bytes))
    routes = sources.routes()
    names = {part.path: part.name for part in found.dicom}
    for other in set(folder.iterdir()) - set(names):
        other.unlink()
    explained = explain(folder, routes)
    result = explained.to_json()
    destinations = {route.config.name: list(route.config.destinations) for route in routes}
    for series in result["series"]:
        for verdict in series["routes"]:
            verdict["destinations"] = destinations[verdict["route"]]
        series["runs"] = sorted({one["pipeline"] for one in series["routes"] if one["matches"]})
    result["skipped"] = [
        *({"path": names[path], "reason": reason} for path, reason in explained.skipped),
        *({"path": name, "reason": reason} for name, reason in found.skipped),
    ]
    return result
