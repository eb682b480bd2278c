"""``pacsnode users``: the file that ``web.users`` names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from node.cli_options import JsonOption
from node.web.users import Entry, RoleName, Users, read_users, write_users

app = typer.Typer(no_args_is_help=True)
console = Console(markup=False, emoji=False, highlight=False)

FileOption = Annotated[Path, typer.Option("--file", "-f", help="The file that web.users names.")]
RoleOption = Annotated[
    RoleName, typer.Option("--role", help="viewer sees, operator also changes, admin does all.")
]
PasswordFile = Annotated[
    Path | None, typer.Option(help="Take the password from this file's first line instead of asking.")
]


@app.command("add")
def add(
    name: str,
    file: FileOption,
    role: RoleOption = "viewer",
    password_file: PasswordFile = None,
    as_json: JsonOption = False,
) -> None:
    """Add a user, or give one another password and role. Asks for the password."""
    if password_file is None:
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    else:
        password = (password_file.read_text(encoding="utf-8").splitlines() or [""])[0]
    write_users(file, _existing(file).with_user(name, role, password))
    if as_json:
        print(json.dumps({"name": name, "kind": "user", "role": role}))
    else:
        console.print(f"{file}: {name} is {role}")


@app.command("token")
def token(name: str, file: FileOption, role: RoleOption = "viewer", as_json: JsonOption = False) -> None:
    """Make an API token, print it once, and keep its hash. One of that name is replaced."""
    users, made = _existing(file).with_token(name, role)
    write_users(file, users)
    print(json.dumps({"name": name, "kind": "token", "role": role, "token": made}) if as_json else made)


@app.command("remove")
def remove(name: str, file: FileOption, as_json: JsonOption = False) -> None:
    """Remove a user or a token; its sessions end with its next request."""
    write_users(file, read_users(file).without(name))
    if as_json:
        print(json.dumps({"name": name, "removed": True}))
    else:
        console.print(f"{file}: {name} is removed")


@app.command("list")
def show(file: FileOption, as_json: JsonOption = False) -> None:
    """List users and tokens."""
    users = read_users(file)
    listed: tuple[tuple[str, Mapping[str, Entry]], ...] = (("user", users.users), ("token", users.tokens))
    rows = [
        {"name": name, "kind": kind, "role": entry.role}
        for kind, entries in listed
        for name, entry in sorted(entries.items())
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table("name", "kind", "role")
    for row in rows:
        table.add_row(*row.values())
    console.print(table)


def _existing(file: Path) -> Users:
    return read_users(file) if file.exists() else Users()
