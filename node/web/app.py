"""Health, metrics and the ops page.

In: the database, the metrics, and named readiness checks. Out: HTTP on one port.

    /healthz      200 while the process answers
    /readyz       200 when every check passes, else 503; to those we know, with the failing checks and why
    /metrics      Prometheus text
    /             ops page: series, jobs and reasons (no patient data: UIDs and coded values only)
    /api/series   the newest series versions, ``?limit=`` up to 1000
    /api/jobs     the newest jobs, ``?limit=`` up to 1000; one of them: ``job_api``
    /api/destinations   how destinations do: circuit breaker, last error, deliveries that wait
    /studies/…    one study's life, and what can be asked there (``study_page``)
    /login        and /logout (``login``); who may ask for what else: ``access``
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import structlog
import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from sqlalchemy import Connection, Engine, Select, Table, func, literal, select, union_all
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp

from node.config import WebConfig
from node.database import IS_QUARANTINED, deliveries, instances, jobs, series, write_transaction
from node.deliver.gate import Condition
from node.errors import NodeError
from node.metrics import Metrics
from node.run.delivering import UNSETTLED
from node.run.operations import list_jobs
from node.web.access import Access
from node.web.job_api import job_routes
from node.web.login import Audited, Login
from node.web.page import CONTENT_SECURITY_POLICY, render_page
from node.web.sessions import Sessions
from node.web.study_page import study_routes
from node.web.users import UsersFile

log = structlog.get_logger("node.web")

#: Says why something isn't ready, or None when it is.
Check = Callable[[], str | None]

#: the first is the one that most end in
_SERIES_STATES = ("routed", "open", "complete")
_JOB_STATES = ("done", "queued", "retry", "running", "delivering", "failed", "cancelled")
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
    destinations: Callable[[], Sequence[Condition]] = lambda: (),
    config: WebConfig | None = None,
    data_dir: Path | None = None,
    audited: Audited = lambda *_: None,
) -> ASGIApp:
    """The ASGI application, with who may ask it for what around it.

    checks: readiness checks by name, besides the database's own.  more_metrics: another process's, as text.
    destinations: how they do.  data_dir: where results are, for the studies' pages.
    audited: logins and logouts.
    Raises ConfigError for a users file that can't be used.
    """
    config = config or WebConfig()
    users, sessions = UsersFile(config.users), Sessions(config.session_hours * 3600)
    app = _pages(engine, metrics, checks, more_metrics, destinations)
    app.include_router(Login(users, sessions, audited).router)
    app.include_router(job_routes(engine))
    if data_dir is not None:
        app.include_router(study_routes(engine, data_dir))
    return Access(app, users, sessions, open_loopback=config.open_loopback, policy=CONTENT_SECURITY_POLICY)


def _pages(
    engine: Engine,
    metrics: Metrics,
    checks: Mapping[str, Check],
    more_metrics: Callable[[], bytes],
    destinations: Callable[[], Sequence[Condition]],
) -> FastAPI:
    app = FastAPI(title="PACS inference node", docs_url=None, redoc_url=None, openapi_url=None)
    all_checks: dict[str, Check] = {"database": database_writable(engine), **checks}

    @app.get("/healthz")
    def healthz() -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    @app.get("/readyz")
    def readyz(request: Request) -> JSONResponse:
        failing = {name: reason for name, check in all_checks.items() if (reason := check()) is not None}
        body: dict[str, Any] = {"ready": not failing}
        if request.scope["principal"] is not None:  # reasons may name hosts and files
            body |= {"checks": sorted(all_checks), "failing": failing}
        return JSONResponse(body, status_code=503 if failing else 200)

    @app.get("/metrics")
    def metrics_text() -> Response:
        _measure_states(engine, metrics)
        return Response(
            metrics.expose() + more_metrics(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    @app.get("/api/series")
    def api_series(limit: _Limit = 100) -> list[dict[str, Any]]:
        return list_series(engine, limit)

    @app.get("/api/jobs")
    def api_jobs(limit: _Limit = 100) -> list[dict[str, Any]]:
        return list_jobs(engine, limit=limit)

    @app.get("/api/destinations")
    def api_destinations() -> list[dict[str, Any]]:
        waiting = count_waiting(engine)
        return [asdict(each) | {"waiting": waiting.get(each.name, 0)} for each in destinations()]

    @app.get("/", response_class=HTMLResponse)
    def page(request: Request) -> str:
        principal = request.scope["principal"]
        failing = {name: reason for name, check in all_checks.items() if (reason := check()) is not None}
        return render_page(
            failing=failing,
            series=list_series(engine, 50),
            jobs=list_jobs(engine, limit=50),
            quarantined=list_quarantined(engine, 20),
            destinations=destinations(),
            waiting=count_waiting(engine),
            now=time.time(),
            user=principal.user if principal.session is not None else None,
        )

    return app


def list_series(engine: Engine, limit: int) -> list[dict[str, Any]]:
    """The newest series versions first."""
    return _rows(engine, select(series).order_by(series.c.last_instance_at.desc()).limit(limit))


def list_quarantined(engine: Engine, limit: int) -> list[dict[str, Any]]:
    """The newest quarantined instances first."""
    columns = (
        instances.c.sop_class_uid,
        instances.c.path,
        instances.c.bytes,
        instances.c.calling_ae_title,
        instances.c.reason_code,
        instances.c.reason,
        instances.c.received_at,
    )
    quarantined = select(*columns).where(IS_QUARANTINED)
    return _rows(engine, quarantined.order_by(instances.c.received_at.desc()).limit(limit))


def count_waiting(engine: Engine) -> dict[str, int]:
    """Deliveries that aren't settled, by destination; those of jobs that were cancelled don't count."""
    query = (
        select(deliveries.c.destination, func.count())
        .join(jobs, jobs.c.job_id == deliveries.c.job_id)
        .where(jobs.c.state == "delivering", deliveries.c.state.in_(UNSETTLED))
        .group_by(deliveries.c.destination)
    )
    with engine.connect() as connection:
        return {row[0]: row[1] for row in connection.execute(query)}


def _rows(engine: Engine, query: Select[Any]) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        return [dict(row._mapping) for row in connection.execute(query)]


def _measure_states(engine: Engine, metrics: Metrics) -> None:
    """Read how many series and jobs are in each state; a gauge kept by hand would drift over a crash."""
    with engine.connect() as connection:
        for table, gauge, states in (
            (series, metrics.series, _SERIES_STATES),
            (jobs, metrics.jobs, _JOB_STATES),
        ):
            for name, count in _count_states(connection, table, states).items():
                gauge.labels(state=name).set(count)


def _count_states(connection: Connection, table: Table, states: Sequence[str]) -> dict[str, int]:
    """How many rows are in each state. In the first one is the rest: to count all rows is much faster than to
    tell them apart."""
    most, *others = states
    each = select(table.c.state, func.count()).where(table.c.state.in_(others)).group_by(table.c.state)
    every = select(literal(most), func.count()).select_from(table)
    counts = dict.fromkeys(states, 0)
    counts |= {row[0]: row[1] for row in connection.execute(union_all(every, each))}
    counts[most] -= sum(counts[name] for name in others)
    return counts


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
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            raise WebStartError(
                f"web {host}:{port}: {error.strerror or error}",
                hint="is the port in use, is the address ours?",
            ) from error
        # for the connections that it accepts: the second half of an answer would wait 40 ms for an ACK
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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
