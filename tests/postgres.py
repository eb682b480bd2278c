"""A real PostgreSQL: a cluster of its own on a free port, as a user without privileges, with passwords.

Debian's package brings the programs and starts nothing that is used here.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text

from node.config import DatabaseConfig
from node.postgres import held_names, postgres_url
from node.triton_server import free_port
from tests.integration.receiving import wait_for

USER = "pacsnode"
SERVER_USER = "postgres"  # initdb refuses to be root
#: nothing that a test keeps survives the machine, so nothing needs to be synced; but the server may be killed
_SETTINGS = "-c fsync=off -c full_page_writes=off -c max_connections=300"


def program(name: str) -> str:
    """A program of PostgreSQL's; skips the test where there is none, except in CI, which must have it."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    path = str(found[0]) if found else shutil.which(name)
    if path is None and not os.environ.get("CI"):
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    assert path is not None, "CI must have PostgreSQL installed"
    return path


def until_free(engine: Engine, name: str) -> None:
    """Until nobody holds it: a session's end is its backend's, some time after its client's."""

    def is_free() -> bool:
        with engine.connect() as connection:
            return not held_names(connection, [name])

    wait_for(is_free, seconds=20)


class PostgresCluster:
    """A running server; ``database`` makes a database in it."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="pacsnode-pg-"))
        self._data = self._folder / "data"
        self.password_file = self._folder / "password"
        self.password_file.write_text(secrets.token_urlsafe(12) + "\n")
        self._as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._as_user = {"user": SERVER_USER, "group": SERVER_USER}
            shutil.chown(self._folder, SERVER_USER, SERVER_USER)
            shutil.chown(self.password_file, SERVER_USER, SERVER_USER)
        auth = ["-U", USER, "-A", "scram-sha-256", f"--pwfile={self.password_file}"]
        self._run("initdb", "-D", str(self._data), *auth, "-E", "UTF8", "--no-sync", "--no-locale")
        self.port = free_port()
        self.start()

    def start(self) -> None:
        """Start the server, which ends with the thread that calls this."""
        options = ["-p", str(self.port), "-k", str(self._folder), "-c", "listen_addresses=127.0.0.1"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "INT", program("postgres"), "-D", str(self._data)),
                    *(*options, *_SETTINGS.split()),
                ],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                **self._as_user,
            )
        wait_for(self._answers, seconds=60, what=f"PostgreSQL; see {self._folder / 'log'}")

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self._folder / "log").read_text()
        ready = [program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ready, check=False).returncode == 0

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """SIGQUIT: at once, as when the power fails. SIGINT: after telling every client. SIGKILL: the
        postmaster alone, whose other processes end when they notice."""
        self._process.send_signal(how)
        self._process.wait(60)

    def start_again(self, seconds: float = 60.0) -> None:
        """Start it however it ended: what is left of a killed one may keep it from starting at first."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self.start()
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    @contextmanager
    def database(self) -> Iterator[DatabaseConfig]:
        """An empty database, dropped afterwards whoever is still connected to it."""
        name = f"test_{secrets.token_hex(6)}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE template0")
        try:
            yield self.config(name)
        finally:
            self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def break_connections(self, database: DatabaseConfig, application_name: str) -> int:
        """End the sessions of these connections; returns how many there were."""
        engine = create_engine(postgres_url(database))
        with engine.connect() as connection:
            ended = connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = :name"),
                {"name": application_name},
            ).all()
        engine.dispose()
        return len(ended)

    def config(self, name: str) -> DatabaseConfig:
        url = f"postgresql://{USER}@127.0.0.1:{self.port}/{name}"
        return DatabaseConfig(url=url, password_file=self.password_file)

    def _execute(self, statement: str) -> None:
        engine: Engine = create_engine(postgres_url(self.config("postgres")), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))
        engine.dispose()

    def _run(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            [program(name), *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=self._folder,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"},
            text=True,
            timeout=60,
            check=False,
            **self._as_user,
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"
