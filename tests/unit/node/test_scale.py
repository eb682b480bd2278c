"""What is looked at often doesn't read all that ever was: by the plans of SQLite, at any speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from node.database import metadata, open_database
from node.metrics import Metrics
from node.run import operations
from node.web import app, now
from node.web.study import find_study

LOOKS: dict[str, Callable[[Engine, Path], object]] = {
    "the newest jobs": lambda engine, _: operations.list_jobs(engine),
    "failed jobs": lambda engine, _: operations.list_jobs(engine, state="failed"),
    "the newest series": lambda engine, _: app.list_series(engine, 100),
    "quarantine": lambda engine, _: app.list_quarantined(engine, 20),
    "waiting deliveries": lambda engine, _: now.count_waiting(engine),
    "a scrape's ages": lambda engine, _: now.measure_ages(engine, Metrics("0")),
    "one study": lambda engine, folder: find_study(engine, folder, "1.2"),
}


class Recorded:
    """Statements of an engine, and what SQLite does for each."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen: list[tuple[str, Any]] = []
        event.listen(engine, "before_cursor_execute", self._note)

    def _note(self, _connection: object, _cursor: object, statement: str, values: Any, *_: object) -> None:
        if statement.startswith("SELECT"):
            self._seen.append((statement, values))

    def plans(self) -> dict[str, list[str]]:
        found = {}
        with self._engine.connect() as connection:
            for statement, values in list(self._seen):
                rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)
                found[statement] = [str(row[3]) for row in rows]
        return found


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Recorded]:
    engine = open_database(tmp_path)
    yield Recorded(engine)
    engine.dispose()


@pytest.mark.parametrize("name", LOOKS)
def test_it_reads_by_an_index(recorded: Recorded, tmp_path: Path, name: str) -> None:
    LOOKS[name](recorded._engine, tmp_path)
    plans = recorded.plans()
    assert plans
    whole = [f"SCAN {table}" for table in metadata.tables]
    for statement, plan in plans.items():
        assert not [step for step in plan if step in whole], plan
        if "LIMIT" in statement:  # the newest of very many: not by sorting them all
            assert not [step for step in plan if "TEMP B-TREE" in step], plan


def test_one_job_is_found_by_the_beginning_of_its_id(recorded: Recorded) -> None:
    with pytest.raises(operations.JobNotFound):
        operations.show_job(recorded._engine, "0123abcd")
    ((plan,),) = recorded.plans().values()
    assert "SEARCH jobs USING INDEX sqlite_autoindex_jobs_1 (job_id>? AND job_id<?)" in plan
