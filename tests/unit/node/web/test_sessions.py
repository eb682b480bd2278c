"""Sessions and the limit on guessing."""

from __future__ import annotations

import pytest

from node.web import sessions
from node.web.sessions import LONGEST_WAIT_SECONDS, LoginLimit, Sessions


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_session_ends() -> None:
    clock = Clock()
    kept = Sessions(60.0, clock)
    secret = kept.begin("anna")
    found = kept.find(secret)
    assert found is not None and found.user == "anna"
    assert kept.find("") is None and kept.find(secret + "x") is None
    clock.now += 61.0
    assert kept.find(secret) is None
    again = kept.begin("anna")
    kept.end(again)
    assert kept.find(again) is None


def test_the_oldest_sessions_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MOST_SESSIONS", 2)
    kept = Sessions(60.0)
    first, second, third = (kept.begin("anna") for _ in range(3))
    assert [kept.find(one) is not None for one in (first, second, third)] == [False, True, True]


def test_guessing_waits_longer_each_time() -> None:
    clock = Clock()
    limit = LoginLimit(clock)
    waits = []
    for _ in range(14):
        limit.failed("10.0.0.1", "anna")
        waits.append(limit.wait_seconds("10.0.0.2", "anna"))
    assert waits[:4] == [0.0] * 4
    assert waits[4:8] == [2.0, 4.0, 8.0, 16.0]
    assert waits[-1] == LONGEST_WAIT_SECONDS
    assert limit.wait_seconds("10.0.0.2", "otto") == 0.0
    clock.now += LONGEST_WAIT_SECONDS
    assert limit.wait_seconds("anna") == 0.0
    limit.succeeded("anna")
    limit.failed("anna")
    assert limit.wait_seconds("anna") == 0.0


def test_a_flood_of_names_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MOST_KEYS", 10)
    limit = LoginLimit()
    for number in range(100):
        limit.failed(f"name{number}")
    assert len(limit._failures) == 10
