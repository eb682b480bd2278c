"""What a status of C-STORE, or a Failure or Warning Reason of STOW-RS, means for an instance.

In: a 16-bit status.  Out: whether the instance is stored, whether sending it again can help, and what to do.

The table is literal. C-STORE: PS3.4 table B.2-1 and B.2.3, PS3.7 9.1.1.1.9 and annex C. STOW-RS uses the same
values (PS3.18 table I.2-1 of Warning and table I.2-2 of Failure Reasons).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Outcome(Enum):
    """What became of an instance."""

    STORED = "stored"
    WARNING = "warning"  # stored, but not quite as it was sent
    REFUSED = "refused"  # not stored; may be later
    FAILED = "failed"  # not stored; sending it again won't help

    @property
    def is_stored(self) -> bool:
        return self in (Outcome.STORED, Outcome.WARNING)


@dataclass(frozen=True)
class Meaning:
    """One row: statuses ``first`` to ``last``. section: where the standard says so."""

    first: int
    last: int
    outcome: Outcome
    meaning: str
    remedy: str
    section: str


_LOG = "the receiver's log says what it couldn't do"
_RIGHTS = "allow our AE title or address to store at the receiver"
_CONTENT = "the receiver can't use this object; its log says why"

STATUSES = (
    Meaning(0x0000, 0x0000, Outcome.STORED, "success", "", "PS3.4 B.2.3"),
    # warnings
    Meaning(0x0001, 0x0001, Outcome.WARNING, "requested optional attributes not supported", "", "PS3.7 C.4"),
    Meaning(
        0x0111,
        0x0111,
        Outcome.WARNING,  # results keep their UIDs: the receiver has it of an earlier attempt
        "duplicate SOP instance: it is there already",
        "",
        "PS3.7 C.5",
    ),
    Meaning(0xB000, 0xB000, Outcome.WARNING, "coercion of data elements", "", "PS3.4 B.2.3"),
    Meaning(0xB006, 0xB006, Outcome.WARNING, "elements discarded", "", "PS3.4 B.2.3"),
    Meaning(0xB007, 0xB007, Outcome.WARNING, "data set does not match SOP class", "", "PS3.4 B.2.3"),
    Meaning(0xB000, 0xBFFF, Outcome.WARNING, "warning", "", "PS3.7 C.4"),
    # refused: the same may be taken later
    Meaning(
        0xA700,
        0xA7FF,
        Outcome.REFUSED,
        "refused: out of resources",
        "free disk space or memory at the receiver",
        "PS3.4 B.2.3",
    ),
    Meaning(0x0110, 0x0110, Outcome.REFUSED, "processing failure", _LOG, "PS3.7 C.5"),
    Meaning(0x0210, 0x0210, Outcome.REFUSED, "duplicate invocation", _LOG, "PS3.7 C.5"),
    Meaning(
        0x0213,
        0x0213,
        Outcome.REFUSED,
        "resource limitation",
        "free disk space or memory at the receiver",
        "PS3.7 C.5",
    ),
    Meaning(0xFE00, 0xFE00, Outcome.REFUSED, "cancelled", _LOG, "PS3.7 annex C"),
    # failed: the same will fail again
    Meaning(
        0xA800,
        0xA8FF,
        Outcome.FAILED,
        "refused: SOP class not supported",
        "allow the SOP class at the receiver",
        "PS3.4 B.2.3 (until 1996)",
    ),
    Meaning(
        0xA900, 0xA9FF, Outcome.FAILED, "error: data set does not match SOP class", _CONTENT, "PS3.4 B.2.3"
    ),
    Meaning(0xC000, 0xCFFF, Outcome.FAILED, "error: cannot understand", _CONTENT, "PS3.4 B.2.3"),
    Meaning(0x0105, 0x0105, Outcome.FAILED, "no such attribute", _CONTENT, "PS3.7 C.4"),
    Meaning(0x0106, 0x0106, Outcome.FAILED, "invalid attribute value", _CONTENT, "PS3.7 C.5"),
    Meaning(0x0112, 0x0112, Outcome.FAILED, "no such SOP instance", _CONTENT, "PS3.7 C.5"),
    Meaning(0x0115, 0x0115, Outcome.FAILED, "invalid argument value", _CONTENT, "PS3.7 C.5"),
    Meaning(0x0117, 0x0117, Outcome.FAILED, "invalid SOP instance", _CONTENT, "PS3.7 C.5"),
    Meaning(0x0119, 0x0119, Outcome.FAILED, "class-instance conflict", _CONTENT, "PS3.7 C.5"),
    Meaning(0x0120, 0x0120, Outcome.FAILED, "missing attribute", _CONTENT, "PS3.7 C.5"),
    Meaning(0x0121, 0x0121, Outcome.FAILED, "missing attribute value", _CONTENT, "PS3.7 C.5"),
    Meaning(
        0x0122,
        0x0122,
        Outcome.FAILED,
        "refused: SOP class not supported",
        "allow the SOP class at the receiver",
        "PS3.7 C.5",
    ),
    Meaning(0x0124, 0x0124, Outcome.FAILED, "refused: not authorized", _RIGHTS, "PS3.7 C.5"),
    Meaning(0x0211, 0x0211, Outcome.FAILED, "unrecognized operation", _LOG, "PS3.7 C.5"),
    Meaning(0x0212, 0x0212, Outcome.FAILED, "mistyped argument", _LOG, "PS3.7 C.5"),
    Meaning(
        0xC122,
        0xC122,
        Outcome.FAILED,
        "referenced transfer syntax not supported",
        "allow the transfer syntax at the receiver",
        "PS3.18 I.2",
    ),
    Meaning(
        0x0100, 0x02FF, Outcome.FAILED, "failure without a meaning in the standard", _LOG, "PS3.7 annex C"
    ),
)
_UNKNOWN = Meaning(0x0000, 0xFFFF, Outcome.REFUSED, "a status that isn't in the standard", _LOG, "")


def meaning_of(status: int) -> Meaning:
    """The row of the status with the narrowest range; of one that the standard doesn't have, that it may
    pass: trying again ends by itself, and a result that was given up for nothing is missed."""
    rows = [row for row in STATUSES if row.first <= status <= row.last]
    return min(rows, key=lambda row: row.last - row.first, default=_UNKNOWN)
