"""Opening the database: new, of former versions, of newer software, and by several at once."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import inspect

from node import database
from node.database import metadata, open_database
from node.database_layout import SCHEMA_VERSION, STEPS
from node.errors import ConfigError, NodeError
from tests.unit.node.receive.conftest import Bench

#: as written by the first version that received: tables by their columns
FIRST = """
CREATE TABLE instances (id INTEGER NOT NULL PRIMARY KEY, sop_instance_uid VARCHAR(64) NOT NULL,
    sop_class_uid VARCHAR(64) NOT NULL, transfer_syntax_uid VARCHAR(64) NOT NULL,
    study_instance_uid VARCHAR(64), series_instance_uid VARCHAR(64), series_version INTEGER,
    path VARCHAR NOT NULL UNIQUE, bytes INTEGER NOT NULL, sha256 VARCHAR(64) NOT NULL,
    association_id VARCHAR(64) NOT NULL, calling_ae_title VARCHAR(16) NOT NULL, state VARCHAR(16) NOT NULL,
    reason_code VARCHAR(64), reason VARCHAR, received_at FLOAT NOT NULL);
CREATE TABLE series (series_instance_uid VARCHAR(64) NOT NULL, version INTEGER NOT NULL,
    study_instance_uid VARCHAR(64) NOT NULL, calling_ae_title VARCHAR(16) NOT NULL,
    state VARCHAR(16) NOT NULL, instance_count INTEGER NOT NULL, opened_at FLOAT NOT NULL,
    last_instance_at FLOAT NOT NULL, released_at FLOAT, completed_at FLOAT, evidence JSON, decision JSON,
    PRIMARY KEY (series_instance_uid, version));
CREATE INDEX series_by_state ON series (state, last_instance_at);
CREATE TABLE jobs (job_id VARCHAR(64) NOT NULL PRIMARY KEY, series_instance_uid VARCHAR(64) NOT NULL,
    series_version INTEGER NOT NULL, study_instance_uid VARCHAR(64) NOT NULL, pipeline VARCHAR(64) NOT NULL,
    route VARCHAR(64) NOT NULL, destinations JSON NOT NULL, priority INTEGER NOT NULL,
    state VARCHAR(16) NOT NULL, attempt INTEGER NOT NULL, reason_code VARCHAR(64), reason VARCHAR,
    created_at FLOAT NOT NULL, started_at FLOAT, finished_at FLOAT, result_dir VARCHAR);
INSERT INTO instances VALUES (1, '1.2.3.1', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', '1.2',
    '1.2.3', 1, 'spool/series/a/b.dcm', 10, 'abc', 'a1', 'SCANNER', 'stored', NULL, NULL, 900.0);
INSERT INTO series VALUES ('1.2.3', 1, '1.2', 'SCANNER', 'open', 1, 900.0, 900.0, 900.0, NULL, NULL, NULL);
"""


def write(data_dir: Path, script: str) -> None:
    with closing(sqlite3.connect(data_dir / "node.sqlite")) as connection:
        connection.executescript(script)


def version(data_dir: Path) -> int:
    with closing(sqlite3.connect(data_dir / "node.sqlite")) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def usable_from(data_dir: Path) -> int:
    with closing(sqlite3.connect(data_dir / "node.sqlite")) as connection:
        return int(connection.execute("SELECT version FROM schema_usable_from").fetchone()[0])


def layout(data_dir: Path) -> dict[str, tuple[set[str], set[str]]]:
    """Table -> its columns and indexes."""
    engine = open_database(data_dir)
    looked = inspect(engine)
    found = {
        table: (
            {column["name"] for column in looked.get_columns(table)},
            {str(index["name"]) for index in looked.get_indexes(table)},
        )
        for table in looked.get_table_names()
    }
    engine.dispose()
    return found


def test_a_new_one_has_the_tables_and_its_version(tmp_path: Path) -> None:
    found = layout(tmp_path)
    assert found.pop("schema_usable_from") == ({"version"}, set())
    assert {name: columns for name, (columns, _indexes) in found.items()} == {
        table.name: {column.name for column in table.columns} for table in metadata.sorted_tables
    }
    assert version(tmp_path) == SCHEMA_VERSION


def test_the_first_version_is_brought_up_to_date_and_goes_on(tmp_path: Path) -> None:
    write(tmp_path, FIRST)
    found = layout(tmp_path)
    for table in metadata.sorted_tables:
        assert found[table.name][0] == {column.name for column in table.columns}
    for name in ("instances", "series", "jobs"):
        new = {str(index.name) for index in metadata.tables[name].indexes}
        assert {each for each in new if "by_study" in each or "quarantined" in each} <= found[name][1]
    assert found["series"][1] >= {"series_by_check", "series_unmatched", "series_by_time"}
    assert "quarantined_by_time" in found["instances"][1] and "jobs_by_study" in found["jobs"][1]
    assert version(tmp_path) == SCHEMA_VERSION
    engine = open_database(tmp_path)
    bench = Bench(tmp_path, engine)
    bench.check()
    assert bench.completed == [("1.2.3", 1)], "the open series was forgotten"
    assert [row["sop_instance_uid"] for row in bench.rows()] == ["1.2.3.1"]
    engine.dispose()


def test_one_that_only_lacks_its_number_is_left_as_it_is(tmp_path: Path) -> None:
    before = layout(tmp_path)
    write(tmp_path, "PRAGMA user_version = 0")
    assert layout(tmp_path) == before
    assert version(tmp_path) == SCHEMA_VERSION


def test_one_of_newer_software_is_named_and_not_touched(tmp_path: Path) -> None:
    layout(tmp_path)
    write(tmp_path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    write(tmp_path, "DROP TABLE schema_usable_from")
    with pytest.raises(ConfigError, match=f"{tmp_path} is of newer software") as raised:
        open_database(tmp_path)
    assert "another data_dir" in raised.value.hint
    assert version(tmp_path) == SCHEMA_VERSION + 1


def test_one_of_newer_software_that_only_added_to_it_is_used_and_left_as_it_is(tmp_path: Path) -> None:
    open_database(tmp_path).dispose()
    write(tmp_path, f"PRAGMA user_version = {SCHEMA_VERSION + 2}")
    open_database(tmp_path).dispose()
    assert version(tmp_path) == SCHEMA_VERSION + 2
    assert usable_from(tmp_path) <= SCHEMA_VERSION
    write(tmp_path, "UPDATE schema_usable_from SET version = version + 100")
    with pytest.raises(ConfigError, match="is of newer software"):
        open_database(tmp_path)


def test_a_disk_that_fails_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "node.sqlite").mkdir()  # SQLite can open no file
    with pytest.raises(NodeError, match=f"data_dir: {tmp_path}: the database can't be opened") as raised:
        open_database(tmp_path)
    assert raised.value.retryable
    assert "full" in raised.value.hint


def test_a_step_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, FIRST)

    def fail(_connection: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(database, "STEPS", (*STEPS, fail))
    with pytest.raises(RuntimeError):
        open_database(tmp_path)
    monkeypatch.undo()
    with closing(sqlite3.connect(tmp_path / "node.sqlite")) as connection:
        columns = {row[1] for row in connection.execute("PRAGMA table_info(series)")}
    assert "check_at" not in columns
    assert "check_at" in layout(tmp_path)["series"][0]


def test_several_open_it_at_once(tmp_path: Path) -> None:
    write(tmp_path, FIRST)
    with ThreadPoolExecutor(8) as pool:
        engines = list(pool.map(open_database, [tmp_path] * 8))
    for engine in engines:
        engine.dispose()
    assert version(tmp_path) == SCHEMA_VERSION
