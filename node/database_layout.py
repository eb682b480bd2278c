"""The layout of the node's database: its versions, and the steps from one to the next.

In: a connection in a transaction.  Out: the version that the database is of, the oldest whose software may
use it; changed tables. New tables need no step: ``database`` makes what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, inspect, text


def version_of(connection: Connection) -> int:
    """0 for one that was never numbered, or is new."""
    if connection.dialect.name == "sqlite":
        return int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
    if not inspect(connection).has_table("schema_version"):
        return 0
    return int(connection.exec_driver_sql("SELECT version FROM schema_version").scalar_one())


def usable_from(connection: Connection, version: int) -> int:
    """``USABLE_FROM`` of the software that wrote this database."""
    if version <= SCHEMA_VERSION or not inspect(connection).has_table("schema_usable_from"):
        return version
    return int(connection.exec_driver_sql("SELECT version FROM schema_usable_from").scalar_one())


def set_usable_from(connection: Connection) -> None:
    """To ``USABLE_FROM``."""
    connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS schema_usable_from (version INTEGER NOT NULL)")
    connection.exec_driver_sql("DELETE FROM schema_usable_from")
    connection.execute(text("INSERT INTO schema_usable_from VALUES (:version)"), {"version": USABLE_FROM})


def set_version(connection: Connection) -> None:
    """To ``SCHEMA_VERSION``."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
        return
    connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
    connection.exec_driver_sql("DELETE FROM schema_version")
    connection.execute(text("INSERT INTO schema_version VALUES (:version)"), {"version": SCHEMA_VERSION})


def _number_1(connection: Connection) -> None:
    """The versions before they were numbered, of which some lack columns and some have what is gone."""
    for table, gone, new in (
        ("instances", "sha256", None),
        ("jobs", "attempt", "generation INTEGER NOT NULL DEFAULT 0"),
        ("series", None, "check_at FLOAT NOT NULL DEFAULT 0.0"),  # due now
    ):
        columns = {column["name"] for column in inspect(connection).get_columns(table)}
        if gone in columns:
            connection.exec_driver_sql(f"ALTER TABLE {table} DROP COLUMN {gone}")
        if new is not None and new.split()[0] not in columns:
            connection.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN {new}")
    connection.exec_driver_sql("CREATE INDEX IF NOT EXISTS series_by_check ON series (state, check_at)")


def _number_2(connection: Connection) -> None:
    """Several nodes on one database; deliveries know when they began and what was said of them; retention."""
    _add_columns(connection, "commitments", ("node_id VARCHAR(64)",))
    _add_columns(connection, "deliveries", ("begun_at FLOAT", "warnings JSON"))
    _add_columns(connection, "series", ("purged_at FLOAT",))
    _add_columns(connection, "instances", ("held_at FLOAT",))
    if inspect(connection).has_table("commitments"):  # which ones were committed is forgotten after a month
        held = "UPDATE instances SET held_at = received_at WHERE EXISTS (SELECT 1 FROM commitments)"
        connection.exec_driver_sql(held)


def _number_3(connection: Connection) -> None:
    """The web pages find what is newest, and what belongs to a study, without reading whole tables."""
    _add_columns(connection, "series", ("reason_code VARCHAR(64)",))
    code = "decision ->> 'reason_code'"
    if connection.dialect.name == "sqlite":
        code = "json_extract(decision, '$.reason_code')"
    connection.exec_driver_sql(f"UPDATE series SET reason_code = {code} WHERE state = 'routed'")  # noqa: S608
    for name, table, columns in (
        ("quarantined_by_study", "instances", "study_instance_uid) WHERE (state = 'quarantined'"),
        ("quarantined_by_time", "instances", "received_at) WHERE (state = 'quarantined'"),
        ("series_by_study", "series", "study_instance_uid, last_instance_at"),
        ("series_by_time", "series", "last_instance_at, study_instance_uid"),
        ("series_by_sender", "series", "calling_ae_title, last_instance_at"),
        (
            "series_unmatched",
            "series",
            "last_instance_at, study_instance_uid) WHERE (reason_code <> 'none'",
        ),
        ("jobs_by_study", "jobs", "study_instance_uid, created_at"),
        ("jobs_by_time", "jobs", "created_at, study_instance_uid"),
        ("deliveries_by_time", "deliveries", "updated_at"),
    ):
        if inspect(connection).has_table(table):
            connection.exec_driver_sql(f"CREATE INDEX IF NOT EXISTS {name} ON {table} ({columns})")


def _number_4(connection: Connection) -> None:
    """Deliveries know the code of their last error."""
    _add_columns(connection, "deliveries", ("reason_code VARCHAR(64)",))


def _add_columns(connection: Connection, table: str, columns: Sequence[str]) -> None:
    """Those that the table lacks, if it is there at all; a new one is made whole."""
    if inspect(connection).has_table(table):
        there = {column["name"] for column in inspect(connection).get_columns(table)}
        for column in columns:
            if column.split()[0] not in there:
                connection.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN {column}")


#: Step n brings a database from version n (SQLite's user_version) to n + 1. What changes in a table of
#: ``database`` needs a step here, unless the table is new; steps that were released don't change.
STEPS = (_number_1, _number_2, _number_3, _number_4)
SCHEMA_VERSION = len(STEPS)
#: the oldest version whose software can go on with a database of this one, so that one can go back to it:
#: since then only tables were added, and columns that may be left out
USABLE_FROM = 3
