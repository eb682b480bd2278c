"""The short form of ``make chaos``: one node on SQLite. PostgreSQL and several nodes are in the long form."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.chaos import Plan, run
from tests.chaos.world import Setup
from tests.integration.running import STORESCU


@pytest.mark.skipif(not Path(STORESCU).exists(), reason="needs DCMTK: apt-get install dcmtk")
def test_nothing_is_lost_doubled_stuck_or_broken(tmp_path: Path) -> None:
    report = run(Plan(Setup(), seed=7, series=2, kills=4, seconds_between=2.0), tmp_path, print)
    assert report.kills == 4
    assert report.faults == {}
