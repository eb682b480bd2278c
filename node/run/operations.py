"""What ops ask of jobs, through the database alone, so that it works beside a running node and without one.

A retry is a request: the job goes to state ``retry``, and the node's ``AskedWatch`` enqueues it as a new
generation. Results that were already made are delivered again, not made again.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import structlog
from sqlalchemy import Connection, Engine, Row, delete, func, select, update

from node.database import cancellations, deliveries, insert_if_new, jobs, series, shadows, write_transaction
from node.errors import NodeError
from node.postgres import hold_series
from node.reasons import Kind, worded
from node.watch import Watch

log = structlog.get_logger(__name__)

POLL_SECONDS = 1.0
CANCELLED = "cancelled"
#: characters of a job's id, at most
_LONGEST_ID = 64


class JobNotFound(NodeError):
    """No job's id begins so, or several do."""

    code = "job_not_found"


class JobStateConflict(NodeError):
    """The job's state doesn't allow what was asked."""

    code = "job_state"


def list_jobs(engine: Engine, *, state: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
    """The newest jobs first, as rows of the ``jobs`` table, each with its ``deliveries``."""
    query = select(jobs).order_by(jobs.c.created_at.desc()).limit(limit)
    if state is not None:
        query = query.where(jobs.c.state == state)
    with engine.connect() as connection:
        return with_deliveries(connection, [dict(row._mapping) for row in connection.execute(query)])


def show_job(engine: Engine, prefix: str) -> dict[str, Any]:
    """One job with its deliveries; ``prefix`` is the beginning of its id. Raises JobNotFound."""
    with engine.connect() as connection:
        job = with_deliveries(connection, [dict(_find(connection, prefix)._mapping)])[0]
        of_job = select(shadows).where(shadows.c.job_id == job["job_id"]).order_by(shadows.c.candidate)
        return job | {"shadows": [dict(row._mapping) for row in connection.execute(of_job)]}


def with_deliveries(connection: Connection, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same jobs, each with its ``deliveries``."""
    by_job: dict[str, list[dict[str, Any]]] = {job["job_id"]: [] for job in found}
    query = select(deliveries).where(deliveries.c.job_id.in_(by_job)).order_by(deliveries.c.destination)
    for row in connection.execute(query):
        by_job[row.job_id].append(dict(row._mapping))
    for job in found:
        job["deliveries"] = by_job[job["job_id"]]
    return found


def retry_job(engine: Engine, prefix: str) -> str:
    """Ask for a failed, cancelled or done job again; returns its id."""
    values = {"state": "retry", "finished_at": None, "reason_code": None, "reason": None}
    with write_transaction(engine) as connection:
        found = _find(connection, prefix)
        hold_series(connection, [found.series_instance_uid])  # it isn't purged meanwhile
        _check_input(connection, found)
        job_id = _move(connection, prefix, "retry", ("failed", "cancelled", "done"), values)
        connection.execute(delete(deliveries).where(deliveries.c.job_id == job_id))
    return job_id


def begin_again(engine: Engine, job_id: str, generation: int | None = None) -> bool:
    """Let a job that hasn't ended begin again as a new generation, because its workflow can't go on; what it
    made and delivered is kept. False if it has ended, or isn't of this ``generation`` any more."""
    active = [jobs.c.job_id == job_id, jobs.c.state.in_(("queued", "running", "delivering"))]
    if generation is not None:
        active.append(jobs.c.generation == generation)
    again = {"state": "queued", "generation": jobs.c.generation + 1}
    with write_transaction(engine) as connection:
        return connection.execute(update(jobs).where(*active).values(again)).rowcount == 1


def _check_input(connection: Connection, job: Row[Any]) -> None:
    purged_at = select(series.c.purged_at).where(
        series.c.series_instance_uid == job.series_instance_uid, series.c.version == job.series_version
    )
    if connection.execute(purged_at).scalar_one_or_none() is not None:
        raise JobStateConflict(
            f"job {job.job_id}: its series and results were deleted when their retention had passed",
            hint="send the series again",
        )


def cancel_job(engine: Engine, prefix: str, by: str) -> str:
    """Cancel a job that hasn't ended: its next step does nothing; returns its id. by: who asks for it."""
    why = {"reason_code": CANCELLED, "reason": f"{by} asked for it"}
    with write_transaction(engine) as connection:
        job_id = _move(
            connection,
            prefix,
            "cancel",
            ("queued", "retry", "running", "delivering"),
            {"state": "cancelled", "finished_at": time.time(), **why},
        )
        insert_if_new(connection, cancellations, {"job_id": job_id, "reason": why["reason"]})
    return job_id


def _move(
    connection: Connection, prefix: str, verb: str, allowed: tuple[str, ...], values: dict[str, Any]
) -> str:
    """Change the state of the one job with this prefix, judged and changed in one transaction."""
    job = _find(connection, prefix)
    if job.state not in allowed:
        raise JobStateConflict(
            f"job {job.job_id} is {job.state}; {verb} is for jobs that are {', '.join(allowed)}"
        )
    connection.execute(update(jobs).where(jobs.c.job_id == job.job_id).values(**values))
    return str(job.job_id)


def _find(connection: Connection, prefix: str) -> Row[Any]:
    # ids are letters and digits, and an index finds what lies between two; LIKE would look at all
    between = jobs.c.job_id.between(prefix, prefix + "z" * _LONGEST_ID)
    begins = jobs.c.job_id.startswith(prefix, autoescape=True)
    found = connection.execute(select(jobs).where(between, begins)).all()
    if len(found) != 1:
        raise JobNotFound(
            f"{len(found) or 'no'} jobs have an id that begins with {prefix!r}",
            hint="see `pacsnode jobs list`; more of the id tells jobs apart",
        )
    return found[0]


def shadow_summary(engine: Engine, *, limit: int = 1000) -> list[dict[str, Any]]:
    """Of each candidate, how its runs ended, and how far the newest ``limit`` agree with what is live.

    equal_case_types: a share. dice: segment -> median and least. noisy_or: type -> median and largest
    absolute difference.
    """
    with engine.connect() as connection:
        counts = select(shadows.c.candidate, shadows.c.state, func.count()).group_by(
            shadows.c.candidate, shadows.c.state
        )
        states: dict[str, dict[str, int]] = {}
        for candidate, state, count in connection.execute(counts):
            states.setdefault(candidate, {})[state] = count
        return [
            {"candidate": name, "runs": runs, **_agreement(connection, name, limit)}
            for name, runs in sorted(states.items())
        ]


def _agreement(connection: Connection, candidate: str, limit: int) -> dict[str, Any]:
    newest = (
        select(shadows.c.agreement)
        .where(shadows.c.candidate == candidate, shadows.c.state == "done")
        .order_by(shadows.c.finished_at.desc())
        .limit(limit)
    )
    found = [row.agreement for row in connection.execute(newest)]
    dice: dict[str, list[float]] = {}
    noisy_or: dict[str, list[float]] = {}
    for one in found:
        for segment, value in one["dice"].items():
            dice.setdefault(segment, []).append(value)
        for name, probability in one["noisy_or"].items():
            noisy_or.setdefault(name, []).append(abs(probability["difference"]))
    return {
        "compared": len(found),
        "equal_case_types": statistics.mean(one["case_type"]["equal"] for one in found) if found else None,
        "dice": {n: {"median": statistics.median(v), "least": min(v)} for n, v in sorted(dice.items())},
        "noisy_or": {
            n: {"median": statistics.median(v), "largest": max(v)} for n, v in sorted(noisy_or.items())
        },
    }


class AskedWatch(Watch):
    """What ops asked for: hands jobs in state ``retry`` to the engine; counts and logs those cancelled, in
    whichever process, once."""

    def __init__(
        self,
        engine: Engine,
        enqueue: Callable[[str], object],
        count_cancelled: Callable[[str, str], object] = lambda _pipeline, _code: None,
    ) -> None:
        super().__init__("asked-watch", POLL_SECONDS)
        self._engine = engine
        self._enqueue = enqueue
        self._count_cancelled = count_cancelled

    def look(self) -> None:
        self._retry()
        self._tell_cancelled()

    def _tell_cancelled(self) -> None:
        columns = (cancellations, jobs.c.pipeline)
        query = select(*columns).join(jobs, jobs.c.job_id == cancellations.c.job_id)
        with self._engine.connect() as connection:
            found = connection.execute(query).all()
        for row in found:
            this = cancellations.c.job_id == row.job_id
            with write_transaction(self._engine) as connection:
                ours = connection.execute(delete(cancellations).where(this)).rowcount
            if not ours:  # another node's
                continue
            why = worded(Kind.ENDED, CANCELLED, row.reason)
            self._count_cancelled(row.pipeline, why.code)
            log.warning("job_cancelled", job_id=row.job_id, code=why.code, reason=why.sentence)

    def _retry(self) -> None:
        for job in list_jobs(self._engine, state="retry", limit=1000):
            with write_transaction(self._engine) as connection:
                moved = connection.execute(
                    update(jobs)
                    .where(jobs.c.job_id == job["job_id"], jobs.c.state == "retry")
                    .values(state="queued", generation=jobs.c.generation + 1)
                )
            if moved.rowcount:  # else it was cancelled meanwhile
                log.info("job_retry_requested", job_id=job["job_id"])
                self._enqueue(job["job_id"])
