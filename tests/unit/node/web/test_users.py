"""The file of users and tokens."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from node.errors import ConfigError
from node.users_cli import app
from node.web.users import Role, Users, UsersFile, read_users, write_users

PASSWORD = "a long enough one"


def run(*arguments: str, typed: str = "") -> str:
    done = CliRunner().invoke(app, list(arguments), input=typed, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command_writes_what_is_read(tmp_path: Path) -> None:
    file = str(tmp_path / "users.yaml")
    run("add", "anna", "--role", "operator", "--file", file, typed=f"{PASSWORD}\n{PASSWORD}\n")
    token = run("token", "prometheus", "--file", file).strip()
    users = read_users(Path(file))
    assert users.role_of("anna") is Role.OPERATOR
    assert users.verify("anna", PASSWORD)
    assert not users.verify("anna", PASSWORD + " ")
    assert not users.verify("nobody", PASSWORD)
    assert users.of_token(token) == ("prometheus", Role.VIEWER)
    assert users.of_token("") is None
    text = Path(file).read_text()
    assert PASSWORD not in text and token not in text
    assert stat.S_IMODE(Path(file).stat().st_mode) == 0o600
    assert "prometheus" in run("list", "--file", file)
    anna, prometheus = json.loads(run("list", "--file", file, "--json"))
    assert anna == {"name": "anna", "kind": "user", "role": "operator"}
    assert prometheus == {"name": "prometheus", "kind": "token", "role": "viewer"}
    made = json.loads(run("token", "prometheus", "--role", "admin", "--file", file, "--json"))
    assert read_users(Path(file)).of_token(made["token"]) == ("prometheus", Role.ADMIN)
    run("remove", "anna", "--file", file)
    assert read_users(Path(file)).role_of("anna") is None


@pytest.mark.parametrize(
    ("name", "password", "message"),
    [("anna", "short", "at least 10 characters"), ("an na", PASSWORD, "an na")],
)
def test_what_is_no_user(name: str, password: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Users().with_user(name, "viewer", password)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("users: {anna: {role: boss, password: $argon2id$x}}", r"users\.yaml: users\.anna\.role"),
        ("users: {anna: {role: viewer, password: secret}}", r"users\.anna\.password"),
        ("tokens: {p: {role: viewer, sha256: abc}}", r"tokens\.p\.sha256"),
        ("users: [", "not valid YAML"),
    ],
)
def test_a_broken_file_is_named_and_quotes_no_secret(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "users.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        UsersFile(path)
    assert "secret" not in str(caught.value)


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        UsersFile(tmp_path / "users.yaml")
    assert "pacsnode users add" in caught.value.hint


def test_changes_are_followed_and_mistakes_are_not(tmp_path: Path) -> None:
    path = tmp_path / "users.yaml"
    write_users(path, Users())
    file = UsersFile(path)
    write_users(path, Users().with_user("anna", "viewer", PASSWORD))
    assert file.current().role_of("anna") is Role.VIEWER
    path.write_text("users: nonsense")
    assert file.current().role_of("anna") is Role.VIEWER
    path.unlink()
    assert file.current().role_of("anna") is Role.VIEWER
    write_users(path, Users())
    assert file.current().role_of("anna") is None
