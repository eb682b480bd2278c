"""``pacsnode jobs show|retry|cancel`` over HTTP; who may is decided by ``access``.

GET  /api/jobs/{id}           one job with its deliveries; the id may be shortened
POST /api/jobs/{id}/retry     ask for an ended job again
POST /api/jobs/{id}/cancel    its next step isn't begun
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from sqlalchemy import Engine

from node.errors import NodeError
from node.run.operations import JobNotFound, JobStateConflict, cancel_job, retry_job, show_job

log = structlog.get_logger("node.web")

_STATUS: dict[type[NodeError], int] = {JobNotFound: 404, JobStateConflict: 409}


def job_routes(engine: Engine) -> APIRouter:
    """The routes of single jobs."""
    router = APIRouter(prefix="/api/jobs/{job_id}")

    @router.get("")
    def show(job_id: str) -> JSONResponse:
        return _answered(lambda: show_job(engine, job_id))

    @router.post("/retry")
    def retry(job_id: str, request: Request) -> JSONResponse:
        return _answered(lambda: _asked(request, "retry", retry_job(engine, job_id)))

    @router.post("/cancel")
    def cancel(job_id: str, request: Request) -> JSONResponse:
        user = request.scope["principal"].user
        return _answered(lambda: _asked(request, "cancel", cancel_job(engine, job_id, user)))

    return router


def _asked(request: Request, what: str, job_id: str) -> dict[str, Any]:
    log.info("job_asked", what=what, job_id=job_id, user=request.scope["principal"].user)
    return {"job_id": job_id, "asked": what}


def _answered(action: Callable[[], dict[str, Any]]) -> JSONResponse:
    try:
        return JSONResponse(action())
    except (JobNotFound, JobStateConflict) as error:
        body = {"code": error.code, "error": str(error), "hint": error.hint}
        return JSONResponse(body, _STATUS[type(error)])
