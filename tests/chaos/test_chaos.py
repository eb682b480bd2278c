"""The short form of ``make chaos``: one node on SQLite. PostgreSQL and several nodes are in the long form."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.chaos import Plan, run
from tests.chaos.world import Setup
from tests.integration.running import STORESCU

#: one in each part of a study's way, in its order
BOUNDARIES = (
    "journal.appended",
    "route.router.Router.route:committed",
    "stage.lungs",
    "results.renamed",
    "deliver.sent",
)


@pytest.mark.skipif(not Path(STORESCU).exists(), reason="needs DCMTK: apt-get install dcmtk")
def test_nothing_is_lost_doubled_stuck_or_broken(tmp_path: Path) -> None:
    plan = Plan(Setup(), seed=7, kills=2, boundaries=BOUNDARIES, seconds_between=2.0, backlog=2)
    report = run(plan, tmp_path, print)
    assert report.faults == {}
    assert report.boundaries_missed == []
    assert report.kills >= 2 + len(BOUNDARIES)
