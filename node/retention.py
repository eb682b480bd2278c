"""Retention: input and results that nobody needs any more are deleted, and nothing else ever is.

In: routes with ``retention_seconds``.  Out: series whose files are gone, and rows that say so.

A series is purged as a whole, once all of its versions are routed, every job of them is done (delivered
everywhere, and committed where that is configured), and the longest retention of their routes has passed
since the last of them. A series is kept for ever when a job of it failed or was cancelled, when nothing
matched it, when a route of it has no retention, or when we have committed ourselves to keep an instance of it
(PS3.4 J).

Rows first: ``stored`` -> ``purging``, then the files, then ``purged``. Whatever is left at ``purging`` by a
crash is finished at the next start; until then its path is taken, and nobody takes its file for a new one.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import structlog
from sqlalchemy import Connection, Engine, String, cast, func, literal, select, update

from node.config import NodeConfig, RouteConfig
from node.database import instances, jobs, series, shadows, write_transaction
from node.files import fsync_folder
from node.metrics import Metrics
from node.postgres import hold_series
from node.watch import Watch

log = structlog.get_logger(__name__)

LOOK_SECONDS = 60.0
_VERSION_OF_JOB = (series.c.series_instance_uid == jobs.c.series_instance_uid) & (
    series.c.version == jobs.c.series_version
)


class Retention(Watch):
    """Looks between ``start`` and ``stop``; several processes may."""

    def __init__(self, config: NodeConfig, engine: Engine, metrics: Metrics) -> None:
        super().__init__("retention", LOOK_SECONDS)
        self._data_dir = config.data_dir
        self.use(config.routes)
        self._engine = engine
        self._metrics = metrics

    def use(self, routes: Sequence[RouteConfig]) -> None:
        """Keep series as long as these say, from the next look on."""
        self._seconds = {
            route.name: route.retention_seconds for route in routes if route.retention_seconds is not None
        }

    def look(self) -> int:
        """Finish what was begun, and purge what is due; returns how many series."""
        self._finish()
        purged = 0
        now = time.time()
        for series_instance_uid in self._candidates(now):
            if self.stopping.is_set():
                break
            if self._begin(series_instance_uid, now):
                purged += 1
                self._finish()
        return purged

    def _candidates(self, now: float) -> list[str]:
        """Series with a job whose route's retention has passed; ``_begin`` looks at the others."""
        found: set[str] = set()
        with self._engine.connect() as connection:
            for route, seconds in self._seconds.items():
                query = (
                    select(jobs.c.series_instance_uid)
                    .join(series, _VERSION_OF_JOB & series.c.purged_at.is_(None))
                    .where(jobs.c.state == "done", jobs.c.route == route)
                    .where(jobs.c.finished_at <= now - seconds)
                )
                found.update(row[0] for row in connection.execute(query))
        return sorted(found)

    def _begin(self, series_instance_uid: str, now: float) -> bool:
        """Note that it is to go, if it may; that is the point of no return."""
        of_series = instances.c.series_instance_uid == series_instance_uid
        stored = (of_series, instances.c.state == "stored")
        with write_transaction(self._engine) as connection:
            hold_series(connection, [series_instance_uid])  # nobody files an instance of it meanwhile
            if not self._may_go(connection, series_instance_uid, now):
                return False
            size = int(
                connection.execute(select(func.sum(instances.c.bytes)).where(*stored)).scalar_one() or 0
            )
            connection.execute(update(instances).where(*stored).values(state="purging"))
            connection.execute(
                update(series)
                .where(series.c.series_instance_uid == series_instance_uid, series.c.purged_at.is_(None))
                .values(purged_at=now)
            )
        self._metrics.purged_series.inc()
        self._metrics.purged_bytes.inc(size)
        log.info("series_purged", series_instance_uid=series_instance_uid, bytes=size)
        return True

    def _may_go(self, connection: Connection, series_instance_uid: str, now: float) -> bool:
        """The rule of this module's docstring."""
        of_series = jobs.c.series_instance_uid == series_instance_uid
        rows = connection.execute(
            select(jobs.c.state, jobs.c.route, jobs.c.finished_at).where(of_series).with_for_update()
        ).all()
        versions = connection.execute(
            select(series.c.state, series.c.purged_at).where(
                series.c.series_instance_uid == series_instance_uid
            )
        ).all()
        # locked: who commits us to keep one waits, and finds that it isn't stored any more
        held = connection.execute(
            select(instances.c.held_at)
            .where(instances.c.series_instance_uid == series_instance_uid)
            .with_for_update()
        ).scalars()
        if any(one is not None for one in held):
            return False
        if not rows or any(version.state != "routed" for version in versions):
            return False
        if all(version.purged_at is not None for version in versions):  # by another node
            return False
        return all(
            row.state == "done"
            and row.route in self._seconds
            and row.finished_at <= now - self._seconds[row.route]
            for row in rows
        )

    def _finish(self) -> None:
        """Delete the files of what is noted to go, then note that they are gone."""
        for folder, paths in self._files().items():
            for path in paths:
                path.unlink(missing_ok=True)
            if folder.is_dir():
                fsync_folder(folder)  # a file that came back after a power cut would be taken for a new one
                with suppress(OSError):  # something else is in it
                    folder.rmdir()
            relative = [str(path.relative_to(self._data_dir)) for path in paths]
            self._note_gone(relative)
        for job_id, folder in self._results():
            shutil.rmtree(folder, ignore_errors=True)
            with write_transaction(self._engine) as connection:
                connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(result_dir=None))
        self._finish_shadows()

    def _finish_shadows(self) -> None:
        """What candidates made of purged series goes with it; how far they agreed stays."""
        query = (
            select(shadows.c.job_id, shadows.c.candidate, shadows.c.result_dir)
            .join(jobs, jobs.c.job_id == shadows.c.job_id)
            .join(series, _VERSION_OF_JOB)
            .where(series.c.purged_at.is_not(None), shadows.c.result_dir.is_not(None))
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        for row in rows:
            folder = self._data_dir / row.result_dir
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # another candidate's is in it
                folder.parent.rmdir()
            this = (shadows.c.job_id == row.job_id, shadows.c.candidate == row.candidate)
            with write_transaction(self._engine) as connection:
                connection.execute(update(shadows).where(*this).values(result_dir=None))

    def _files(self) -> Mapping[Path, list[Path]]:
        found: dict[Path, list[Path]] = {}
        with self._engine.connect() as connection:
            for row in connection.execute(select(instances.c.path).where(instances.c.state == "purging")):
                path = self._data_dir / row.path
                found.setdefault(path.parent, []).append(path)
        return found

    def _note_gone(self, paths: list[str]) -> None:
        """Their paths are free again: the same instances may come once more."""
        gone = literal("purged/") + cast(instances.c.id, String)
        with write_transaction(self._engine) as connection:
            for path in paths:
                this = (instances.c.path == path, instances.c.state == "purging")
                connection.execute(update(instances).where(*this).values(state="purged", path=gone))

    def _results(self) -> Iterator[tuple[str, Path]]:
        """Result sets of purged series."""
        query = (
            select(jobs.c.job_id, jobs.c.result_dir)
            .join(series, _VERSION_OF_JOB)
            .where(series.c.purged_at.is_not(None), jobs.c.result_dir.is_not(None), jobs.c.state == "done")
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        for row in rows:
            yield row.job_id, self._data_dir / row.result_dir
