"""The judgement: which signals shorten the wait, which lengthen it, and that nothing waits for ever."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.config import SeriesConfig
from node.reasons import incomplete
from node.receive.completeness import (
    FEW_OBJECTS,
    READ_SECONDS,
    Associations,
    Headers,
    Inquiry,
    Judgement,
    Signals,
    evidence,
    expected,
    judge,
)

TIMING = SeriesConfig(
    quiet_seconds=30,
    released_quiet_seconds=5,
    expected_quiet_seconds=1,
    missing_wait_seconds=60,
    interrupted_wait_seconds=600,
    hard_limit_seconds=3600,
)
RELEASED, ABORTED = Associations(released=1), Associations(aborted=1)
SAYS_NOTHING = Headers()
LAST = 1000.0


def signals(**changes: Any) -> Signals:
    """100 instances over one association that was released when the last had come."""
    usual = Signals(
        version=1,
        received=100,
        opened_at=900.0,
        last_instance_at=LAST,
        ended_at=LAST,
        associations=RELEASED,
        headers=SAYS_NOTHING,
    )
    return replace(usual, **changes)


def completed(given: Signals) -> tuple[float, str]:
    """Seconds after the last event, and by which rule, when nothing else happens."""
    now = given.event_at
    for _look in range(1000):
        judgement = judge(given, TIMING, now)
        if judgement.rule is not None:
            return round(now - given.event_at, 3), judgement.rule
        assert judgement.look_at > now
        now = judgement.look_at
    raise AssertionError("it is never complete")


@pytest.mark.parametrize(
    ("changes", "after", "rule"),
    [
        ({}, 5, "association_release"),
        ({"associations": ABORTED}, 30, "quiet_time"),
        ({"associations": Associations(released=1, aborted=1)}, 30, "quiet_time"),
        ({"associations": Associations(lost=1)}, 30, "quiet_time"),
        ({"associations": Associations(open=["a"]), "ended_at": None}, 30, "quiet_time"),
        # the number expected is there
        ({"headers": Headers(series_count=100)}, 1, "expected_count"),
        ({"headers": Headers(acquisitions_count=100)}, 1, "expected_count"),
        ({"headers": Headers(series_count=100), "associations": ABORTED}, 1, "expected_count"),
        ({"headers": Headers(series_count=100), "ended_at": None}, 5, "expected_count"),
        ({"headers": Headers(series_count=100), "version": 2}, 5, "association_release"),
        # it isn't
        ({"headers": Headers(series_count=101)}, 60, "missing_limit"),
        ({"headers": Headers(acquisitions_count=101)}, 60, "missing_limit"),
        ({"headers": Headers(acquisitions_count=101), "associations": ABORTED}, 600, "missing_limit"),
        ({"headers": Headers(acquisitions_count=101), "ended_at": None}, 60, "missing_limit"),
        # it is contradicted
        ({"headers": Headers(acquisitions_count=99)}, 5, "association_release"),
        ({"headers": Headers(series_count=99, acquisitions_count=100)}, 1, "expected_count"),
        # gaps
        ({"headers": Headers(missing_positions_mm=(5.0,))}, 60, "missing_limit"),
        ({"headers": Headers(missing_positions_mm=(5.0,), series_count=100)}, 60, "missing_limit"),
        ({"headers": Headers(missing_instance_numbers=2)}, 30, "quiet_time"),
        ({"headers": Headers(missing_instance_numbers=2, series_count=100)}, 1, "expected_count"),
        # one object is a volume
        ({"headers": Headers(whole_objects=True), "received": 1}, 1, "multi_frame"),
        ({"headers": Headers(whole_objects=True), "received": 1, "ended_at": None}, 1, "multi_frame"),
        ({"headers": Headers(concatenation_count=4), "received": 3}, 60, "missing_limit"),
        # nothing could be read
        ({"headers": None, "reads_headers": False}, 5, "association_release"),
        ({"headers": None, "reading_since": LAST - READ_SECONDS}, 5, "association_release"),
    ],
)
def test_what_completes_it_and_when(changes: dict[str, Any], after: float, rule: str) -> None:
    assert completed(signals(**changes)) == (after, rule)


@pytest.mark.parametrize(
    ("inquiry", "headers", "after", "rule"),
    [
        (Inquiry("pacs", expected=100, asked_at=LAST), SAYS_NOTHING, 1, "expected_count"),
        (Inquiry("pacs", expected=102, asked_at=LAST), SAYS_NOTHING, 60, "missing_limit"),
        # the peer is believed before the headers are
        (Inquiry("pacs", expected=100, asked_at=LAST), Headers(acquisitions_count=300), 1, "expected_count"),
        (Inquiry("pacs", expected=102, asked_at=LAST), Headers(acquisitions_count=100), 60, "missing_limit"),
        # it has no more than we do: the gap isn't waited for, but nothing is hurried
        (
            Inquiry("pacs", expected=100, asked_at=LAST),
            Headers(missing_positions_mm=(1.0,)),
            5,
            "association_release",
        ),
        # it has fewer than we do, so it doesn't know
        (Inquiry("pacs", expected=40, asked_at=LAST), SAYS_NOTHING, 5, "association_release"),
        # no answer
        (Inquiry("pacs", next_at=LAST + 100, error="down"), SAYS_NOTHING, 5, "association_release"),
        (Inquiry("pacs", busy=True, wait_until=LAST + 30), SAYS_NOTHING, 30, "association_release"),
    ],
)
def test_what_a_query_ae_changes(inquiry: Inquiry, headers: Headers, after: float, rule: str) -> None:
    assert completed(signals(inquiry=inquiry, headers=headers)) == (after, rule)


def test_the_query_ae_is_asked_when_the_associations_have_ended() -> None:
    unasked = signals(inquiry=Inquiry("pacs", fetches_left=3))
    assert judge(unasked, TIMING, LAST + 0.9).ask is None
    assert judge(unasked, TIMING, LAST + 1).ask == "count"


def test_the_query_ae_is_asked_while_an_association_stays_open_and_quiet() -> None:
    unasked = signals(inquiry=Inquiry("pacs"), ended_at=None)
    assert judge(unasked, TIMING, LAST + 4.9).ask is None
    assert judge(unasked, TIMING, LAST + 5).ask == "count"


def test_an_answer_from_before_the_last_instance_is_asked_for_again() -> None:
    old = signals(inquiry=Inquiry("pacs", expected=100, asked_at=LAST - 1))
    assert judge(old, TIMING, LAST + 1).ask == "count"


def test_what_is_missing_is_fetched_when_it_is_not_on_its_way() -> None:
    short = signals(inquiry=Inquiry("pacs", expected=102, asked_at=LAST, fetches_left=1))
    assert judge(short, TIMING, LAST + 4.9) == Judgement(None, LAST + 5)
    assert judge(short, TIMING, LAST + 5).ask == "fetch"
    assert short.inquiry is not None
    later = replace(short, inquiry=replace(short.inquiry, next_at=LAST + 200))
    assert (
        judge(later, TIMING, LAST + 199).rule is None
    )  # an attempt is left: longer than missing_wait_seconds
    assert judge(later, TIMING, LAST + 200).ask == "fetch"
    spent = replace(short, inquiry=replace(short.inquiry, fetches_left=0))
    assert completed(spent) == (60, "missing_limit")


def test_the_headers_are_read_when_they_matter() -> None:
    unread = signals(headers=None)
    assert not judge(unread, TIMING, LAST + 0.9).read
    assert judge(unread, TIMING, LAST + 1).read
    still_sending = replace(unread, ended_at=None, received=FEW_OBJECTS + 1)
    assert not judge(still_sending, TIMING, LAST + 4.9).read
    assert judge(still_sending, TIMING, LAST + 5).read
    assert judge(replace(still_sending, received=1), TIMING, LAST + 1).read  # it may be multi-frame


def test_evidence_says_what_is_missing() -> None:
    headers = Headers(spacing_mm=2.5, missing_positions_mm=(12.5, 40.0), missing_instance_numbers=2)
    inquiry = Inquiry("pacs", expected=102, asked_at=LAST, fetches=3, fetched=0, error="fetch: refused")
    record = evidence(signals(headers=headers, inquiry=inquiry), "missing_limit", LAST + 60)
    assert record == {
        "rule": "missing_limit",
        "complete": False,
        "quiet_seconds": 60.0,
        "instances": 100,
        "associations": RELEASED.to_json(),
        "expected": 102,
        "expected_by": "c_find",
        "missing_instances": 2,
        "missing_positions": {"count": 2, "spacing_mm": 2.5, "along_normal_mm": [12.5, 40.0]},
        "missing_instance_numbers": 2,
        "query": {"peer": "pacs", "expected": 102, "fetches": 3, "fetched": 0, "error": "fetch: refused"},
    }
    assert [why.code for why in incomplete(record)] == ["c_find", "positions"]


@pytest.mark.parametrize(
    ("changes", "complete"),
    [
        ({}, None),
        ({"headers": Headers(series_count=100)}, True),
        ({"headers": Headers(whole_objects=True)}, True),
        ({"headers": Headers(series_count=101)}, False),
        ({"headers": Headers(series_count=99)}, None),
        ({"headers": Headers(missing_positions_mm=(1.0,), series_count=100)}, False),
        ({"headers": None}, None),
    ],
)
def test_evidence_says_whether_it_is_complete(changes: dict[str, Any], complete: bool | None) -> None:
    record = evidence(signals(**changes), "hard_limit", LAST)
    assert record["complete"] is complete
    assert bool(incomplete(record)) == (complete is False)


def test_evidence_lists_a_bounded_number_of_positions() -> None:
    headers = Headers(missing_positions_mm=tuple(float(i) for i in range(10_000)))
    record = evidence(signals(headers=headers), "missing_limit", LAST)
    assert record["missing_positions"]["count"] == 10_000
    assert len(record["missing_positions"]["along_normal_mm"]) == 50


counts = st.one_of(st.none(), st.integers(1, 300))
all_headers = st.builds(
    Headers,
    series_count=counts,
    acquisitions_count=counts,
    concatenation_count=counts,
    whole_objects=st.booleans(),
    missing_positions_mm=st.lists(st.floats(0, 100), max_size=3).map(tuple),
    missing_instance_numbers=st.integers(0, 9),
)
times = st.floats(LAST - 100, LAST + 5000)
inquiries = st.builds(
    Inquiry,
    st.just("pacs"),
    expected=counts,
    asked_at=times,
    busy=st.booleans(),
    wait_until=times,
    next_at=times,
    fetches_left=st.integers(0, 3),
)
everything = st.builds(
    Signals,
    version=st.integers(1, 3),
    received=st.integers(1, 300),
    opened_at=st.just(900.0),
    last_instance_at=st.floats(900, 4400),
    ended_at=st.one_of(st.none(), st.floats(900, 4400)),
    associations=st.sampled_from([RELEASED, ABORTED, Associations(open=["a"]), Associations()]),
    headers=st.one_of(st.none(), all_headers),
    reads_headers=st.booleans(),
    reading_since=st.one_of(st.none(), times),
    inquiry=st.one_of(st.none(), inquiries),
)


@given(everything, st.floats(900, 4499))
def test_whatever_the_signals_it_waits_no_longer_than_the_hard_limit(known: Signals, now: float) -> None:
    judgement = judge(known, TIMING, now)
    if judgement.rule is None:
        assert now < judgement.look_at <= known.opened_at + TIMING.hard_limit_seconds
    assert judge(known, TIMING, 4500.0).rule == "hard_limit"


@given(everything, st.floats(900, 4499))
def test_nothing_is_complete_before_it_was_quiet_for_a_moment(known: Signals, now: float) -> None:
    if now < known.event_at + 1 and judge(known, TIMING, now).rule is not None:
        raise AssertionError("too soon")


@given(everything)
def test_evidence_of_whatever_signals_is_consistent(known: Signals) -> None:
    record = evidence(known, "hard_limit", 5000.0)
    number = expected(known)
    assert (record["complete"] is False) == bool(incomplete(record))
    assert record.get("expected") == (number.count if number else None)
    assert number is None or number.count >= known.received
