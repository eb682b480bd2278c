"""Completeness over time: senders that pause, die and come back, many series, restarts."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from pydicom.uid import EnhancedCTImageStorage, generate_uid
from sqlalchemy import insert, select

from node.config import QueryPeer
from node.database import inquiries, series
from node.receive.series import instance_paths
from tests.unit.node.receive.conftest import TIMING, Bench, Sent
from tests.unit.node.receive.test_spool import incoming
from tests.unit.node.rows import series_row

FIVE_MINUTES = 300.0


def send(
    bench: Bench,
    uid: str,
    numbers: range | list[int],
    association: str,
    *,
    released: bool | None = True,
    **changes: Any,
) -> None:
    """One association with so many slices; released None: it stays open."""
    for number in numbers:
        sent = incoming(uid, number, **changes)
        bench.store(
            Sent(
                sent.sop_class_uid, sent.sop_instance_uid, sent.transfer_syntax_uid, sent.dataset, association
            )
        )
    if released is not None:
        bench.tracker.association_ended(association, released=released)


def wait(bench: Bench, seconds: float, step: float = 1.0) -> None:
    """Let time pass; the tracker looks whenever it wants to."""
    end = bench.now + seconds
    while bench.now < end:
        bench.now = min(end, bench.now + step)
        bench.check()


def evidence(bench: Bench, uid: str = "1.2.3", version: int = 1) -> dict[str, Any]:
    key = (series.c.series_instance_uid == uid, series.c.version == version)
    with bench.engine.connect() as connection:
        found: dict[str, Any] = connection.execute(select(series.c.evidence).where(*key)).scalar_one()
    return found


def test_one_series_over_three_associations(bench: Bench) -> None:
    for name, numbers in (("a1", range(10)), ("a2", range(10, 20)), ("a3", range(20, 30))):
        send(bench, "1.2.3", numbers, name, ImagesInAcquisition=30)
        wait(bench, 20)  # longer than a release is waited for, when nothing is missing
    assert bench.completed == [("1.2.3", 1)]
    record = evidence(bench)
    assert (record["rule"], record["complete"], record["expected"]) == ("expected_count", True, 30)
    assert record["associations"]["released"] == 3


def test_three_series_interleaved_in_one_association(bench: Bench) -> None:
    uids = ["1.2.3", "1.2.4", "1.2.5"]
    for number in range(30):
        send(bench, uids[number % 3], [number // 3], "a1", released=None, NumberOfSeriesRelatedInstances=10)
    wait(bench, 4)
    assert bench.completed == []  # the association is open, and may bring more
    bench.tracker.association_ended("a1", released=True)
    wait(bench, 1)
    assert sorted(bench.completed) == [(uid, 1) for uid in uids]
    assert {evidence(bench, uid)["rule"] for uid in uids} == {"expected_count"}


@pytest.mark.parametrize(("known", "versions"), [({"ImagesInAcquisition": 40}, 1), ({}, 2)])
def test_a_sender_that_dies_and_comes_back_after_five_minutes(
    bench: Bench, known: dict[str, Any], versions: int
) -> None:
    send(bench, "1.2.3", range(20), "a1", released=False, **known)
    wait(bench, FIVE_MINUTES)
    send(bench, "1.2.3", range(40), "a2", **known)  # it starts over
    wait(bench, 40)
    assert bench.completed == [("1.2.3", version + 1) for version in range(versions)]
    with bench.engine.connect() as connection:
        assert len(instance_paths(connection, bench.data_dir, "1.2.3", versions)) == 40
    assert evidence(bench, version=versions)["instances"] == 40
    assert evidence(bench)["complete"] is (True if known else None)


def test_a_sender_that_never_comes_back_leaves_what_is_missing_on_record(bench: Bench) -> None:
    send(bench, "1.2.3", range(20), "a1", released=False, ImagesInAcquisition=40)
    wait(bench, 599, step=10)
    assert bench.completed == []
    wait(bench, 1)
    record = evidence(bench)
    assert record["rule"] == "missing_limit"
    assert record["complete"] is False
    assert (record["expected"], record["instances"], record["missing_instances"]) == (40, 20, 20)
    assert record["expected_by"] == "images_in_acquisition"
    assert bench.metrics.series_incomplete.labels(by="images_in_acquisition")._value.get() == 1


@pytest.mark.parametrize("wrong", [3, 1, 0, -1, 31, 10**9, "x"])
def test_a_wrong_number_of_images_costs_a_minute_at_most(bench: Bench, wrong: Any) -> None:
    sent = [incoming("1.2.3", number, AcquisitionNumber=1) for number in range(30)]
    text = str(wrong).encode()
    text += b" " * (len(text) % 2)
    element = b"\x20\0\x02\x10IS" + len(text).to_bytes(2, "little") + text
    for one in sent:
        at = one.dataset.index(b"\x28\0\x10\0US")
        data = one.dataset[:at] + element + one.dataset[at:]
        bench.store(Sent(one.sop_class_uid, one.sop_instance_uid, one.transfer_syntax_uid, data))
    bench.tracker.association_ended("a1", released=True)
    wait(bench, 60)
    assert bench.completed == [("1.2.3", 1)]
    assert evidence(bench)["rule"] == ("missing_limit" if wrong == 31 else "association_release")


def test_slices_in_random_order_with_pauses(bench: Bench) -> None:
    numbers = list(range(60))
    random.Random(3).shuffle(numbers)  # noqa: S311 - not for cryptography
    for start in range(0, 60, 12):
        send(bench, "1.2.3", numbers[start : start + 12], f"a{start}")
        wait(bench, 30)
    # once enough is there the gaps tell; before that half a stack looks like any other series
    last = bench.completed[-1]
    assert evidence(bench, version=last[1])["instances"] == 60
    assert "missing_positions" not in evidence(bench, version=last[1])


def test_a_gap_is_waited_for_and_recorded(bench: Bench) -> None:
    send(bench, "1.2.3", [n for n in range(30) if n not in (11, 12)], "a1")
    wait(bench, 59)
    assert bench.completed == []
    wait(bench, 1)
    record = evidence(bench)
    assert (record["rule"], record["complete"]) == ("missing_limit", False)
    assert record["missing_positions"] == {
        "count": 2,
        "spacing_mm": 2.5,
        "along_normal_mm": [27.5, 30.0],
    }
    assert bench.metrics.series_incomplete.labels(by="positions")._value.get() == 1


def test_a_gap_that_is_filled_ends_the_wait(bench: Bench) -> None:
    send(bench, "1.2.3", [n for n in range(30) if n != 11], "a1")
    wait(bench, 40)
    send(bench, "1.2.3", [11], "a2")
    wait(bench, 5)
    assert bench.completed == [("1.2.3", 1)]
    assert evidence(bench)["rule"] == "association_release"


def test_an_enhanced_object_is_complete_at_once(bench: Bench) -> None:
    enhanced = {"SOPClassUID": EnhancedCTImageStorage, "NumberOfFrames": 100}
    send(bench, "1.2.3", [1], "a1", **enhanced)
    send(bench, "1.2.4", [1], "a2", released=None, **enhanced)
    wait(bench, 1)
    assert sorted(bench.completed) == [("1.2.3", 1), ("1.2.4", 1)]
    assert evidence(bench)["rule"] == "multi_frame"
    assert evidence(bench)["complete"] is True


def test_a_part_of_a_concatenation_waits_for_the_others(bench: Bench) -> None:
    enhanced = {"SOPClassUID": EnhancedCTImageStorage, "NumberOfFrames": 100, "ConcatenationUID": "1.9"}
    for number in (1, 2, 3):
        assert bench.completed == []
        send(
            bench, "1.2.3", [number], f"a{number}",
            **enhanced, InConcatenationNumber=number, InConcatenationTotalNumber=3,
        )  # fmt: skip
        wait(bench, 20 if number < 3 else 1)
    assert bench.completed == [("1.2.3", 1)]


def test_a_late_instance_makes_a_version_that_nothing_hurries(bench: Bench) -> None:
    send(bench, "1.2.3", range(10), "a1", NumberOfSeriesRelatedInstances=10)
    wait(bench, 1)
    assert bench.completed == [("1.2.3", 1)]
    send(bench, "1.2.3", [10], "a2", NumberOfSeriesRelatedInstances=11)
    wait(bench, 4)
    assert len(bench.completed) == 1
    wait(bench, 1)
    assert bench.completed == [("1.2.3", 1), ("1.2.3", 2)]


def test_waiting_for_what_is_missing_survives_a_restart(bench: Bench) -> None:
    send(bench, "1.2.3", [n for n in range(30) if n != 11], "a1")
    wait(bench, 30)
    bench.restart()
    wait(bench, 29)
    assert bench.completed == []
    wait(bench, 1)
    assert bench.completed == [("1.2.3", 1)]
    assert evidence(bench)["missing_positions"]["count"] == 1


def test_the_hard_limit_ends_every_wait(bench: Bench) -> None:
    for minute in range(61):
        send(bench, "1.2.3", [2 * minute], f"a{minute}", NumberOfSeriesRelatedInstances=1000)
        wait(bench, 59, step=10)
    assert bench.completed == []
    wait(bench, 1)
    assert bench.completed == [("1.2.3", 1)]
    assert evidence(bench)["rule"] == "hard_limit"
    assert evidence(bench)["missing_instances"] == 939


def test_a_fetch_that_killed_the_process_counts(bench: Bench) -> None:
    """The attempt is on record before it begins, so a restart in the middle doesn't repeat it for ever."""
    bench.query = {"pacs": QueryPeer(ae_title="PACS", host="127.0.0.1", port=1, max_fetches=2)}
    bench.restart()
    send(bench, "1.2.3", range(10), "a1")
    with bench.engine.begin() as connection:
        values = {"series_instance_uid": "1.2.3", "version": 1, "peer": "pacs", "expected": 12, "fetches": 2}
        connection.execute(insert(inquiries).values(values | {"asked_at": bench.now}))
    bench.restart()
    wait(bench, 60)
    record = evidence(bench)
    assert (record["rule"], record["missing_instances"]) == ("missing_limit", 2)
    assert record["query"] == {"peer": "pacs", "expected": 12, "fetches": 2, "fetched": 0}


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)  # of time, in which PostgreSQL is its own
def test_a_thousand_series_open_at_once(bench: Bench) -> None:
    for number in range(1000):
        send(bench, f"1.2.{number}", [1], f"a{number}", released=None)
    wait(bench, 2)
    for number in range(1000):
        bench.tracker.association_ended(f"a{number}", released=True)
    wait(bench, 5)
    assert len(bench.completed) == len(set(bench.completed)) == 1000


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)  # of time, in which PostgreSQL is its own
def test_what_isn_t_due_costs_nothing(bench: Bench) -> None:
    """A look while thousands are open takes as long as while ten are: only what is due is read."""

    def look() -> float:
        bench.check()
        started = time.perf_counter()
        for _time in range(20):
            bench.tracker.check()
        return time.perf_counter() - started

    def open_many(count: int, prefix: str) -> None:
        rows = [
            series_row(
                series_instance_uid=f"{prefix}.{number}",
                state="open",
                opened_at=bench.now,
                last_instance_at=bench.now,
                check_at=bench.now + 100,
                evidence={"associations": {"open": ["a"]}},
            )
            for number in range(count)
        ]
        with bench.engine.begin() as connection:
            connection.execute(insert(series), rows)

    open_many(10, generate_uid())
    few = look()
    open_many(20_000, generate_uid())
    assert look() < 10 * few


