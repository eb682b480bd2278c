"""GET /events, ?study=: tells a page that what it shows has changed (server-sent events, WHATWG HTML 9.2).

In: the database and the conditions of what runs here, looked at once a second while anybody listens.  Out:
the event ``changed``, upon which the page reads itself again; ``ended``, when who listens isn't known any
more. Nothing else is said, so that an event shows nothing that the page wouldn't.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from sqlalchemy import Engine, Select, func, select
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from node.database import deliveries, jobs, refusals, series
from node.web.studies import count_states

#: pages that listen, of everybody and of one user
MOST_STREAMS, MOST_OF_ONE = 64, 16
LOOK_SECONDS = 1.0
#: the end of the node or of a session is noticed so soon
TICK_SECONDS = 0.25
#: proxies end a connection that is silent for long
ALIVE_SECONDS = 15.0

_RETRY, _CHANGED = b"retry: 3000\n\n", b"event: changed\ndata:\n\n"
_ENDED, _ALIVE = b"event: ended\ndata:\n\n", b":\n\n"


class Pulse:
    """What pages show, as a word that changes when it does."""

    def __init__(self, engine: Engine, conditions: Callable[[], object]) -> None:
        """conditions: of checks and destinations; anything that has a text."""
        self._engine = engine
        self._conditions = conditions
        self._lock = threading.Lock()
        self._looked_at = 0.0
        self._word = ""

    def of_all(self) -> str:
        """Looks at most once in LOOK_SECONDS, however many ask."""
        with self._lock:
            if time.monotonic() - self._looked_at >= LOOK_SECONDS:
                newest = select(
                    select(func.max(series.c.last_instance_at)).scalar_subquery(),
                    select(func.max(jobs.c.created_at)).scalar_subquery(),
                    select(func.max(deliveries.c.updated_at)).scalar_subquery(),
                    select(func.max(refusals.c.last_at)).scalar_subquery(),
                )
                self._word = _word(self._rows(newest), count_states(self._engine), self._conditions())
                self._looked_at = time.monotonic()
            return self._word

    def of_study(self, study_instance_uid: str) -> str:
        its_series = select(
            series.c.series_instance_uid,
            series.c.version,
            series.c.state,
            series.c.instance_count,
            series.c.last_instance_at,
        ).where(series.c.study_instance_uid == study_instance_uid)
        its_jobs = (
            select(
                *(jobs.c.job_id, jobs.c.state, jobs.c.generation, jobs.c.started_at, jobs.c.result_dir),
                *(
                    deliveries.c.destination,
                    deliveries.c.state,
                    deliveries.c.attempts,
                    deliveries.c.updated_at,
                ),
            )
            .select_from(jobs.outerjoin(deliveries, deliveries.c.job_id == jobs.c.job_id))
            .where(jobs.c.study_instance_uid == study_instance_uid)
        )
        return _word(self._rows(its_series), self._rows(its_jobs))

    def _rows(self, query: Select[Any]) -> list[tuple[Any, ...]]:
        with self._engine.connect() as connection:
            return sorted((tuple(row) for row in connection.execute(query)), key=repr)


def _word(*shown: object) -> str:
    return hashlib.sha256(repr(shown).encode()).hexdigest()


class Streams:
    """Counts those that listen."""

    def __init__(self) -> None:
        self._of: Counter[str] = Counter()

    def begin(self, user: str) -> bool:
        """False when there are too many."""
        if self._of.total() >= MOST_STREAMS or self._of[user] >= MOST_OF_ONE:
            return False
        self._of[user] += 1
        return True

    def end(self, user: str) -> None:
        self._of[user] -= 1
        if not self._of[user]:
            del self._of[user]


def event_routes(pulse: Pulse, stopping: threading.Event) -> APIRouter:
    """The route of events. stopping: when it is set, streams end."""
    router = APIRouter()
    streams = Streams()

    @router.get("/events")
    async def events(request: Request, study: str = "") -> Response:
        user = request.scope["principal"].user
        if not streams.begin(user):
            busy = {"error": "too many pages listen; this one shows what was when it was opened"}
            return JSONResponse(busy, 503, {"Retry-After": "60"})
        look = (lambda: pulse.of_study(study[:64])) if study else pulse.of_all
        return StreamingResponse(
            _counted(_changes(look, request.scope["still_known"], stopping), lambda: streams.end(user)),
            media_type="text/event-stream",
        )

    return router


async def _counted(events: AsyncIterator[bytes], end: Callable[[], None]) -> AsyncIterator[bytes]:
    try:
        async for event in events:
            yield event
    finally:  # also when the browser has gone
        end()


async def _changes(
    look: Callable[[], str], still_known: Callable[[], bool], stopping: threading.Event
) -> AsyncIterator[bytes]:
    seen = await _looked(look, "")
    yield _RETRY  # from here on, nothing is missed; a page reads itself again when it hears this
    looked_at = said_at = time.monotonic()
    while not stopping.is_set():
        await asyncio.sleep(TICK_SECONDS)
        now = time.monotonic()
        if not still_known():
            yield _ENDED
            return
        if now - looked_at >= LOOK_SECONDS:
            looked_at = now
            word = await _looked(look, seen)
            if word != seen:
                seen, said_at = word, now
                yield _CHANGED
        if now - said_at >= ALIVE_SECONDS:
            said_at = now
            yield _ALIVE


async def _looked(look: Callable[[], str], otherwise: str) -> str:
    try:
        return await run_in_threadpool(look)
    except SQLAlchemyError:  # the database is away: the page's own check says so
        return otherwise
