"""The warm-up goes the whole way of a study: every stage has something to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipelines import warm_up
from pipelines.chest_ct_pneumonia import PIPELINE
from pipelines.results.result_set import ResultSet


def test_all_results_are_made_of_a_phantom_with_a_region(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ResultSet]] = []
    real = PIPELINE

    def build(volume: Any, findings: Any, context: Any) -> ResultSet:
        made.append((findings, real.build_results(volume, findings, context)))
        return made[0][1]

    monkeypatch.setattr(warm_up, "PIPELINE", replace(real, build_results=build))
    warm_up.warm_up()
    ((findings, result_set),) = made
    assert len(findings.regions) == 1
    assert len(findings.inpainted) == 1
    roles = {role for role, _ in result_set.objects}
    assert roles >= {"segmentation", "report", "picture", "inpainted"}
