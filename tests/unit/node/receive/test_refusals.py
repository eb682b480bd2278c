"""What was turned away is remembered: counted, bounded, and never waited for."""

from __future__ import annotations

import time
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.exc import OperationalError

from node.audit_message import Peer
from node.database import refusals
from node.reasons import Kind
from node.receive import refusals as module
from node.receive.refusals import Refusals
from tests.integration.receiving import wait_for


def rows(engine: Engine) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        found = connection.execute(select(refusals).order_by(refusals.c.last_at.desc()))
        return [dict(row._mapping) for row in found]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def kept(engine: Engine) -> Refusals:
    return Refusals(engine, clock=Clock())


def test_the_same_again_is_counted(engine: Engine, kept: Refusals) -> None:
    for detail in ("first", "second"):
        kept.note(Kind.REJECTED, "calling_ae_title", detail, Peer("NOBODY", "192.0.2.1"))
    kept.look()
    kept.note(Kind.REJECTED, "calling_ae_title", "third", Peer("NOBODY", "192.0.2.1"))
    kept.note(Kind.REFUSED, "out_of_space", "full", Peer("SCANNER", "192.0.2.2"))
    kept.look()
    full, nobody = rows(engine)
    assert (full["kind"], full["code"], full["count"]) == ("instance refused", "out_of_space", 1)
    assert (nobody["count"], nobody["first_at"], nobody["last_at"]) == (3, 101.0, 103.0)
    assert nobody["reason"] == "third"


def test_a_crowd_stays_bounded(engine: Engine, kept: Refusals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 70)
    for number in range(100):
        kept.note(Kind.REJECTED, "calling_ae_title", "", Peer(f"AE{number}", "192.0.2.1"))
    kept.look()
    assert len(rows(engine)) == 65
    assert rows(engine)[0]["calling_ae_title"] == "several" and rows(engine)[0]["count"] == 36
    for number in range(100, 130):
        kept.note(Kind.REJECTED, "calling_ae_title", "", Peer(f"AE{number}", "192.0.2.1"))
    kept.look()
    assert len(rows(engine)) == 70
    assert rows(engine)[0]["calling_ae_title"] == "AE129"


def test_what_cannot_be_written_waits(
    engine: Engine, kept: Refusals, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OperationalError("INSERT", {}, Exception("database or disk is full"))

    kept.note(Kind.REFUSED, "out_of_space", "old", Peer("SCANNER", "192.0.2.2"))
    with monkeypatch.context() as broken:
        broken.setattr(kept, "_write", full)
        kept.look()
    kept.note(Kind.REFUSED, "out_of_space", "new", Peer("SCANNER", "192.0.2.2"))
    kept.look()
    (row,) = rows(engine)
    assert (row["count"], row["first_at"], row["last_at"], row["reason"]) == (2, 101.0, 102.0, "new")


def test_the_first_is_written_at_once_and_the_next_later(
    engine: Engine, kept: Refusals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_pause_seconds", 60.0)
    kept.start()
    time.sleep(0.3)  # it has looked, and found nothing
    for number in range(3):
        kept.note(Kind.REJECTED, "calling_ae_title", "", Peer("NOBODY", "192.0.2.1"))
        wait_for(lambda: rows(engine), what="the row")
        assert rows(engine)[0]["count"] == 1, number
    kept.stop()
    assert rows(engine)[0]["count"] == 3
