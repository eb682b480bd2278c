"""``pacsnode explain`` by the node's database: a study, series, instance, job, file or sender."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert

from node import explain
from node.database import instances, jobs, open_database, refusals, series
from tests.unit.node.rows import instance_row, job_row, series_row

STUDY, SERIES, JOB = "1.2", "1.2.3", "ab12cd34"
KEPT = "spool/quarantine/0f.dcm"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A series whose job failed, another one, an instance in quarantine and a sender that was turned away."""
    engine = open_database(tmp_path)
    routed = {"evidence": {}, "decision": {"routes": []}, "completed_at": 2.0, "reason_code": "none"}
    failed = {"state": "failed", "reason_code": "geometry_tilted", "reason": "by 40 degrees"}
    refused = {"kind": "association rejected", "code": "calling_ae_title", "calling_ae_title": "NOBODY"}
    refused |= {"host": "192.0.2.1", "reason": "'NOBODY'"}
    refused_at: dict[str, Any] = {"count": 2, "first_at": 1.0, "last_at": 5.0}
    kept = {"state": "quarantined", "reason_code": "missing_uid", "reason": "SeriesInstanceUID is missing"}
    with engine.begin() as connection:
        connection.execute(insert(series), [series_row(**routed)])
        other = {"series_instance_uid": "1.2.4", "state": "open", "reason_code": None}
        connection.execute(insert(series), [series_row(**routed | other)])
        connection.execute(insert(jobs), [job_row(job_id=JOB, **failed)])
        stored = instance_row(study_instance_uid=STUDY, series_instance_uid=SERIES, series_version=1)
        connection.execute(insert(instances), [stored])
        row = instance_row(path=KEPT, sop_instance_uid="1.2.9", study_instance_uid="1.9", **kept)
        connection.execute(insert(instances), [row])
        connection.execute(insert(refusals), [refused | refused_at])
    yield engine
    engine.dispose()


@pytest.mark.parametrize("what", [SERIES, JOB[:6], "1.2.3.0"])
def test_a_series_by_any_of_its_names(engine: Engine, tmp_path: Path, what: str) -> None:
    known = explain.find(engine, tmp_path, what)
    (study,) = known.studies
    (one,) = study.series
    assert (study.study_instance_uid, one.series_instance_uid) == (STUDY, SERIES)
    assert [(why.code, why.kind.value) for why in one.reasons] == [("geometry_tilted", "job ended")]
    assert one.reasons[0].sentence in explain.known_text(known)
    told = known.to_json()["studies"][0]["series"][0]
    assert told["sentence"] == one.sentence and told["jobs"] == [{"job_id": JOB, "state": "failed"}]


def test_a_study_is_told_whole(engine: Engine, tmp_path: Path) -> None:
    (study,) = explain.find(engine, tmp_path, STUDY).studies
    assert {one.series_instance_uid for one in study.series} == {SERIES, "1.2.4"}


def test_an_instance_in_quarantine_by_uid_and_by_file(engine: Engine, tmp_path: Path) -> None:
    for known in (
        explain.find(engine, tmp_path, "1.2.9"),
        explain.find_files(engine, tmp_path, (), {Path("/elsewhere/a.dcm"): "1.2.9"}),
        explain.find_files(engine, tmp_path, (), {tmp_path / KEPT: ""}),
    ):
        (kept,) = known.quarantined
        assert (kept.path, kept.reason.code) == (KEPT, "missing_uid")
        assert f"in quarantine: {KEPT}" in explain.known_text(known)
    (study,) = explain.find(engine, tmp_path, "1.9").studies
    assert [one.path for one in study.quarantined] == [KEPT]


def test_a_folder_whose_series_is_known(engine: Engine, tmp_path: Path) -> None:
    (study,) = explain.find_files(engine, tmp_path, (SERIES, "1.2.77"), {}).studies
    assert [one.series_instance_uid for one in study.series] == [SERIES]


def test_a_sender(engine: Engine, tmp_path: Path) -> None:
    known = explain.find(engine, tmp_path, "NOBODY")
    assert known.refused == explain.all_refused(engine).refused and not known.studies
    text = explain.known_text(known)
    assert "turned away: NOBODY from 192.0.2.1, 2 times, last 1970-01-01 00:00:05 UTC" in text
    assert "No result, because the calling AE title isn't allowed: 'NOBODY'." in text
    known = explain.find(engine, tmp_path, "SCANNER")
    assert [study.study_instance_uid for study in known.studies] == [STUDY]
    assert [kept.path for kept in known.quarantined] == [KEPT]


@pytest.mark.parametrize("what", ["9.9", "beef", "SOMEONE"])
def test_nothing_is_known(engine: Engine, tmp_path: Path, what: str) -> None:
    with pytest.raises(explain.NothingKnown, match=f"nothing is known of '{what}'"):
        explain.find(engine, tmp_path, what)
