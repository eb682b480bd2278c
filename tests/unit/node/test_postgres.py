"""Connections to PostgreSQL and names that are held; passwords stay out of everything that is shown."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from node.config import DatabaseConfig, parse_config
from node.database import open_database
from node.errors import ConfigError
from node.postgres import SessionLock, held_names, hold_series, postgres_engine, postgres_url
from node.triton_server import free_port
from tests.postgres import PostgresCluster, until_free

URL = "postgresql://pacsnode@127.0.0.1:5432/pacsnode"
WORD = "s3cret"


@pytest.mark.parametrize(
    "url",
    ["postgresql://u:s3cret@h/d", "mysql://u@h/d", "postgresql://h/d", "postgresql://u@h", "nonsense"],
)
def test_a_url_says_where_and_no_secret(url: str) -> None:
    with pytest.raises(ConfigError, match="database") as raised:
        parse_config({"database": {"url": url}}, source="node.yaml", base=Path("/"))
    assert "s3cret" not in str(raised.value)


def test_the_password_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "password").write_text("s3cret\n")
    monkeypatch.setenv("DB_PASSWORD", "s3cret")
    for options in ({"password_file": tmp_path / "password"}, {"password_env": "DB_PASSWORD"}):
        database = DatabaseConfig(url=URL, **options)
        assert postgres_url(database).password == WORD
        assert "s3cret" not in f"{postgres_url(database)} {database!r} {database.model_dump_json()}"
    with pytest.raises(ConfigError, match=r"database\.password_env: the environment has no NOWHERE"):
        postgres_url(DatabaseConfig.model_validate({"url": URL, "password_env": "NOWHERE"}))
    with pytest.raises(ConfigError, match=r"database\.password_file: .*nowhere: No such file"):
        postgres_url(DatabaseConfig(url=URL, password_file=tmp_path / "nowhere"))


def test_a_database_that_cant_be_reached_is_named(tmp_path: Path) -> None:
    url = f"postgresql://pacsnode@127.0.0.1:{free_port()}/pacsnode"
    with pytest.raises(ConfigError, match=f"database.url: {url}: connection failed"):
        open_database(tmp_path, DatabaseConfig(url=url))


def test_names_are_held_until_their_transaction_or_session_ends(postgres: PostgresCluster) -> None:
    with postgres.database() as database:
        engine = postgres_engine(database, application_name="a")
        first, second = SessionLock(engine, "x"), SessionLock(engine, "x")
        assert first.hold() and first.hold() and not second.hold()
        with engine.connect() as connection:
            assert held_names(connection, ["x", "y"]) == {"x"}
        first.release()
        until_free(engine, "x")
        assert second.hold()
        second.release()

        held = threading.Event()

        def other() -> None:
            with engine.begin() as connection:
                hold_series(connection, ["2", "1"])
                held.set()

        thread = threading.Thread(target=other)
        with engine.begin() as connection:
            hold_series(connection, ["1"])
            thread.start()
            assert not held.wait(0.5)
        thread.join(30)
        assert held.is_set()
        engine.dispose()
