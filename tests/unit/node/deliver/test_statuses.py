"""The table of statuses: complete, without contradiction, and with something to do about each failure."""

from __future__ import annotations

import pytest
from pynetdicom.status import GENERAL_STATUS, STORAGE_SERVICE_CLASS_STATUS

from node.deliver.statuses import STATUSES, Outcome, meaning_of


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (0x0000, Outcome.STORED),
        (0x0111, Outcome.WARNING),
        (0xB000, Outcome.WARNING),
        (0xB006, Outcome.WARNING),
        (0xB007, Outcome.WARNING),
        (0xB123, Outcome.WARNING),
        (0xA700, Outcome.REFUSED),
        (0xA7FF, Outcome.REFUSED),
        (0x0110, Outcome.REFUSED),
        (0x0213, Outcome.REFUSED),
        (0xE000, Outcome.REFUSED),  # not in the standard
        (0xA801, Outcome.FAILED),
        (0xA900, Outcome.FAILED),
        (0xC000, Outcome.FAILED),
        (0xCFFF, Outcome.FAILED),
        (0xC122, Outcome.FAILED),
        (0x0117, Outcome.FAILED),
        (0x0122, Outcome.FAILED),
        (0x0124, Outcome.FAILED),
        (0x0211, Outcome.FAILED),
        (0x0299, Outcome.FAILED),
    ],
)
def test_outcomes(status: int, outcome: Outcome) -> None:
    assert meaning_of(status).outcome is outcome


def test_every_failure_has_a_remedy_and_every_row_a_section() -> None:
    for row in STATUSES:
        assert row.first <= row.last and row.section.startswith("PS3."), row
        assert bool(row.remedy) is not row.outcome.is_stored, row


def test_no_two_rows_of_one_status_have_the_same_width() -> None:
    for row in STATUSES:
        for other in STATUSES:
            if row is not other and row.last - row.first == other.last - other.first:
                assert row.last < other.first or other.last < row.first, (row, other)


def test_it_agrees_with_pynetdicom_on_what_is_stored() -> None:
    """But for a duplicate, which pynetdicom's tables have as a failure like the standard."""
    for status, (kind, _) in {**GENERAL_STATUS, **STORAGE_SERVICE_CLASS_STATUS}.items():
        if status not in (0x0111, 0x0107, 0x0116):  # the latter two aren't statuses of C-STORE
            assert meaning_of(status).outcome.is_stored is (kind in ("Success", "Warning")), hex(status)
