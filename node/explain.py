"""``pacsnode explain``: what became of something, by the node's database.

In: a study, series, instance, job or sender, or the files of a folder.  Out: what is known of it, as data
(``to_json``) or plain text (``known_text``): whether there is a result, and why not, in the words of
``node.reasons``. Works beside a running node and without one; no patient data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Engine, select

from node.config import NodeConfig
from node.database import IS_QUARANTINED, instances, open_database, series
from node.errors import NodeError
from node.reasons import Reason, of_instance, of_refusal
from node.run.operations import JobNotFound, show_job
from node.web.studies import Filter, list_refusals, list_studies
from node.web.study import Quarantined, Series, Study, find_study

#: of a sender: studies, and instances in quarantine; the newest
_OF_SENDER = 20
_AT_ONCE = 500
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_JOB = re.compile(r"[0-9a-f]{4,64}")


class NothingKnown(NodeError):
    """The node's database has nothing of what was asked for."""

    code = "nothing_known"


@dataclass(frozen=True)
class TurnedAway:
    """Associations or instances of one sender, refused for one reason. Times: seconds since the epoch."""

    calling_ae_title: str
    host: str
    count: int
    first_at: float
    last_at: float
    reason: Reason


@dataclass(frozen=True)
class Known:
    """studies: with the series that were asked for.  quarantined: what isn't in them.  refused: of senders"""

    studies: tuple[Study, ...] = ()
    quarantined: tuple[Quarantined, ...] = ()
    refused: tuple[TurnedAway, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.studies or self.quarantined or self.refused)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "studies": [_study_json(study) for study in self.studies],
            "quarantined": [asdict(one) for one in self.quarantined],
            "refused": [asdict(one) for one in self.refused],
        }


def open_existing(config: NodeConfig) -> Engine | None:
    """The node's database, if there is one. Raises NodeError when it can't be opened."""
    if config.database.url is None and not (config.data_dir / "node.sqlite").exists():
        return None
    return open_database(config.data_dir, config.database)


def find(engine: Engine, data_dir: Path, what: str) -> Known:
    """what: the UID of a study, series or instance, the beginning of a job's id, or a calling AE title.

    Raises NothingKnown.
    """
    known = Known()
    if _UID.fullmatch(what):
        known = _of_uid(engine, data_dir, what)
    elif _JOB.fullmatch(what):
        known = _of_job(engine, data_dir, what)
    known = known or _of_sender(engine, data_dir, what)
    if not known:
        raise NothingKnown(
            f"nothing is known of {what!r}: no study, series, instance, job or sender",
            hint="was it sent to another node? `pacsnode explain --refused` lists what was turned away",
        )
    return known


def all_refused(engine: Engine) -> Known:
    """Everything that was turned away and is remembered, the newest first."""
    return Known(refused=_turned_away(list_refusals(engine, 1000)))


def find_files(engine: Engine, data_dir: Path, uids: Iterable[str], files: Mapping[Path, str]) -> Known:
    """uids: of the files' series.  files: with the SOP Instance UID of each, "" where it can't be read."""
    studies = [study for uid in uids for study in _of_series(engine, data_dir, uid)]
    kept: dict[str, Quarantined] = {}
    for some in _parts({uid for uid in files.values() if uid}):
        kept |= _quarantined(engine, instances.c.sop_instance_uid.in_(some))
    root = data_dir.resolve()
    inside = (path.resolve() for path in files)
    for some in _parts(str(path.relative_to(root)) for path in inside if path.is_relative_to(root)):
        kept |= _quarantined(engine, instances.c.path.in_(some))
    return Known(tuple(studies), tuple(kept.values()))


def _parts(names: Iterable[str]) -> Iterator[list[str]]:
    listed = sorted(names)
    for start in range(0, len(listed), _AT_ONCE):
        yield listed[start : start + _AT_ONCE]


def _of_uid(engine: Engine, data_dir: Path, uid: str) -> Known:
    study = find_study(engine, data_dir, uid)
    if study is not None:
        return Known((study,))
    of_series = _of_series(engine, data_dir, uid)
    if of_series:
        return Known(tuple(of_series))
    of_instance_ = instances.c.sop_instance_uid == uid
    with engine.connect() as connection:
        stored = select(instances.c.series_instance_uid).where(of_instance_, ~IS_QUARANTINED).distinct()
        its_series = [row[0] for row in connection.execute(stored) if row[0]]
    studies = [study for one in its_series for study in _of_series(engine, data_dir, one)]
    return Known(tuple(studies), tuple(_quarantined(engine, of_instance_).values()))


