"""A short run of the fuzzer; ``make fuzz`` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.fuzz_receive import Fuzzer

pytestmark = pytest.mark.integration


def test_mutated_associations(tmp_path: Path) -> None:
    fuzzer = Fuzzer(20261121, tmp_path / "var")
    try:
        fuzzer.run(500)
        rows = fuzzer.rows()
    finally:
        fuzzer.stop()
    assert {state for state, _ in rows} == {"stored", "quarantined"}
    assert all((state == "quarantined") == (reason is not None) for state, reason in rows)
