"""Who may use the web pages: a YAML file of users, API tokens and roles.

In: the file ``web.users`` (written by ``pacsnode users``).  Out: the role of a name and password, or of a
token.

    users:
      anna: {role: operator, password: "$argon2id$v=19$…"}
    tokens:
      prometheus: {role: viewer, sha256: "…"}

A changed file is used from the next request on; while it is broken the one before stays in use. Tokens are
256 random bits, so that their SHA-256 can't be guessed back; passwords are hashed by Argon2id (RFC 9106).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import threading
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import structlog
import yaml
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from node.errors import ConfigError
from node.files import fsync_folder

log = structlog.get_logger("node.web")

_HASHER = PasswordHasher()
SHORTEST_PASSWORD = 10

RoleName = Literal["viewer", "operator", "admin"]
UserName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]


@cache
def _nobody() -> str:
    """Verified against when nobody has the name, so that a name can't be told by the time it takes."""
    return _HASHER.hash(secrets.token_hex())


class Role(IntEnum):
    """Each may do what those before it may."""

    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Entry(_Model):
    """What a user and a token have."""

    role: RoleName


class User(Entry):
    """password: Argon2id in its usual notation."""

    password: str = Field(pattern=r"^\$argon2id\$")


class Token(Entry):
    """sha256: of the token, in hexadecimal digits."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Users(_Model):
    """The whole file."""

    users: dict[UserName, User] = Field(default_factory=dict)
    tokens: dict[UserName, Token] = Field(default_factory=dict)

    def role_of(self, name: str) -> Role | None:
        """The role of a user who has proved to be one; None when there is none of that name any more."""
        user = self.users.get(name)
        return Role[user.role.upper()] if user is not None else None

    def verify(self, name: str, password: str) -> bool:
        """Whether it is this user's password. Takes as long for a name that nobody has."""
        user = self.users.get(name)
        try:
            _HASHER.verify(user.password if user is not None else _nobody(), password)
        except (VerificationError, InvalidHashError):
            return False
        return user is not None

    def of_token(self, token: str) -> tuple[str, Role] | None:
        """(name, role) of an API token."""
        digest = token_sha256(token)
        found = None
        for name, one in self.tokens.items():
            if hmac.compare_digest(one.sha256, digest):
                found = (name, Role[one.role.upper()])
        return found

    def with_user(self, name: str, role: RoleName, password: str) -> Users:
        """Raises ConfigError for a password that is too short, or a name that isn't one."""
        if len(password) < SHORTEST_PASSWORD:
            raise ConfigError(f"the password of {name!r} must have at least {SHORTEST_PASSWORD} characters")
        added = {name: {"role": role, "password": _HASHER.hash(password)}}
        return self._changed(users=self.model_dump()["users"] | added)

    def with_token(self, name: str, role: RoleName) -> tuple[Users, str]:
        """Also the new token, which nobody can read again. Raises ConfigError for a name that isn't one."""
        token = secrets.token_urlsafe(32)
        added = {name: {"role": role, "sha256": token_sha256(token)}}
        return self._changed(tokens=self.model_dump()["tokens"] | added), token

    def without(self, name: str) -> Users:
        """Raises ConfigError when neither a user nor a token has the name."""
        if name not in self.users and name not in self.tokens:
            known = sorted({*self.users, *self.tokens})
            raise ConfigError(f"no user or token is named {name!r}; there are {', '.join(known) or 'none'}")
        kept = self.model_dump()
        return self._changed(**{kind: {k: v for k, v in kept[kind].items() if k != name} for kind in kept})

    def _changed(self, **kinds: object) -> Users:
        try:
            return Users.model_validate(self.model_dump() | kinds)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def token_sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def read_users(path: Path) -> Users:
    """Raises ConfigError naming file and field."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}",
            hint=f"make it: pacsnode users add NAME --file {path}",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid YAML") from error
    try:
        return Users.model_validate(raw or {})
    except ValidationError as error:  # its own text would quote hashes
        fields = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: {fields}") from None


def write_users(path: Path, users: Users) -> None:
    """Replace the file as a whole; readable by its owner only. Raises OSError."""
    partial = path.with_name(f".{path.name}.partial")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(yaml.safe_dump(users.model_dump(), sort_keys=True))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    fsync_folder(path.parent)


class UsersFile:
    """The users as the file has them now."""

    def __init__(self, path: Path | None) -> None:
        """path: None for no users at all. Raises ConfigError when it can't be used."""
        self._path = path
        self._lock = threading.Lock()
        self._seen = self._signature()
        self._users = read_users(path) if path is not None else Users()
        if path is not None:
            _nobody()  # made now, not when the first name that nobody has is tried

    def current(self) -> Users:
        """Read again when the file has changed. Never raises: what can't be used is logged."""
        with self._lock:
            seen = self._signature()
            if self._path is not None and seen != self._seen:
                self._seen = seen
                try:
                    self._users = read_users(self._path)
                except ConfigError as error:
                    log.error("users_reload_failed", reason=str(error), hint="the users before stay in use")
                else:
                    log.info("users_reloaded", users=len(self._users.users), tokens=len(self._users.tokens))
            return self._users

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat() if self._path is not None else None
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_size, found.st_ino) if found is not None else None
