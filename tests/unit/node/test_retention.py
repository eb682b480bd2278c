"""Retention: what may go, what never does, and a crash at every point in between."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, delete, insert, select, update

from node import retention
from node.config import NodeConfig, RouteConfig
from node.database import instances, jobs, series, write_transaction
from node.errors import NodeError
from node.metrics import Metrics
from node.postgres import hold_series
from node.receive.reconcile import reconcile
from node.receive.spool import Spool
from node.retention import Retention
from node.run.operations import JobStateConflict, retry_job
from tests.unit.node.rows import instance_row, job_row, series_row

UID = "1.2.3"
FOLDER = "spool/series/s"
KEEP = 100.0


class Store:
    """One series of two instances with one done job; ``keep`` has a retention, ``ever`` has none."""

    def __init__(self, data_dir: Path, engine: Engine) -> None:
        self.data_dir, self.engine = data_dir, engine
        self.metrics = Metrics("test")
        routes = [
            RouteConfig(name=name, pipeline="p", when={}, destinations=("x",), retention_seconds=seconds)
            for name, seconds in (("keep", KEEP), ("longer", 5 * KEEP), ("ever", None))
        ]
        self.config = NodeConfig.model_construct(data_dir=data_dir, routes=tuple(routes))
        self.retention = Retention(self.config, engine, self.metrics)
        self.files = [data_dir / f"{FOLDER}/{number}.dcm" for number in (1, 2)]
        self.results = data_dir / "results/j1"
        for file in (*self.files, self.results / "summary.json"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"0123456789")
        with engine.begin() as connection:
            connection.execute(insert(series).values(series_row()))
            for number in (1, 2):
                connection.execute(insert(instances).values(self.instance(number)))
        self.add_job("j1", route="keep", result_dir="results/j1")

    def instance(self, number: int, **changes: Any) -> dict[str, Any]:
        row = instance_row(
            sop_instance_uid=f"{UID}.{number}",
            series_instance_uid=UID,
            series_version=1,
            path=f"{FOLDER}/{number}.dcm",
            bytes=10,
        )
        return row | changes

    def add_job(self, job_id: str, **changes: Any) -> None:
        row = job_row(job_id=job_id, state="done", finished_at=time.time() - 2 * KEEP)
        with self.engine.begin() as connection:
            connection.execute(insert(jobs).values(row | changes))

    def set(self, table: Any, **values: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(update(table).values(**values))

    def is_whole(self) -> bool:
        states = {row["state"] for row in self.rows()}
        return all(file.exists() for file in (*self.files, self.results)) and states == {"stored"}

    def is_gone(self) -> bool:
        states = {row["state"] for row in self.rows()}
        return not (self.data_dir / FOLDER).exists() and not self.results.exists() and states == {"purged"}

    def rows(self) -> list[dict[str, Any]]:
        with self.engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(select(instances))]

    def metric(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(f"pacsnode_{name}") or 0.0


@pytest.fixture
def store(tmp_path: Path, engine: Engine) -> Store:
    return Store(tmp_path, engine)


def test_what_is_done_and_old_enough_goes(store: Store) -> None:
    assert store.retention.look() == 1
    assert store.is_gone()
    assert (store.metric("purged_series_total"), store.metric("purged_bytes_total")) == (1, 20)
    assert store.retention.look() == 0


@pytest.mark.parametrize("state", ["queued", "running", "delivering", "failed", "cancelled", "retry"])
def test_every_job_has_to_be_done(store: Store, state: str) -> None:
    store.add_job("j2", pipeline="q", route="keep", state=state)
    assert store.retention.look() == 0 and store.is_whole()


@pytest.mark.parametrize("route", ["longer", "ever", "no longer configured"])
def test_the_longest_retention_counts(store: Store, route: str) -> None:
    store.add_job("j2", pipeline="q", route=route)
    assert store.retention.look() == 0 and store.is_whole()


def test_not_before_its_time(store: Store) -> None:
    store.set(jobs, finished_at=time.time() - KEEP + 5)
    assert store.retention.look() == 0 and store.is_whole()


@pytest.mark.parametrize("state", ["open", "complete"])
def test_not_while_a_later_version_is_under_way(store: Store, state: str) -> None:
    with store.engine.begin() as connection:
        connection.execute(insert(series).values(series_row(version=2, state=state)))
    assert store.retention.look() == 0 and store.is_whole()


def test_not_what_matched_nothing(store: Store) -> None:
    with store.engine.begin() as connection:
        connection.execute(delete(jobs))
    assert store.retention.look() == 0 and all(file.exists() for file in store.files)


def test_never_what_we_have_committed_ourselves_to_keep(store: Store) -> None:
    with store.engine.begin() as connection:
        one = instances.c.sop_instance_uid == f"{UID}.1"
        connection.execute(update(instances).where(one).values(held_at=1.0))
    assert store.retention.look() == 0 and store.is_whole()


@pytest.mark.parametrize("deleted", [0, 1, 2])
def test_killed_within_it(store: Store, deleted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the rows, or any number of files: the next process indexes nothing anew, and finishes."""
    with monkeypatch.context() as patch:
        patch.setattr(store.retention, "_finish", lambda: None)
        assert store.retention.look() == 1
    for file in store.files[:deleted]:
        file.unlink()
    spool = Spool(store.data_dir, store.engine, _NoSeries(), free_disk_floor_bytes=0)
    done = reconcile(spool, store.engine)
    assert (done.indexed, done.missing, done.foreign) == (0, 0, 0)
    assert {row["state"] for row in store.rows()} == {"purging"}
    Retention(store.config, store.engine, store.metrics).look()
    assert store.is_gone()
    done = reconcile(spool, store.engine)
    assert (done.indexed, done.missing, done.foreign) == (0, 0, 0)


