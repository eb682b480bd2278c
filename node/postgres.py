"""What PostgreSQL is asked beyond SQL: connections to it, and locks that end with their holder.

In: ``database`` of the configuration.  Out: an engine; names that are held by one transaction, or by one node
for as long as its connection lives, which tells others without heartbeats that it is gone.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable

import structlog
from sqlalchemy import URL, Connection, Engine, bindparam, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.types import ARRAY, BigInteger

from node.config import DatabaseConfig
from node.errors import ConfigError

log = structlog.get_logger(__name__)

#: A peer that vanished without a word is noticed by both sides within about 25 s: its locks are free then.
_KEEPALIVE = {"idle": 10, "interval": 5, "count": 3}
CONNECT_SECONDS = 10
POOL_SIZE, POOL_OVERFLOW = 10, 20


def postgres_url(database: DatabaseConfig) -> URL:
    """The URL with its password, which SQLAlchemy hides when the URL is shown.

    Raises ConfigError when the password can't be read.
    """
    url = make_url(str(database.url)).set(drivername="postgresql+psycopg")
    password = _password(database)
    return url if password is None else url.set(password=password)


def _password(database: DatabaseConfig) -> str | None:
    if database.password_file is not None:
        try:
            return database.password_file.read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            raise ConfigError(
                f"database.password_file: {database.password_file}: {error.strerror}",
                hint="it holds the password of the user in database.url, and nothing else",
            ) from error
    if database.password_env is not None:
        if database.password_env not in os.environ:
            raise ConfigError(
                f"database.password_env: the environment has no {database.password_env}",
                hint="set it for the node's process, or use database.password_file",
            )
        return os.environ[database.password_env]
    return None


def postgres_engine(database: DatabaseConfig, *, application_name: str) -> Engine:
    """Connections to the configured database. application_name: what ``pg_stat_activity`` shows."""
    server = " ".join(f"-c tcp_keepalives_{name}={value}" for name, value in _KEEPALIVE.items())
    return create_engine(
        postgres_url(database),
        pool_size=POOL_SIZE,
        max_overflow=POOL_OVERFLOW,
        pool_pre_ping=True,  # the server may have been restarted
        connect_args={
            "application_name": application_name,
            "connect_timeout": CONNECT_SECONDS,
            "options": server,
            **{f"keepalives_{name}": value for name, value in _KEEPALIVE.items()},
        },
    )


def lock_key(name: str) -> int:
    """The 64 bits, signed, that stand for a name among advisory locks."""
    return int.from_bytes(hashlib.sha256(f"pacsnode:{name}".encode()).digest()[:8], "big", signed=True)


_HELD = text(
    "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks"
    " WHERE locktype = 'advisory' AND objsubid = 1 AND granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


def held_names(connection: Connection, names: Iterable[str]) -> set[str]:
    """Those of the names that someone holds; nobody is kept from anything by looking."""
    held = {int(key) for (key,) in connection.execute(_HELD)}
    return {name for name in names if lock_key(name) in held}


_HOLD = text("SELECT pg_advisory_xact_lock(key) FROM unnest(:keys) AS key").bindparams(
    bindparam("keys", type_=ARRAY(BigInteger))
)


def hold_names(connection: Connection, names: Iterable[str]) -> None:
    """Hold names until the transaction ends; waits while another transaction holds one.

    All that a transaction will need at once: two that each waited for the other's would never end. On SQLite,
    where one transaction writes at a time, there is nothing to do.
    """
    if connection.dialect.name != "postgresql":
        return
    if keys := sorted({lock_key(name) for name in names}):
        connection.execute(_HOLD, {"keys": keys})


def hold_series(connection: Connection, series_instance_uids: Iterable[str]) -> None:
    """Hold series until the transaction ends: whoever reads and then changes one of their versions does."""
    hold_names(connection, (f"series {uid}" for uid in series_instance_uids))


class SessionLock:
    """A name that one node holds for as long as its connection lives; safe to use from several threads."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self.name = name
        self._connection: Connection | None = None
        self._lock = threading.Lock()

    def hold(self) -> bool:
        """Take it, or see that it is still held; False when another has it.

        Raises SQLAlchemyError when the database can't be asked: then it isn't held any more.
        """
        with self._lock:
            try:
                return self._hold()
            except SQLAlchemyError:
                self._let_go()
                raise

    def release(self) -> None:
        with self._lock:
            self._let_go()

    def _hold(self) -> bool:
        if self._connection is not None:
            self._connection.exec_driver_sql("SELECT 1")
            return True
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        taken = False
        try:
            row = connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": lock_key(self.name)})
            taken = bool(row.scalar_one())
        finally:
            if not taken:
                connection.close()
        if taken:
            self._connection = connection
        return taken

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.invalidate()  # its session ends, and the lock with it
            connection.close()
        except DBAPIError as error:
            log.info("lock_connection_lost", name=self.name, error=type(error).__name__)
