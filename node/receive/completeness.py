"""When a series version is whole: signals in, a judgement and its evidence out. Pure: no clock, no I/O.

In: how its associations ended, what its headers say (``headers``), what the query AE says (``inquiry``), and
the times of its instances.  Out: the rule that completes it, or how long to wait and what to find out
meanwhile.

    multi_frame          its objects hold whole volumes, no part of a concatenation is missing, and nothing
                         came for ``expected_quiet_seconds``
    expected_count       as many instances as expected are there, all associations ended (or nothing came for
                         ``released_quiet_seconds``), and nothing came for ``expected_quiet_seconds``
    association_release  every association that sent to it was released normally, and nothing came for
                         ``released_quiet_seconds``
    quiet_time           nothing came for ``quiet_seconds``
    missing_limit        something is known to be missing, and nothing came for ``missing_wait_seconds``, or
                         ``interrupted_wait_seconds`` when an association was aborted or lost
    hard_limit           ``hard_limit_seconds`` have passed since its first instance

The number expected is, first of these: the query AE's count, Number of Series Related Instances (0020,1209),
the parts of its concatenations, Images in Acquisition (0020,1002) summed over its acquisitions. A number
smaller than what is there is contradicted and doesn't count. What is missing only lengthens the wait: a wrong
number costs time, never the series. A later version proves that an earlier one was judged too soon, so
nothing shortens its wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from node.config import SeriesConfig

#: a series with so few objects may be multi-frame: its headers are read while its association is open, too
FEW_OBJECTS = 8
#: headers are read within milliseconds to seconds; without them after so long, judge by what else is known
READ_SECONDS = 60.0
#: the longest wait for an answer before looking again
LOOK_SECONDS = 60.0
#: positions listed in the evidence
LISTED_POSITIONS = 50


@dataclass
class Associations:
    """How the associations that sent to one series version ended so far."""

    open: list[str] = field(default_factory=list)
    released: int = 0
    aborted: int = 0
    lost: int = 0

    @classmethod
    def of(cls, evidence: Mapping[str, Any] | None) -> Associations:
        """From a series row's ``evidence``."""
        return cls(**(evidence or {}).get("associations", {}))

    def to_json(self) -> dict[str, Any]:
        return {
            "open": self.open,
            "released": self.released,
            "aborted": self.aborted,
            "lost": self.lost,
        }

    @property
    def all_released(self) -> bool:
        return self.released > 0 and not self.open and not self.interrupted

    @property
    def interrupted(self) -> bool:
        """Whether one was aborted, lost, or open when the node died."""
        return self.aborted + self.lost > 0


@dataclass(frozen=True)
class Headers:
    """What the headers of a series' instances say together. None: they don't say, or contradict each other.

    series_count: Number of Series Related Instances.  acquisitions_count: Images in Acquisition, summed.
    concatenation_count: objects, if every concatenation were whole.  whole_objects: see ``multi_frame``.
    spacing_mm, missing_positions_mm: of an otherwise regular stack, along its normal.
    missing_instance_numbers: gaps in Instance Number that no geometry overrules; weak evidence.
    """

    unreadable: int = 0
    series_count: int | None = None
    acquisitions_count: int | None = None
    concatenation_count: int | None = None
    whole_objects: bool = False
    spacing_mm: float | None = None
    missing_positions_mm: tuple[float, ...] = ()
    missing_instance_numbers: int = 0


@dataclass(frozen=True)
class Inquiry:
    """What the query AE said of a series version, and what it may still be asked.

    expected: its count, None when it has none.  asked_at: when the question was put that it answered.
    busy: a question or a fetch is under way, to be waited for until ``wait_until``.  next_at: not to be asked
    before.  fetches_left: attempts.
    """

    peer: str
    expected: int | None = None
    asked_at: float = 0.0
    busy: bool = False
    wait_until: float = 0.0
    next_at: float = 0.0
    fetches_left: int = 0
    fetches: int = 0
    fetched: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Signals:
    """All that is known of an open series version. Times are seconds since the epoch.

    ended_at: when its last association ended; None while one is open.
    headers: of all instances received; None until these were read, which began at ``reading_since``, or where
    they aren't read at all (``reads_headers``).
    inquiry: None when no query AE is configured for its sender.
    """

    version: int
    received: int
    opened_at: float
    last_instance_at: float
    ended_at: float | None = None
    associations: Associations = field(default_factory=Associations)
    headers: Headers | None = None
    reads_headers: bool = True
    reading_since: float | None = None
    inquiry: Inquiry | None = None

    @property
    def ended(self) -> bool:
        return self.ended_at is not None

    @property
    def event_at(self) -> float:
        """When the last instance came or, if that was later, the last association ended."""
        return max(self.last_instance_at, self.ended_at or 0.0)


