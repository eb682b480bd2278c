"""The list of studies: what came in newest, filtered, a page at a time.

In: the database and a filter.  Out: one ``Row`` a study: its state, and in a sentence why.

Every query begins at an index and ends after a page, however many studies there are: a filter by what became
of jobs reads the jobs of that state, newest first; any other reads series, newest first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Select, and_, exists, func, or_, select

from node.database import jobs, refusals, series
from node.run.operations import with_deliveries
from node.web.study import Tone, state_of, verdict

PAGE_SIZE = 50
#: what a filter can ask for: how series, and how jobs are
SERIES_STATES = ("open", "complete", "unmatched")
JOB_STATES = ("queued", "retry", "running", "delivering", "done", "failed", "cancelled")
#: so many rows are looked at for one page of studies; a study may have several in it
_ROWS_AT_ONCE = 200
#: what stands for a study of several series: a scout that no route wants says less than the results of the CT
_TONES: tuple[Tone, ...] = ("bad", "busy", "good", "warn")


@dataclass(frozen=True)
class Filter:
    """state: one of SERIES_STATES or JOB_STATES, or "" for all.  sender: a calling AE title.  uid: of a
    study or series.  before: only what is older than this row, by ``Page.next``."""

    state: str = ""
    sender: str = ""
    uid: str = ""
    before: tuple[float, str] | None = None


@dataclass(frozen=True)
class Row:
    """One study. at: when its newest instance came, or its newest job of the state asked for began."""

    study_instance_uid: str
    at: float
    senders: tuple[str, ...]
    instances: int
    state: str
    tone: Tone
    sentence: str


@dataclass(frozen=True)
class Page:
    """next: where the next page begins, None on the last."""

    rows: tuple[Row, ...]
    next: tuple[float, str] | None = None


@dataclass(frozen=True)
class Counts:
    """How many series and jobs are in each state."""

    series: dict[str, int] = field(default_factory=dict)
    jobs: dict[str, int] = field(default_factory=dict)


def list_studies(engine: Engine, wanted: Filter, size: int = PAGE_SIZE) -> Page:
    """The newest studies first."""
    with engine.connect() as connection:
        found = _newest(connection, wanted, size + 1)
        shown = found[:size]
        rows = _described(connection, shown)
    following = (shown[-1][1], shown[-1][0]) if len(found) > size else None
    return Page(tuple(rows), following)


def count_states(engine: Engine) -> Counts:
    """From the indexes alone."""
    with engine.connect() as connection:
        by_table = [
            {
                str(row[0]): int(row[1])
                for row in connection.execute(select(table.c.state, func.count()).group_by(table.c.state))
            }
            for table in (series, jobs)
        ]
    return Counts(*by_table)


def list_refusals(engine: Engine, limit: int, *, sender: str = "") -> list[dict[str, Any]]:
    """What was turned away, the newest first. sender: of this calling AE title only."""
    query = select(refusals).order_by(refusals.c.last_at.desc()).limit(limit)
    if sender:
        query = query.where(refusals.c.calling_ae_title == sender)
    with engine.connect() as connection:
        return [dict(row._mapping) for row in connection.execute(query)]


def _newest(connection: Connection, wanted: Filter, size: int) -> list[tuple[str, float]]:
    """(study, at) of so many studies, each once."""
    of_jobs = wanted.state in JOB_STATES
    table, at = (jobs, jobs.c.created_at) if of_jobs else (series, series.c.last_instance_at)
    study = table.c.study_instance_uid
    conditions = _conditions(wanted, of_jobs=of_jobs)
    found: dict[str, float] = {}
    before = wanted.before
    while len(found) < size:
        query: Select[Any] = select(study, at).where(*conditions)
        if before is not None:
            query = query.where(at <= before[0], or_(at < before[0], study < before[1]))
        rows = connection.execute(query.order_by(at.desc(), study.desc()).limit(_ROWS_AT_ONCE)).all()
        batch: dict[str, float] = {}
        for uid, when in rows:
            if uid not in found:
                batch.setdefault(uid, when)
        if wanted.before is not None and batch:  # an earlier page has those of which something newer matches
            newest = select(study, func.max(at)).where(study.in_(batch), *conditions).group_by(study)
            shown = {row[0] for row in connection.execute(newest) if row[1] > batch[row[0]]}
            batch = {uid: when for uid, when in batch.items() if uid not in shown}
        found |= batch
        if len(rows) < _ROWS_AT_ONCE:
            break
        before = (rows[-1][1], rows[-1][0])
    return list(found.items())[:size]


def _conditions(wanted: Filter, *, of_jobs: bool) -> list[ColumnElement[bool]]:
    table = jobs if of_jobs else series
    conditions: list[ColumnElement[bool]] = []
    if wanted.uid:
        conditions.append(
            or_(table.c.study_instance_uid == wanted.uid, table.c.series_instance_uid == wanted.uid)
        )
    its_jobs = and_(
        jobs.c.series_instance_uid == series.c.series_instance_uid,
        jobs.c.series_version == series.c.version,
    )
    if wanted.sender:
        sent = series.c.calling_ae_title == wanted.sender
        conditions.append(exists().where(its_jobs, sent) if of_jobs else sent)
    if wanted.state == "unmatched":
        conditions.append(series.c.reason_code != "none")
    elif wanted.state:
        conditions.append(table.c.state == wanted.state)
    return conditions


def _described(connection: Connection, shown: Sequence[tuple[str, float]]) -> list[Row]:
    uids = [uid for uid, _ in shown]
    versions = _by_study(connection, select(series).where(series.c.study_instance_uid.in_(uids)))
    its_jobs = _by_study(connection, select(jobs).where(jobs.c.study_instance_uid.in_(uids)))
    with_deliveries(connection, [job for of_study in its_jobs.values() for job in of_study])
    return [_row(uid, at, versions.get(uid, []), its_jobs.get(uid, [])) for uid, at in shown]


def _by_study(connection: Connection, query: Select[Any]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in connection.execute(query):
        found.setdefault(row.study_instance_uid, []).append(dict(row._mapping))
    return found


def _row(uid: str, at: float, versions: Iterable[dict[str, Any]], its_jobs: Sequence[dict[str, Any]]) -> Row:
    """One of its series stands for the study, by ``_TONES``; of two alike, the newest."""
    best: tuple[int, float, str, Tone, str] | None = None
    senders, instances = set(), 0
    for version in versions:
        of_version = [
            job
            for job in its_jobs
            if (job["series_instance_uid"], job["series_version"])
            == (version["series_instance_uid"], version["version"])
        ]
        said = verdict(version, of_version)
        senders.add(version["calling_ae_title"])
        instances += version["instance_count"]
        key = (_TONES.index(said.tone), -version["last_instance_at"])
        if best is None or key < best[:2]:
            best = (*key, state_of(version, of_version), said.tone, said.sentence)
    _, _, state, tone, sentence = best or (0, 0.0, "unknown", "warn", "")
    return Row(uid, at, tuple(sorted(senders)), instances, state, tone, sentence)
