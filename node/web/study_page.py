"""The list of studies, the page of one study, and what can be asked there.

GET  /studies                             newest first; ?state= &sender= &uid= &before=
GET  /studies/{uid}                       the page of one
GET  /api/studies/{uid}                   the same for machines
GET  /studies/{uid}/patient               who it is of: for operators, and in the audit trail
GET  /studies/{uid}/jobs/{id}/pictures/{n}   an image among the results
POST /studies/{uid}/jobs/{id}/retry       and /cancel: asked, and back to the page
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlencode

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from sqlalchemy import Engine

from node.run.operations import JobNotFound, JobStateConflict, cancel_job, retry_job
from node.web.pages import problem, render
from node.web.patient import patient_of
from node.web.pictures import picture
from node.web.studies import JOB_STATES, SERIES_STATES, Filter, list_studies
from node.web.study import find_study

log = structlog.get_logger("node.web")

#: (user, address, study)
Accessed = Callable[[str, str, str], None]


def study_list_routes(engine: Engine) -> APIRouter:
    """The route of the list."""
    router = APIRouter()

    @router.get("/studies")
    def listed(
        request: Request, state: str = "", sender: str = "", uid: str = "", before: str = ""
    ) -> Response:
        if state and state not in (*SERIES_STATES, *JOB_STATES):
            allowed = ", ".join((*SERIES_STATES, *JOB_STATES))
            return problem(request, 422, "Studies", "There is no such state.", f"Allowed are {allowed}.")
        start = _parse_before(before)
        if before and start is None:
            return problem(request, 422, "Studies", "This isn't a page of the list.")
        wanted = Filter(state, sender.strip()[:16], uid.strip()[:64], start)
        page = list_studies(engine, wanted)
        shown = {"state": wanted.state, "sender": wanted.sender, "uid": wanted.uid}
        shown = {name: value for name, value in shown.items() if value}
        following = None
        if page.next is not None:
            following = "/studies?" + urlencode(shown | {"before": f"{page.next[0]!r}~{page.next[1]}"})
        return render(
            "studies.html",
            request,
            page=page,
            wanted=wanted,
            now=time.time(),
            series_states=SERIES_STATES,
            job_states=JOB_STATES,
            first="/studies" + (f"?{urlencode(shown)}" if shown else ""),
            following=following,
        )

    return router


def _parse_before(text: str) -> tuple[float, str] | None:
    when, _, uid = text.partition("~")
    try:
        return float(when), uid[:64]
    except ValueError:
        return None


def study_routes(engine: Engine, data_dir: Path, accessed: Accessed = lambda *_: None) -> APIRouter:
    """The routes of single studies. accessed: told of who saw a patient's name."""
    router = APIRouter()
    actions: dict[str, Callable[[str, str], str]] = {
        "retry": lambda job_id, _user: retry_job(engine, job_id),
        "cancel": lambda job_id, user: cancel_job(engine, job_id, user),
    }

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
            return problem(request, 404, "Study", f"Nothing of study {uid} was received.")
        return render("study.html", request, study=study)

    @router.get("/studies/{uid}/patient")
    def patient(uid: str, request: Request) -> Response:
        identity = patient_of(engine, data_dir, uid)
        if identity is None:
            return problem(request, 404, "Patient of a study", f"No instance of study {uid} is here.")
        user, address = request.scope["principal"].user, request.client.host if request.client else ""
        accessed(user, address, uid)
        log.info("patient_shown", study_instance_uid=uid, user=user)
        return render("patient.html", request, uid=uid, identity=identity)

    @router.get("/studies/{uid}/jobs/{job_id}/pictures/{number}")
    def shown(uid: str, job_id: str, number: int) -> Response:
        png = picture(engine, data_dir, uid, job_id, number)
        if png is None:
            return JSONResponse({"error": "there is no such picture"}, 404)
        return Response(png, media_type="image/png", headers={"Cache-Control": "private, max-age=60"})

    @router.post("/studies/{uid}/jobs/{job_id}/{action}")
    def ask(uid: str, job_id: str, action: str, request: Request) -> Response:
        if action not in actions:
            return JSONResponse({"error": f"{action!r} can't be asked; retry and cancel can"}, 404)
        user = request.scope["principal"].user
        try:
            actions[action](job_id, user)
        except (JobNotFound, JobStateConflict) as error:
            return problem(request, 409, "Study", str(error), error.hint)
        log.info("job_asked", what=action, job_id=job_id, user=user)
        return RedirectResponse(f"/studies/{quote(uid)}", 303)

    return router