@dataclass(frozen=True)
class Judgement:
    """rule: what completes the version now; None: wait, and judge again at ``look_at`` or on news.

    read: the headers are needed.  ask: put the question to the query AE, or have it send what is missing.
    """

    rule: str | None
    look_at: float
    read: bool = False
    ask: Literal["count", "fetch"] | None = None


@dataclass(frozen=True)
class Expected:
    """How many instances there should be, and who says so."""

    count: int
    by: Literal["c_find", "series_count", "concatenation", "images_in_acquisition"]


def expected(signals: Signals) -> Expected | None:
    """The number expected, from the best source that isn't contradicted."""
    headers = signals.headers or Headers()
    inquiry = signals.inquiry
    sources = (
        Expected(inquiry.expected, "c_find") if inquiry and inquiry.expected is not None else None,
        Expected(headers.series_count, "series_count") if headers.series_count else None,
        Expected(headers.concatenation_count, "concatenation") if headers.concatenation_count else None,
        Expected(headers.acquisitions_count, "images_in_acquisition") if headers.acquisitions_count else None,
    )
    return next((one for one in sources if one is not None and one.count >= signals.received), None)


def judge(signals: Signals, config: SeriesConfig, now: float) -> Judgement:
    """What to do with an open series version at ``now``."""
    hard_at = signals.opened_at + config.hard_limit_seconds
    if now >= hard_at:
        return Judgement("hard_limit", now)
    calm_at = signals.event_at + settle_seconds(config)
    if now < calm_at:
        return Judgement(None, min(calm_at, hard_at))
    settled_at = calm_at if signals.ended else signals.last_instance_at + config.released_quiet_seconds
    wants_headers = signals.reads_headers and (now >= settled_at or signals.received <= FEW_OBJECTS)
    if signals.headers is None and wants_headers:
        since = now if signals.reading_since is None else signals.reading_since
        if now < since + READ_SECONDS:
            return Judgement(None, min(since + READ_SECONDS, hard_at), read=True)
    due, rule = _due(signals, config)
    look_at = [hard_at, now + config.quiet_seconds]
    if now < settled_at:
        look_at.append(settled_at)
    elif signals.inquiry is not None:
        judgement = _inquire(signals, signals.inquiry, config, now)
        if judgement is not None:
            return judgement
        if not signals.inquiry.busy:
            if _may_fetch(signals, signals.inquiry):
                fetch_at = max(signals.inquiry.next_at, _fetch_at(signals, config))
                look_at.append(fetch_at)
                due = max(due, fetch_at)
            if signals.inquiry.next_at > now:
                look_at.append(signals.inquiry.next_at)
    return Judgement(rule, now) if now >= due else Judgement(None, min(due, *look_at))


def _inquire(signals: Signals, inquiry: Inquiry, config: SeriesConfig, now: float) -> Judgement | None:
    """Ask, or wait for the answer; None: there is nothing to ask now."""
    hard_at = signals.opened_at + config.hard_limit_seconds
    if inquiry.busy:
        return Judgement(None, min(inquiry.wait_until, hard_at)) if now < inquiry.wait_until else None
    ask = _question(signals, inquiry, config, now)
    return Judgement(None, min(now + LOOK_SECONDS, hard_at), ask=ask) if ask else None


