"""One dead and one slow destination hold only what is for them. ``make bench-destinations`` measures it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.destinations import STORESCP

pytestmark = pytest.mark.integration


def test_the_healthy_one_gets_everything_while_the_others_have_most_before_them(tmp_path: Path) -> None:
    if not Path(STORESCP).exists():
        pytest.skip("needs DCMTK (apt install dcmtk)")
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", "tests.benchmarks.destinations", "--jobs", "8", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    found = json.loads(out.read_text())
    assert found["dead_waiting_at_the_end"] == 8
    assert found["slow_waiting_at_the_end"] >= 5  # two at once, four seconds each
    assert found["beside_seconds_max"] < 4.0  # no delivery waited for a slow one
    assert found["circuits"]["healthy"] == "closed" == found["circuits"]["slow"]
    assert found["circuits"]["dead"] != "closed"