class _Killed(BaseException):
    """As by kill -9: nobody catches it."""


class _Dying:
    """Lets whatever purging does, to files or the database, die at its nth moment: before or after."""

    def __init__(self, moment: int) -> None:
        self._left = moment

    def pass_(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _Killed

    def call(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            self.pass_()
            result = real(*arguments, **options)
            self.pass_()
            return result

        return wrapper

    @contextmanager
    def transaction(self, engine: Engine) -> Iterator[Connection]:
        self.pass_()
        with write_transaction(engine) as connection:
            yield connection
        self.pass_()


def test_killed_at_every_moment(tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the first transaction is committed nothing is gone; from then on the next look ends it."""
    outcomes = []
    for moment in range(100):
        with engine.begin() as connection:
            for table in (jobs, instances, series):
                connection.execute(delete(table))
        store = Store(tmp_path / str(moment), engine)
        dying = _Dying(moment)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", dying.call(Path.unlink))
            patch.setattr(Path, "rmdir", dying.call(Path.rmdir))
            patch.setattr(retention, "shutil", SimpleNamespace(rmtree=dying.call(shutil.rmtree)))
            patch.setattr(retention, "write_transaction", dying.transaction)
            try:
                store.retention.look()
            except _Killed:
                outcomes.append("whole" if store.is_whole() else "begun")
            else:
                break
        Retention(store.config, engine, store.metrics).look()
        assert store.is_gone(), moment
    assert outcomes == ["whole"] + ["begun"] * (len(outcomes) - 1) and len(outcomes) > 10


@contextmanager
def _meanwhile(engine: Engine, action: Callable[[], object]) -> Iterator[tuple[Connection, list[object]]]:
    """A transaction that ends when ``action``, begun meanwhile, has had time to wait for it; its answer."""
    answers: list[object] = []

    def run() -> None:
        try:
            answers.append(action())
        except NodeError as error:
            answers.append(error.code)

    thread = threading.Thread(target=run)
    with write_transaction(engine) as connection:
        yield connection, answers
        thread.start()
        time.sleep(0.3)
    thread.join(30)
    assert not thread.is_alive()


def test_what_is_filed_meanwhile_stays(store: Store) -> None:
    with _meanwhile(store.engine, store.retention.look) as (connection, answers):
        hold_series(connection, [UID])
        connection.execute(insert(series).values(series_row(version=2, state="open")))
        row = store.instance(3, series_version=2)
        connection.execute(insert(instances).values(row))
    assert answers == [0] and store.is_whole()


def test_what_is_committed_meanwhile_stays(store: Store) -> None:
    with _meanwhile(store.engine, store.retention.look) as (connection, answers):
        one = instances.c.sop_instance_uid == f"{UID}.1"
        connection.execute(update(instances).where(one, instances.c.state == "stored").values(held_at=1.0))
    assert answers == [0] and store.is_whole()


def test_its_job_cannot_be_asked_for_while_it_is_purged(store: Store) -> None:
    with _meanwhile(store.engine, lambda: retry_job(store.engine, "j1")) as (connection, answers):
        hold_series(connection, [UID])
        connection.execute(update(series).values(purged_at=1.0))
    assert answers == ["job_state"]


def test_two_nodes_purge_it_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Retention(store.config, store.engine, store.metrics)
    monkeypatch.setattr(other, "_candidates", lambda _now: [UID])  # as seen before the first was at it
    assert (store.retention.look(), other.look()) == (1, 0)
    assert store.metric("purged_series_total") == 1


def test_the_same_may_come_again_and_stays(store: Store) -> None:
    store.retention.look()
    with store.engine.begin() as connection:
        connection.execute(insert(series).values(series_row(version=2)))
        connection.execute(insert(instances).values(store.instance(1, series_version=2)))
    store.files[0].parent.mkdir()
    store.files[0].write_bytes(b"0123456789")
    assert store.retention.look() == 0
    assert store.files[0].exists()


def test_a_file_that_cannot_be_deleted_is_tried_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path, missing_ok: bool = False) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(PermissionError):
            store.retention.look()
    assert {row["state"] for row in store.rows()} == {"purging"}
    store.retention.look()
    assert store.is_gone()


def test_its_job_cannot_be_asked_for_again(store: Store) -> None:
    store.retention.look()
    with pytest.raises(JobStateConflict, match="retention") as raised:
        retry_job(store.engine, "j1")
    assert "send the series again" in raised.value.hint


def test_it_runs_by_itself(store: Store) -> None:
    store.retention.start()
    deadline = time.monotonic() + 10
    while not store.is_gone() and time.monotonic() < deadline:
        time.sleep(0.02)
    store.retention.stop()
    assert store.is_gone()


class _NoSeries:
    """No instance is filed here."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)
