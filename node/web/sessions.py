"""Logging in: sessions of browsers, and a limit on guessing.

In memory: a restart of the node ends all sessions, and two nodes have their own. Of a session's secret only
the hash is kept.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from node.web.users import Role, token_sha256

#: what is kept of sessions and of guesses; the oldest go
MOST_SESSIONS = 10_000
MOST_KEYS = 10_000
#: failures within FORGET_SECONDS before a key has to wait, at first WAIT_SECONDS and twice as long each time
FREE_FAILURES = 5
WAIT_SECONDS = 2.0
LONGEST_WAIT_SECONDS = 60.0  # a name can be locked by guessing at it: not for long
FORGET_SECONDS = 1800.0

Clock = Callable[[], float]


@dataclass(frozen=True)
class Session:
    """ends_at: by the clock of ``Sessions``.  role: as an identity provider said at the login; None: as the
    users' file says now."""

    user: str
    ends_at: float
    role: Role | None = None


class Sessions:
    """Who is logged in."""

    def __init__(self, seconds: float, clock: Clock = time.monotonic) -> None:
        self.seconds = round(seconds)
        self._clock = clock
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, user: str, role: Role | None = None) -> str:
        """The new session's secret, for the cookie."""
        secret = secrets.token_urlsafe(32)
        session = Session(user, self._clock() + self.seconds, role)
        with self._lock:
            self._sessions[token_sha256(secret)] = session
            while len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)
        return secret

    def find(self, secret: str) -> Session | None:
        """None when there is none, or when it is over."""
        with self._lock:
            session = self._sessions.get(token_sha256(secret))
            if session is not None and session.ends_at <= self._clock():
                del self._sessions[token_sha256(secret)]
                return None
            return session

    def end(self, secret: str) -> None:
        with self._lock:
            self._sessions.pop(token_sha256(secret), None)


@dataclass
class _Failures:
    count: int = 0
    last: float = 0.0
    wait_until: float = 0.0


class LoginLimit:
    """How long a key (an address, a name) that failed to log in has to wait."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[Hashable, _Failures] = OrderedDict()
        self._lock = threading.Lock()

    def wait_seconds(self, *keys: Hashable) -> float:
        """0 when all of the keys may try."""
        now = self._clock()
        with self._lock:
            waits = [self._failures[key].wait_until - now for key in keys if key in self._failures]
        return max([0.0, *waits])

    def failed(self, *keys: Hashable) -> None:
        now = self._clock()
        with self._lock:
            for key in keys:
                one = self._failures.pop(key, None)
                if one is None or now - one.last > FORGET_SECONDS:
                    one = _Failures()
                one.count, one.last = one.count + 1, now
                beyond = one.count - FREE_FAILURES
                if beyond >= 0:
                    one.wait_until = now + min(WAIT_SECONDS * 2.0 ** min(beyond, 20), LONGEST_WAIT_SECONDS)
                self._failures[key] = one
            while len(self._failures) > MOST_KEYS:
                self._failures.popitem(last=False)

    def succeeded(self, *keys: Hashable) -> None:
        with self._lock:
            for key in keys:
                self._failures.pop(key, None)