def _of_series(engine: Engine, data_dir: Path, uid: str) -> list[Study]:
    """Its study, with this series alone."""
    of_study = select(series.c.study_instance_uid).where(series.c.series_instance_uid == uid).distinct()
    with engine.connect() as connection:
        found = [find_study(engine, data_dir, row[0]) for row in connection.execute(of_study).all()]
    return [_only(study, lambda one: one.series_instance_uid == uid) for study in found if study is not None]


def _of_job(engine: Engine, data_dir: Path, prefix: str) -> Known:
    try:
        job = show_job(engine, prefix)
    except JobNotFound:
        return Known()
    study = find_study(engine, data_dir, job["study_instance_uid"])
    if study is None:
        return Known()
    its = (job["series_instance_uid"], job["series_version"])
    return Known((_only(study, lambda one: (one.series_instance_uid, one.version) == its),))


def _of_sender(engine: Engine, data_dir: Path, ae_title: str) -> Known:
    rows = list_studies(engine, Filter(sender=ae_title), _OF_SENDER).rows
    studies = [find_study(engine, data_dir, row.study_instance_uid) for row in rows]
    shown = {one.path for study in studies if study is not None for one in study.quarantined}
    kept = _quarantined(engine, instances.c.calling_ae_title == ae_title, limit=_OF_SENDER)
    return Known(
        tuple(study for study in studies if study is not None),
        tuple(one for path, one in kept.items() if path not in shown),
        _turned_away(list_refusals(engine, 1000, sender=ae_title)),
    )


def _only(study: Study, wanted: Callable[[Series], bool]) -> Study:
    return replace(study, series=tuple(filter(wanted, study.series)), quarantined=())


def _quarantined(
    engine: Engine, condition: ColumnElement[bool], *, limit: int | None = None
) -> dict[str, Quarantined]:
    """By path."""
    query = select(instances).where(IS_QUARANTINED, condition).order_by(instances.c.received_at.desc())
    with engine.connect() as connection:
        rows = connection.execute(query.limit(limit)).all()
    return {row.path: Quarantined(row.path, of_instance(dict(row._mapping))) for row in rows}


def _turned_away(rows: Sequence[Mapping[str, Any]]) -> tuple[TurnedAway, ...]:
    names = ("calling_ae_title", "host", "count", "first_at", "last_at")
    return tuple(TurnedAway(**{name: row[name] for name in names}, reason=of_refusal(row)) for row in rows)


def _study_json(study: Study) -> dict[str, Any]:
    return {
        "study_instance_uid": study.study_instance_uid,
        "series": [
            {
                "series_instance_uid": one.series_instance_uid,
                "version": one.version,
                "sentence": one.sentence,
                "reasons": [asdict(why) for why in one.reasons],
                "jobs": [{"job_id": job.job_id, "state": job.state} for job in one.jobs],
            }
            for one in study.series
        ],
        "quarantined": [asdict(one) for one in study.quarantined],
    }


def known_text(known: Known) -> str:
    """Plain text for a terminal, in lines."""
    lines: list[str] = []
    for study in known.studies:
        lines.append(f"study {study.study_instance_uid}")
        for one in study.series:
            lines += _series_lines(one)
        for kept in study.quarantined:
            lines += [f"  {line}" for line in _quarantined_lines(kept)]
        lines.append("")
    for kept in known.quarantined:
        lines += [*_quarantined_lines(kept), ""]
    for away in known.refused:
        times = f"{away.count} time{'s' if away.count != 1 else ''}, last {_time(away.last_at)}"
        lines.append(f"turned away: {away.calling_ae_title} from {away.host}, {times}")
        lines += [f"  No result, because {away.reason.sentence}.", _reason_line(away.reason), ""]
    return "\n".join(lines or ["nothing was turned away", ""])


def _series_lines(one: Series) -> list[str]:
    lines = [f"  series {one.series_instance_uid} version {one.version}", f"    {one.sentence}"]
    lines += [f"    job {job.job_id} {job.state}" for job in one.jobs]
    return lines + [f"  {_reason_line(why)}" for why in one.reasons]


def _quarantined_lines(kept: Quarantined) -> list[str]:
    because = f"  No result, because {kept.reason.sentence}."
    return [f"in quarantine: {kept.path}", because, _reason_line(kept.reason)]


def _reason_line(why: Reason) -> str:
    at = f" at {why.where}" if why.where else ""
    return f"  {why.kind}{at}: code {why.code}, counted by {why.metric}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
