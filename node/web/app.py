"""Health, metrics and the web pages.

In: the database, the metrics, named readiness checks, and what else runs here. Out: HTTP on one port.

    /healthz      200 while the process answers
    /readyz       200 when every check passes, else 503; to those we know, with the failing checks and why
    /metrics      Prometheus text
    /             overview: readiness, counts, the newest series and jobs with reasons, quarantine
    /studies      the list, and below it each study's life, and what can be asked there (``study_page``)
    /destinations /models /routes   how they are, and what can be asked (their ``…_page``)
    /upload       files by phone (``upload_page``); /dicom-web/studies: STOW-RS (``stow_page``)
    /events       tells pages when to look again (``events``)
    /api/series   the newest series versions, ``?limit=`` up to 1000
    /api/jobs     the newest jobs, ``?limit=`` up to 1000; one of them: ``job_api``
    /api/refused  what was turned away, newest first
    /login        and /logout (``login``, ``single_sign_on``); who may ask for what else: ``access``

UIDs and coded values only, no patient data, except where ``study_page`` says so.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import structlog
import uvicorn
from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from sqlalchemy import Engine, Select, select
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp

from node import __version__
from node.config import WebConfig
from node.database import IS_QUARANTINED, instances, series, write_transaction
from node.errors import NodeError, SpoolError
from node.listening import listen
from node.metrics import Metrics
from node.run.operations import list_jobs
from node.tcp import send_at_once
from node.web.access import Access
from node.web.destinations_page import destination_routes
from node.web.events import Pulse, event_routes
from node.web.intake import IntakeGate, refused
from node.web.job_api import job_routes
from node.web.login import Audited, Login
from node.web.models_page import model_routes
from node.web.multipart import BadBody
from node.web.now import count_waiting, measure
from node.web.oidc import Provider
from node.web.pages import CONTENT_SECURITY_POLICY, render, static_routes
from node.web.routes_page import route_routes
from node.web.sessions import LoginLimit, Sessions
from node.web.single_sign_on import SingleSignOn
from node.web.sources import Sources
from node.web.stow_page import stow_routes
from node.web.studies import JOB_STATES, SERIES_STATES, count_states, list_refusals
from node.web.study_page import study_list_routes, study_routes
from node.web.upload_page import upload_routes
from node.web.uploads import UploadLinks
from node.web.users import UsersFile

log = structlog.get_logger("node.web")

#: Says why something isn't ready, or None when it is.
Check = Callable[[], str | None]

_Limit = Annotated[int, Query(ge=1, le=1000)]


def database_writable(engine: Engine) -> Check:
    """A readiness check: the database's write lock can be taken."""

    def check() -> str | None:
        try:
            with write_transaction(engine):
                return None
        except SQLAlchemyError as error:
            return f"the database can't be written: {type(error).__name__}"

    return check


def create_app(
    engine: Engine,
    metrics: Metrics,
    checks: Mapping[str, Check],
    more_metrics: Callable[[], bytes] = lambda: b"",
    *,
    sources: Sources = Sources(),  # noqa: B008 - frozen
    config: WebConfig | None = None,
    audited: Audited = lambda *_: None,
) -> ASGIApp:
    """The ASGI application, with who may ask it for what around it.

    checks: readiness checks by name, besides the database's own.  more_metrics: another process's, as text.
    audited: logins and logouts.
    Raises ConfigError for a users file, or files of ``oidc``, that can't be used.
    """
    config = config or WebConfig()
    users, sessions = UsersFile(config.users), Sessions(config.session_hours * 3600)
    limit = LoginLimit()
    all_checks: dict[str, Check] = {"database": database_writable(engine), **checks}
    app = FastAPI(title="PACS inference node", docs_url=None, redoc_url=None, version=__version__)
    app.include_router(_health(engine, metrics, all_checks, more_metrics, sources))
    app.include_router(_overview(engine, all_checks, sources))
    app.include_router(static_routes())
    app.include_router(event_routes(_pulse(engine, all_checks, sources), sources.stopping))
    app.include_router(Login(users, sessions, limit, audited, config).router)
    if config.oidc is not None:
        provider = Provider(config.oidc, config.redirect_uri)
        app.include_router(SingleSignOn(provider, config, sessions, limit, audited).router)
    app.include_router(job_routes(engine))
    app.include_router(study_list_routes(engine))
    app.include_router(destination_routes(engine, sources.gates))
    app.include_router(model_routes(engine, sources.models))
    for error in (BadBody, SpoolError):
        app.add_exception_handler(error, refused)
    gate = IntakeGate(sources)
    app.include_router(route_routes(sources, gate))
    app.include_router(stow_routes(sources, gate, config.max_upload_bytes))
    links = UploadLinks(config.upload_minutes * 60, sources.handing)
    app.include_router(upload_routes(engine, sources, gate, links, config))
    if sources.data_dir is not None:
        app.include_router(study_routes(engine, sources.data_dir, sources.accessed))
    return Access(app, users, sessions, open_loopback=config.open_loopback, policy=CONTENT_SECURITY_POLICY)