def test_a_series_of_many_instances_is_looked_at_without_reading_it_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(bench, "1.2.3", [n for n in range(200) if n != 11], "a1")
    wait(bench, 2)

    def never(*_: Any) -> None:
        raise AssertionError("it was read before")

    monkeypatch.setattr("node.receive.header_reader.read_values", never)
    wait(bench, 50)
    assert bench.completed == []
    assert TIMING.missing_wait_seconds == 60


def test_news_is_judged_by_however_many_are_due(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.receive.judging._AT_ONCE", 2)
    waiting = {"state": "open", "opened_at": bench.now, "last_instance_at": bench.now, "check_at": bench.now}
    whole = {"released_at": bench.now - 100, "last_instance_at": bench.now - 100, "check_at": bench.now + 999}
    evidence = {"associations": {"released": 1}}
    rows = [series_row(series_instance_uid=f"1.2.{number}", **waiting) for number in range(5)]
    rows.append(series_row(series_instance_uid="1.2.9", **waiting | whole, evidence=evidence))
    with bench.engine.begin() as connection:
        for row in rows:
            connection.execute(insert(series).values(row))
    bench.tracker.check()
    assert bench.completed == []
    bench.tracker._judging.news("1.2.9")
    bench.check()
    assert bench.completed == [("1.2.9", 1)]
