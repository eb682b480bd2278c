"""The page of one study, and what can be asked there.

GET  /studies/{uid}                       the page
GET  /api/studies/{uid}                   the same for machines
POST /studies/{uid}/jobs/{id}/retry       and /cancel: asked, and back to the page
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from urllib.parse import quote

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from sqlalchemy import Engine

from node.run.operations import JobNotFound, JobStateConflict, cancel_job, retry_job
from node.web.page import document
from node.web.study import Event, Job, Series, Study, find_study
from node.web.users import Role

log = structlog.get_logger("node.web")


def study_routes(engine: Engine, data_dir: Path) -> APIRouter:
    """The routes of single studies."""
    router = APIRouter()
    actions: dict[str, Callable[[Engine, str], str]] = {"retry": retry_job, "cancel": cancel_job}

    @router.get("/api/studies/{uid}")
    def as_json(uid: str) -> JSONResponse:
        study = find_study(engine, data_dir, uid)
        if study is None:
            return JSONResponse({"error": f"nothing of study {uid} was received"}, 404)
        return JSONResponse(study.to_json())

    @router.get("/studies/{uid}")
    def page(uid: str, request: Request) -> Response:
        study = find_study(engine, data_dir, uid)
        if study is None:
            body = f"<p>Nothing of study <span class='mono'>{escape(uid)}</span> was received.</p>{_BACK}"
            return HTMLResponse(document("Study", body), 404)
        return HTMLResponse(render_study(study, may_ask=request.scope["principal"].role >= Role.OPERATOR))

    @router.post("/studies/{uid}/jobs/{job_id}/{action}")
    def ask(uid: str, job_id: str, action: str, request: Request) -> Response:
        if action not in actions:
            return JSONResponse({"error": f"{action!r} can't be asked; retry and cancel can"}, 404)
        try:
            actions[action](engine, job_id)
        except (JobNotFound, JobStateConflict) as error:
            body = f"<p class='bad' role='alert'>{escape(str(error))}</p><p>{escape(error.hint)}</p>{_BACK}"
            return HTMLResponse(document("Study", body), 409)
        log.info("job_asked", what=action, job_id=job_id, user=request.scope["principal"].user)
        return RedirectResponse(f"/studies/{quote(uid)}", 303)

    return router


_BACK = "<p><a href='/'>All series and jobs</a></p>"


def render_study(study: Study, *, may_ask: bool) -> str:
    """The whole document. may_ask: show the buttons."""
    quarantined = "".join(
        f"<p class='warn'>In quarantine: <span class='mono'>{escape(path)}</span>: {escape(reason)}</p>"
        for path, reason in study.quarantined
    )
    return document(
        "Study",
        f"<header><h1>Study</h1><span class='mono'>{escape(study.study_instance_uid)}</span></header>"
        f"{_BACK}{quarantined}{''.join(_series(each, study, may_ask) for each in study.series)}",
        refresh_seconds=10,
    )


def _series(one: Series, study: Study, may_ask: bool) -> str:
    buttons = "".join(_button(job, action, study) for job in one.jobs for action in job.asks if may_ask)
    rows = "".join(_row(event) for event in one.events)
    return (
        f"<section><h2>Series <span class='mono'>{escape(one.series_instance_uid)}</span>"
        f" <span class='soft'>version {one.version}</span></h2>"
        f"<p class='{one.tone}'>{escape(one.sentence)}</p>{buttons}"
        "<div class='card'><table><thead><tr><th scope='col'>When (UTC)</th><th scope='col'>What</th>"
        f"<th scope='col'>Why</th></tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _button(job: Job, action: str, study: Study) -> str:
    label = {"retry": "Run again", "cancel": "Cancel"}[action]
    target = f"/studies/{quote(study.study_instance_uid)}/jobs/{quote(job.job_id)}/{action}"
    return (
        f"<form class='inline' method='post' action='{target}'>"
        f"<button>{label}: {escape(job.pipeline)}</button></form> "
    )


def _row(event: Event) -> str:
    when = datetime.fromtimestamp(event.at, UTC).strftime("%Y-%m-%d %H:%M:%S")
    what = f"<span class='pill {event.tone}'>{escape(event.what)}</span>"
    return f"<tr><td class='mono'>{when}</td><td>{what}</td><td>{escape(event.why)}</td></tr>"
