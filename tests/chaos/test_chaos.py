"""The short form of ``make chaos``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.chaos.chaos import Plan, run
from tests.chaos.world import Setup
from tests.integration.running import STORESCU


@pytest.mark.skipif(not Path(STORESCU).exists(), reason="needs DCMTK: apt-get install dcmtk")
@pytest.mark.parametrize("setup", [Setup(), Setup(listeners=1, workers=2)], ids=["sqlite", "postgresql"])
def test_nothing_is_lost_doubled_stuck_or_broken(tmp_path: Path, setup: Setup) -> None:
    report = run(Plan(setup, seed=7, series=2, kills=4, seconds_between=2.0), tmp_path, print)
    assert report.kills == 4
    assert report.faults == {}
    shutil.rmtree(tmp_path)