def _pulse(engine: Engine, checks: Mapping[str, Check], sources: Sources) -> Pulse:
    def conditions() -> object:
        others = {name: check for name, check in checks.items() if name != "database"}  # it takes a lock
        running = sources.reloading.running.version if sources.reloading is not None else ""
        return [gate.condition for gate in sources.gates().values()], failing_of(others), running

    return Pulse(engine, conditions)


def failing_of(checks: Mapping[str, Check]) -> dict[str, str]:
    """Those that fail, with the reason."""
    return {name: reason for name, check in checks.items() if (reason := check()) is not None}


def _health(
    engine: Engine,
    metrics: Metrics,
    checks: Mapping[str, Check],
    more_metrics: Callable[[], bytes],
    sources: Sources,
) -> APIRouter:
    router = APIRouter()

    @router.get("/healthz")
    def healthz() -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    @router.get("/readyz")
    def readyz(request: Request) -> JSONResponse:
        failing = failing_of(checks)
        body: dict[str, Any] = {"ready": not failing}
        if request.scope["principal"] is not None:  # reasons may name hosts and files
            body |= {"checks": sorted(checks), "failing": failing}
        return JSONResponse(body, status_code=503 if failing else 200)

    @router.get("/metrics")
    def metrics_text() -> Response:
        measure(engine, metrics, sources.gates())
        return Response(
            metrics.expose() + more_metrics(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    return router


def _overview(engine: Engine, checks: Mapping[str, Check], sources: Sources) -> APIRouter:
    router = APIRouter()

    @router.get("/api/series")
    def api_series(limit: _Limit = 100) -> list[dict[str, Any]]:
        return list_series(engine, limit)

    @router.get("/api/jobs")
    def api_jobs(limit: _Limit = 100) -> list[dict[str, Any]]:
        return list_jobs(engine, limit=limit)

    @router.get("/api/refused")
    def api_refused(limit: _Limit = 100) -> list[dict[str, Any]]:
        return list_refusals(engine, limit)

    @router.get("/")
    def page(request: Request) -> Response:
        reloading = sources.reloading
        return render(
            "overview.html",
            request,
            failing=failing_of(checks),
            checks=sorted(checks),
            counts=count_states(engine),
            series_states=SERIES_STATES,
            job_states=JOB_STATES,
            series=list_series(engine, 20),
            jobs=list_jobs(engine, limit=20),
            quarantined=list_quarantined(engine, 20),
            refused=list_refusals(engine, 20),
            destinations=[gate.condition for gate in sources.gates().values()],
            waiting=count_waiting(engine),
            running=reloading.running.version if reloading is not None else "",
            now=time.time(),
        )

    return router


def list_series(engine: Engine, limit: int) -> list[dict[str, Any]]:
    """The newest series versions first."""
    return _rows(engine, select(series).order_by(series.c.last_instance_at.desc()).limit(limit))


def list_quarantined(engine: Engine, limit: int) -> list[dict[str, Any]]:
    """The newest quarantined instances first."""
    columns = (
        instances.c.sop_class_uid,
        instances.c.study_instance_uid,
        instances.c.path,
        instances.c.bytes,
        instances.c.calling_ae_title,
        instances.c.reason_code,
        instances.c.reason,
        instances.c.received_at,
    )
    quarantined = select(*columns).where(IS_QUARANTINED)
    return _rows(engine, quarantined.order_by(instances.c.received_at.desc()).limit(limit))


def _rows(engine: Engine, query: Select[Any]) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        return [dict(row._mapping) for row in connection.execute(query)]


class WebStartError(NodeError):
    """The web server's address can't be bound."""

    code = "web_start_failed"


class WebServer:
    """Serves an application by uvicorn in a thread of its own."""

    def __init__(self, config: WebConfig, app: ASGIApp) -> None:
        self._config = config
        self._server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=3)
        )
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The TCP port that is served; tells which was chosen for port 0."""
        if self._socket is None:
            raise RuntimeError("the web server isn't started")
        return int(self._socket.getsockname()[1])

    def start(self) -> None:
        """Bind and serve. Raises WebStartError when the address can't be bound."""
        host, port = self._config.host, self._config.port
        try:
            self._socket = listen(host, port)
        except OSError as error:
            raise WebStartError(
                f"web {host}:{port}: {error.strerror or error}",
                hint="is the port in use, is the address ours?",
            ) from error
        send_at_once(self._socket)  # which its connections inherit
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="web", daemon=True
        )
        self._thread.start()
        log.info("web_listening", host=self._config.host, port=self.port)

    def stop(self) -> None:
        """Answer what is under way, then stop."""
        if self._thread is None or self._socket is None:
            return
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
        self._thread = None
        log.info("web_stopped")
