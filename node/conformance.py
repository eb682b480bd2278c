"""The tables of the conformance statement that the code holds: written from it, so that they can't drift.

In: docs/conformance-statement.md, with a pair of comments around each table.  Out: the same with the tables
as the code has them.

    python -m node.conformance docs/conformance-statement.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from pydicom.uid import UID_dictionary
from pynetdicom.sop_class import _STORAGE_CLASSES

from node.deliver.statuses import STATUSES as DELIVERY_STATUSES
from node.deliver.statuses import Meaning, Outcome
from node.receive.admission import REJECTIONS
from node.receive.commitment import N_ACTION_STATUSES
from node.receive.commitment_ledger import FAILURE_REASONS
from node.receive.commitment_results import N_EVENT_REPORT_STATUSES
from node.receive.listener import TRANSFER_SYNTAXES
from node.receive.storage import STANDARD_STORAGE_CLASSES, STATUSES

_RESULTS = {1: "rejected-permanent", 2: "rejected-transient"}
_SOURCES = {1: "service-user", 2: "service-provider (ACSE)", 3: "service-provider (presentation)"}
_DONE = {
    Outcome.STORED: "counts as stored",
    Outcome.WARNING: "counts as stored, and is recorded",
    Outcome.REFUSED: "tried again",
    Outcome.FAILED: "failed for good",
}
_BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def tables() -> dict[str, str]:
    """Name -> table in Markdown."""
    return {
        "rejections": _table(
            ("result, source, reason", "when"),
            (
                (f"{_RESULTS[r.result]}, {_SOURCES[r.source]}, {r.diagnostic}", r.why)
                for r in REJECTIONS.values()
            ),
        ),
        "store-statuses": _table(("status", "when"), _codes(STATUSES)),
        "action-statuses": _table(
            ("status of N-ACTION", "when"),
            _codes({code: when for code, (_label, when) in N_ACTION_STATUSES.items()}),
        ),
        "event-statuses": _table(
            ("status of N-EVENT-REPORT", "when"),
            _codes({code: when for code, (_label, when) in N_EVENT_REPORT_STATUSES.items()}),
        ),
        "delivery-statuses": _table(
            ("status", "meaning; what we do"),
            (
                (_range(row), f"{row.meaning} ({row.section}); {_DONE[row.outcome]}")
                for row in DELIVERY_STATUSES
            ),
        ),
        "failure-reasons": _table(
            ("Failure Reason", "when"),
            _codes({code: when for code, (_label, when) in FAILURE_REASONS.items()}),
        ),
        "transfer-syntaxes": _table(("transfer syntax", "UID"), _uids(TRANSFER_SYNTAXES)),
        "storage-classes": _table(("SOP class", "UID"), _uids(sorted(STANDARD_STORAGE_CLASSES))),
    }


def written(text: str) -> str:
    """The statement with its tables as the code has them. Raises KeyError for a table that nobody makes."""
    made = tables()
    return _BLOCK.sub(lambda block: f"{block[1]}{made[block[2]]}{block[3]}", text)


def _table(head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    lines = [head, ("---", "---"), *rows]
    return "".join(f"| {one} | {other} |\n" for one, other in lines).replace("| --- | --- |", "|---|---|")


def _range(row: Meaning) -> str:
    return f"0x{row.first:04X}" if row.first == row.last else f"0x{row.first:04X} to 0x{row.last:04X}"


def _codes(meanings: dict[int, str]) -> Iterable[tuple[str, str]]:
    return ((f"0x{code:04X}", meaning) for code, meaning in sorted(meanings.items()))


def _uids(uids: Iterable[str]) -> Iterable[tuple[str, str]]:
    for uid in uids:
        if uid in UID_dictionary:
            name, _kind, _info, retired, _keyword = UID_dictionary[uid]
            yield name + (" (retired)" if retired else ""), uid
        else:  # pynetdicom's list is newer than pydicom's
            yield next(keyword for keyword, its in _STORAGE_CLASSES.items() if its == uid), uid


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    path = Path(sys.argv[1])
    path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
