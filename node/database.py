"""The node's own state, in one SQL database: SQLite (WAL, synchronous=FULL), or PostgreSQL that nodes share.

Bytes are in the spool; this says what they are and what became of them. SQLAlchemy Core, so that the same
statements serve both. Times are seconds since the epoch, UTC.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ClauseElement,
    Column,
    Connection,
    CursorResult,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    inspect,
    literal_column,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from node.config import DatabaseConfig
from node.database_layout import SCHEMA_VERSION, STEPS, set_usable_from, set_version, usable_from, version_of
from node.errors import ConfigError, NodeError
from node.failpoints import failpoint, name_of_caller
from node.postgres import hold_names, postgres_engine

metadata = MetaData()
_BigId = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up an INTEGER only

#: of indexes for few rows, which the path of the others doesn't pay for
_QUARANTINED: Any = dict.fromkeys(("sqlite_where", "postgresql_where"), text("state = 'quarantined'"))
_UNMATCHED: Any = dict.fromkeys(("sqlite_where", "postgresql_where"), text("reason_code <> 'none'"))

#: One row an acknowledged instance. ``state``: stored | quarantined | duplicate, and stored -> purging ->
#: purged when its retention has passed. ``held_at``: we have committed ourselves to keep it: it never is.
#: Every row ends explained (DESIGN I3): in a series version with its jobs or its reason, or with ``reason``.
instances = Table(
    "instances",
    metadata,
    Column("id", _BigId, primary_key=True),
    Column("sop_instance_uid", String(64), nullable=False),
    Column("sop_class_uid", String(64), nullable=False),
    Column("transfer_syntax_uid", String(64), nullable=False),
    Column("study_instance_uid", String(64)),
    Column("series_instance_uid", String(64)),
    Column("series_version", Integer),
    Column("path", String, nullable=False, unique=True),  # relative to data_dir
    Column("bytes", BigInteger, nullable=False),
    Column("association_id", String(64), nullable=False),
    Column("calling_ae_title", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason_code", String(64)),
    Column("reason", String),
    Column("received_at", Float, nullable=False),
    Column("held_at", Float),
    Index("instances_by_uid", "sop_instance_uid"),
    Index("instances_by_series", "series_instance_uid", "series_version"),
    Index("quarantined_by_study", "study_instance_uid", **_QUARANTINED),
    Index("quarantined_by_time", "received_at", **_QUARANTINED),
)
#: ``state`` of what these indexes are of, in a query as in an index: so that databases see that it is one
IS_QUARANTINED = instances.c.state == literal_column("'quarantined'")

#: One row a series version. ``state``: open -> complete -> routed. ``evidence``: why it was judged complete.
#: ``complete`` in it: true, false where something is known to be missing, null where nothing says either.
#: ``check_at``: when to look at an open version next, at the latest.
#: ``decision``: what the router said, route by route (also the recorded reason why nothing matched).
#: ``reason_code``: the decision's: ``none`` where a route matched.
#: ``purged_at``: its input and results were deleted (``retention``).
series = Table(
    "series",
    metadata,
    Column("series_instance_uid", String(64), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("study_instance_uid", String(64), nullable=False),
    Column("calling_ae_title", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("instance_count", Integer, nullable=False),
    Column("opened_at", Float, nullable=False),
    Column("last_instance_at", Float, nullable=False),
    Column("released_at", Float),  # last association that sent to it ended; null while one is open
    Column("check_at", Float, nullable=False, default=0.0),
    Column("completed_at", Float),
    Column("evidence", JSON),
    Column("decision", JSON),
    Column("purged_at", Float),
    Column("reason_code", String(64)),
    Index("series_by_state", "state", "last_instance_at"),
    Index("series_by_check", "state", "check_at"),
    Index("series_by_study", "study_instance_uid", "last_instance_at"),
    Index("series_by_time", "last_instance_at", "study_instance_uid"),
    Index("series_by_sender", "calling_ae_title", "last_instance_at"),
    Index("series_unmatched", "last_instance_at", "study_instance_uid", **_UNMATCHED),
)

#: One row a series version that a query AE was asked about. ``expected``: its count, null when it has none or
#: couldn't say; ``asked_at``: when the question that it answered was put; ``next_at``: not to be asked
#: before. ``failures``: in a row; ``fetches``: attempts, counted before they begin; ``fetched``: instances
#: that came.
inquiries = Table(
    "inquiries",
    metadata,
    Column("series_instance_uid", String(64), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("peer", String(64), nullable=False),  # its name in the configuration
    Column("expected", Integer),
    Column("asked_at", Float),
    Column("next_at", Float, nullable=False, default=0.0),
    Column("failures", Integer, nullable=False, default=0),
    Column("fetches", Integer, nullable=False, default=0),
    Column("fetched", Integer, nullable=False, default=0),
    Column("error", String),
)

#: One row a job: one (series version, pipeline). ``job_id`` is a hash of both, so that a job exists once.
#: ``state``: queued -> running -> delivering -> done, or failed | cancelled; ``retry`` when ops asked for it
#: again, which ``generation`` counts.
jobs = Table(
    "jobs",
    metadata,
    Column("job_id", String(64), primary_key=True),
    Column("series_instance_uid", String(64), nullable=False),
    Column("series_version", Integer, nullable=False),
    Column("study_instance_uid", String(64), nullable=False),
    Column("pipeline", String(64), nullable=False),
    Column("route", String(64), nullable=False),
    Column("destinations", JSON, nullable=False),  # list of names
    Column("priority", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("generation", Integer, nullable=False, default=0),
    Column("reason_code", String(64)),
    Column("reason", String),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("result_dir", String),  # relative to data_dir
    Index("jobs_by_state", "state", "created_at"),
    Index("jobs_by_series", "series_instance_uid", "series_version"),
    Index("jobs_by_study", "study_instance_uid", "created_at"),
    Index("jobs_by_time", "created_at", "study_instance_uid"),
)

#: One row a (job, destination). ``state``: pending -> delivered, or failed; where commitment is configured,
#: pending -> stored -> delivered, and back from stored to pending when some has to be sent again.
#: ``begun_at``: its first turn; ``attempts``: that ended; ``warnings``: what the destination said of objects
#: that it stored. ``reason_code``: of ``last_error``.
deliveries = Table(
    "deliveries",
    metadata,
    Column("job_id", String(64), ForeignKey("jobs.job_id"), primary_key=True),
    Column("destination", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("last_error", String),
    Column("reason_code", String(64)),
    Column("updated_at", Float, nullable=False),
    Column("begun_at", Float),
    Column("warnings", JSON),
    Index("deliveries_by_time", "updated_at"),
)

#: One row a destination that ops paused: nothing is sent there until they resume it. ``paused_by``: who.
pauses = Table(
    "pauses",
    metadata,
    Column("destination", String(64), primary_key=True),
    Column("paused_at", Float, nullable=False),
    Column("paused_by", String(64), nullable=False),
)

#: One row a Storage Commitment request of ours. ``state``: open -> reported -> closed; withdrawn, when it
#: couldn't be sent; expired, when no report came by ``report_by``; both are reported after all, if one comes.
#: ``requested``: [SOP Class UID, SOP Instance UID] each. ``committed``: SOP Instance UIDs; ``failed``:
#: [SOP Instance UID, Failure Reason] each; both null until there is a report.
commitment_requests = Table(
    "commitment_requests",
    metadata,
    Column("id", _BigId, primary_key=True),
    Column("transaction_uid", String(64), nullable=False, unique=True),
    Column("job_id", String(64), ForeignKey("jobs.job_id"), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("destination", String(64), nullable=False),
    Column("requested", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("requested_at", Float, nullable=False),
    Column("report_by", Float, nullable=False),
    Column("committed", JSON(none_as_null=True)),
    Column("failed", JSON(none_as_null=True)),
    Index("commitment_requests_by_job", "job_id", "destination"),
    Index("commitment_requests_by_state", "state", "report_by"),
)

#: One row a Storage Commitment request that was accepted. ``state``: open -> reported | given_up.
#: ``requested``: [SOP Class UID, SOP Instance UID] each. ``reasons``: of each, 0 for committed, or the
#: Failure Reason; null until they are judged.
commitments = Table(
    "commitments",
    metadata,
    Column("id", _BigId, primary_key=True),
    Column("transaction_uid", String(64), nullable=False),
    Column("calling_ae_title", String(16), nullable=False),
    Column("requested", JSON, nullable=False),
    Column("reasons", JSON),
    Column("state", String(16), nullable=False),
    Column("requested_at", Float, nullable=False),
    Column("finished_at", Float),
    Column("node_id", String(64)),  # who reports it
    Index("commitments_by_transaction", "transaction_uid"),
    Index("commitments_by_state", "state", "finished_at"),
)

#: One row a sender and reason of what was turned away, the newest. ``reason``: particular of the last one.
refusals = Table(
    "refusals",
    metadata,
    Column("kind", String(32), primary_key=True),
    Column("code", String(64), primary_key=True),
    Column("calling_ae_title", String(64), primary_key=True),
    Column("host", String(64), primary_key=True),
    Column("count", Integer, nullable=False),
    Column("first_at", Float, nullable=False),
    Column("last_at", Float, nullable=False),
    Column("reason", String, nullable=False),
    Index("refusals_by_time", "last_at"),
)

#: One row a job that was cancelled, until a node has counted and logged it.
cancellations = Table(
    "cancellations",
    metadata,
    Column("job_id", String(64), ForeignKey("jobs.job_id"), primary_key=True),
    Column("reason", String, nullable=False),
)

#: One row a node that shares this database; it holds a lock by its id while it lives (``membership``).
#: ``epoch``: counts its starts and the times that others took over what it was doing.
#: ``workflow_version``: of the jobs that it runs; null when it runs none.
nodes = Table(
    "nodes",
    metadata,
    Column("node_id", String(64), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("workflow_version", String(16)),
    Column("epoch", Integer, nullable=False, default=0),
    Column("started_at", Float, nullable=False),
)


#: One row a (job, candidate), from when the job is done. ``state``: waiting -> done | failed | skipped (its
#: input or the live result is gone). ``agreement``: with the live result (``pipelines.agreement``). Nothing
#: of it is ever delivered.
shadows = Table(
    "shadows",
    metadata,
    Column("job_id", String(64), ForeignKey("jobs.job_id"), primary_key=True),
    Column("candidate", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("reason_code", String(64)),
    Column("reason", String),
    Column("created_at", Float, nullable=False),
    Column("finished_at", Float),
    Column("result_dir", String),  # relative to data_dir
    Column("agreement", JSON(none_as_null=True)),
    Index("shadows_by_state", "state", "created_at"),
    Index("shadows_by_candidate", "candidate", "finished_at"),
)


def open_database(
    data_dir: Path,
    database: DatabaseConfig = DatabaseConfig(),  # noqa: B008 - frozen
    *,
    application_name: str = "pacsnode",
) -> Engine:
    """Open ``data_dir/node.sqlite``, or the PostgreSQL database of ``database.url``: create what is missing,
    bring it up to date if older.

    Safe to call from several threads and processes. Raises ConfigError when newer software wrote it, when a
    password can't be read, or when PostgreSQL can't be reached; NodeError when SQLite can't write.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    if database.url is None:
        engine = _open_sqlite(data_dir)
    else:
        engine = postgres_engine(database, application_name=application_name)
    try:
        with _reachable(data_dir, database), engine.connect() as connection:
            version = version_of(connection)
            oldest = usable_from(connection, version)
        if oldest > SCHEMA_VERSION:
            where = f"data_dir: {data_dir}" if database.url is None else f"database.url: {database.url}"
            raise ConfigError(
                f"{where} is of newer software (database version {version}; allowed are "
                f"versions up to {SCHEMA_VERSION})",
                hint="run that software again, or choose another data_dir or database",
            )
        if version < SCHEMA_VERSION:
            with _reachable(data_dir, database):
                _bring_up_to_date(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _open_sqlite(data_dir: Path) -> Engine:
    engine = create_engine(f"sqlite:///{data_dir / 'node.sqlite'}", connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def _pragmas(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine


@contextmanager
def _reachable(data_dir: Path, database: DatabaseConfig) -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        if database.url is None:
            raise NodeError(
                f"data_dir: {data_dir}: the database can't be opened: {error.orig}",
                code="io_error",
                hint="is the disk full or read-only, and may we write there?",
                retryable=True,
            ) from error
        reason = str(error.orig).strip().splitlines()[0] if error.orig else type(error).__name__
        raise ConfigError(
            f"database.url: {database.url}: {reason}",
            hint="is PostgreSQL running there, and do user, database and password exist?",
        ) from error


def _bring_up_to_date(engine: Engine) -> None:
    """In one transaction: killed within it, nothing has changed."""
    with write_transaction(engine) as connection:
        hold_names(connection, ["schema"])
        if inspect(connection).has_table(series.name):
            for step in STEPS[version_of(connection) :]:
                step(connection)
        metadata.create_all(connection)
        set_usable_from(connection)
        set_version(connection)


def insert_if_new(connection: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    """Insert a row unless one with its key is there; whether it was inserted."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    new = insert(table).values(**values).on_conflict_do_nothing()
    return connection.execute(new, execution_options={"preserve_rowcount": True}).rowcount == 1


@contextmanager
def write_transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction that may read and then write: committed on leaving, rolled back on an exception.

    SQLite takes its write lock at the start. A transaction that read first and asked for the lock later
    would fail at once, whatever the timeout, when someone else wrote in between. On PostgreSQL others write
    meanwhile: what was read and is to be changed is held by name (``postgres.hold_names``), or changed in one
    statement that says what it expects.
    """
    whose = name_of_caller(2)  # who is above us and ``contextmanager``
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection
        failpoint(f"{whose}:commit")
    failpoint(f"{whose}:committed")


class Prepared:
    """A statement that is compiled once, for the path of every instance.

    There SQLAlchemy's own execution takes longer than the database does. Values are handed to the driver as
    they are, so no column of the statement may need conversion (JSON does).
    """

    def __init__(
        self, statement: ClauseElement, engine: Engine, *, columns: Sequence[str] | None = None
    ) -> None:
        """``columns``: those of an INSERT or UPDATE that get values."""
        compiled = statement.compile(dialect=engine.dialect, column_keys=columns)
        self._sql = str(compiled)
        self._order: Sequence[str] | None = getattr(compiled, "positiontup", None)

    def execute(self, connection: Connection, values: Mapping[str, Any]) -> CursorResult[Any]:
        """``values``: by the name of the statement's bind parameters."""
        if self._order is None:
            return connection.exec_driver_sql(self._sql, dict(values))
        return connection.exec_driver_sql(self._sql, tuple([values[name] for name in self._order]))