def evidence(signals: Signals, rule: str, now: float) -> dict[str, Any]:
    """Why the version was completed at ``now``, and what is known of its wholeness; plain data.

    ``complete``: true where its number was reached, false where something is known to be missing, null where
    nothing says either. Only what is known is in it.
    """
    headers = signals.headers or Headers()
    number = expected(signals)
    missing = number.count - signals.received if number else 0
    record: dict[str, Any] = {
        "rule": rule,
        "complete": _is_complete(signals),
        "quiet_seconds": round(now - signals.last_instance_at, 3),
        "instances": signals.received,
        "associations": signals.associations.to_json(),
    }
    if number is not None:
        record |= {"expected": number.count, "expected_by": number.by, "missing_instances": missing}
    if headers.missing_positions_mm:
        record["missing_positions"] = {
            "count": len(headers.missing_positions_mm),
            "spacing_mm": headers.spacing_mm,
            "along_normal_mm": list(headers.missing_positions_mm[:LISTED_POSITIONS]),
        }
    if headers.missing_instance_numbers:
        record["missing_instance_numbers"] = headers.missing_instance_numbers
    if headers.unreadable:
        record["unreadable_headers"] = headers.unreadable
    if signals.headers is None and signals.reads_headers:
        record["headers"] = "not read in time"
    if signals.inquiry is not None:
        record["query"] = _query_evidence(signals.inquiry)
    return record


def _query_evidence(inquiry: Inquiry) -> dict[str, Any]:
    record: dict[str, Any] = {"peer": inquiry.peer, "expected": inquiry.expected}
    if inquiry.fetches:
        record |= {"fetches": inquiry.fetches, "fetched": inquiry.fetched}
    if inquiry.error:
        record["error"] = inquiry.error
    return record


def settle_seconds(config: SeriesConfig) -> float:
    """After the last instance or the end of an association nothing is complete before this."""
    return min(config.expected_quiet_seconds, config.released_quiet_seconds)


def _is_complete(signals: Signals) -> bool | None:
    headers, number = signals.headers or Headers(), expected(signals)
    if headers.missing_positions_mm or (number is not None and number.count > signals.received):
        return False
    return True if number is not None or headers.whole_objects else None


def _due(signals: Signals, config: SeriesConfig) -> tuple[float, str]:
    """When the version is complete if nothing else happens, and by which rule."""
    headers, number = signals.headers or Headers(), expected(signals)
    asked = number is not None and number.by == "c_find"
    is_short = number is not None and number.count > signals.received
    if is_short or (headers.missing_positions_mm and not asked):
        return signals.event_at + _missing_seconds(signals, config), "missing_limit"
    calm_at = signals.event_at + settle_seconds(config)
    # a query AE that has no more than we do doesn't explain a gap away: then only quiet decides
    if signals.version == 1 and not headers.missing_positions_mm:
        if headers.whole_objects:
            return calm_at, "multi_frame"
        if number is not None:
            open_until = signals.last_instance_at + config.released_quiet_seconds
            return (calm_at if signals.ended else max(calm_at, open_until)), "expected_count"
    quiet_at = signals.last_instance_at + config.quiet_seconds
    if signals.ended and signals.associations.all_released:
        released_at = signals.event_at + config.released_quiet_seconds
        if released_at < quiet_at and not (headers.missing_instance_numbers and number is None):
            return released_at, "association_release"
    return quiet_at, "quiet_time"


def _missing_seconds(signals: Signals, config: SeriesConfig) -> float:
    """The wait since the last event while something is known to be missing."""
    if signals.associations.interrupted:
        return max(config.interrupted_wait_seconds, config.quiet_seconds)
    usual = config.released_quiet_seconds if signals.ended else config.quiet_seconds
    return max(config.missing_wait_seconds, usual)


def _question(
    signals: Signals, inquiry: Inquiry, config: SeriesConfig, now: float
) -> Literal["count", "fetch"] | None:
    if now < inquiry.next_at:
        return None
    if _may_fetch(signals, inquiry) and now >= _fetch_at(signals, config):
        return "fetch"
    return "count" if inquiry.asked_at < signals.last_instance_at else None


def _may_fetch(signals: Signals, inquiry: Inquiry) -> bool:
    is_short = inquiry.expected is not None and inquiry.expected > signals.received
    return is_short and inquiry.fetches_left > 0


def _fetch_at(signals: Signals, config: SeriesConfig) -> float:
    """When what is missing isn't on its way any more."""
    return signals.event_at + (config.released_quiet_seconds if signals.ended else config.quiet_seconds)
