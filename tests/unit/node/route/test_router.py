"""Decisions on real and made series, jobs in the database, and ``explain``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import Engine, Table, insert, select
from structlog.testing import capture_logs

from node.config import RouteConfig
from node.database import instances, jobs, series
from node.errors import ConfigError
from node.metrics import Metrics
from node.receive.part10 import encode_header
from node.route.defaults import default_routes
from node.route.explain import explain, explain_text
from node.route.facts import series_facts
from node.route.router import Router, compile_routes, decide, job_id
from tests.integration.receiving import ct_slice, encoded
from tests.shared_data import shared
from tests.unit.node.rows import instance_row, series_row

DEFAULT = compile_routes(default_routes(["pacs"]))


@pytest.mark.parametrize("folder", ["chest_ct/lidc0001_ge_deflated", "chest_ct/lungdx_a0002_siemens_b40f"])
def test_chest_series_match_the_default_route(folder: str) -> None:
    decision = decide(series_facts("x", sorted(shared(folder).iterdir())), DEFAULT)
    assert [route.name for route in decision.matched] == ["chest_ct"]
    assert decision.reason_code == "none"


@pytest.mark.parametrize(
    ("folder", "why", "code"),
    [
        (
            "geometry/ge_head_tilt_variable_spacing",
            "body_part_examined is HEAD, wanted like *chest* or *thora* or *lung*",
            "body_part_examined",
        ),
        (
            "geometry/philips_localizer",
            "image_type is ORIGINAL\\PRIMARY\\LOCALIZER, which is excluded",
            "image_type",
        ),
        (
            "geometry/philips_exam_summary_sc",
            "sop_class is SecondaryCaptureImageStorage, wanted one of CTImageStorage, "
            "EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage",
            "sop_class",
        ),
    ],
)
def test_other_series_do_not_match_and_it_says_why(folder: str, why: str, code: str) -> None:
    decision = decide(series_facts("x", sorted(shared(folder).iterdir())), DEFAULT)
    assert decision.matched == ()
    assert decision.verdicts[0].why() == why
    assert decision.reason_code == code


@pytest.mark.parametrize(
    ("changes", "matches"),
    [
        ({}, True),
        ({"BodyPartExamined": "lung"}, True),
        ({"BodyPartExamined": "", "StudyDescription": "CT Chest w/o contrast"}, True),
        ({"BodyPartExamined": "", "ProtocolName": "ThoraxRoutine"}, True),
        ({"BodyPartExamined": ""}, True),
        ({"BodyPartExamined": "", "SeriesDescription": "CCT Brain"}, False),
        ({"BodyPartExamined": "", "StudyDescription": "Trauma Chest/Abd/Pel"}, True),
        ({"BodyPartExamined": "CHEST_ABDOMEN"}, True),
        ({"BodyPartExamined": "HEAD", "StudyDescription": "chest"}, False),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL"]}, True),
        ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, False),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, False),
        ({"Modality": "MR"}, False),
    ],
)
def test_the_default_route(tmp_path: Path, changes: dict[str, Any], matches: bool) -> None:
    for number in range(8):
        write(tmp_path / f"{number}.dcm", number, **changes)
    decision = decide(series_facts("x", sorted(tmp_path.iterdir())), DEFAULT)
    assert bool(decision.matched) is matches


def test_a_few_slices_are_not_a_chest_ct(tmp_path: Path) -> None:
    for number in range(7):
        write(tmp_path / f"{number}.dcm", number)
    decision = decide(series_facts("x", sorted(tmp_path.iterdir())), DEFAULT)
    assert decision.verdicts[0].why() == "frame_count is 7, wanted at least 8"


def test_routing_makes_jobs_once(routed: Routed) -> None:
    decision = routed.router.route("1.2.3", 1)
    assert decision is not None
    (job,) = routed.jobs()
    assert job["job_id"] == job_id("1.2.3", 1, "chest")
    assert len(job["job_id"]) == 32
    assert (job["state"], job["destinations"], job["priority"]) == ("queued", ["a", "b"], 20)
    assert job["created_at"] == 5000.0
    assert routed.enqueued == [job["job_id"]]
    assert routed.router.route("1.2.3", 1) is None
    assert len(routed.jobs()) == 1
    (row,) = routed.series()
    assert row["state"] == "routed"
    assert row["decision"]["matched"] == ["first", "second"]
    assert [verdict["matches"] for verdict in row["decision"]["routes"]] == [True, True, False]
    assert row["decision"]["facts"]["body_part_examined"] == "CHEST"
    json.dumps(row["decision"])


def test_a_crash_before_the_enqueue_is_made_good(routed: Routed) -> None:
    routed.fail = True
    with pytest.raises(RuntimeError):
        routed.router.route("1.2.3", 1)
    routed.fail = False
    assert routed.router.enqueue_waiting() == 1
    ours = job_id("1.2.3", 1, "chest")
    assert routed.enqueued == [ours]
    asked: list[tuple[str, int]] = []

    def known(waiting: Sequence[tuple[str, int]]) -> list[str]:
        asked.extend(waiting)
        return [ours]

    assert routed.router.enqueue_waiting(known) == 0
    assert (asked, routed.enqueued) == ([(ours, 0)], [ours])


def test_unmatched_series_are_recorded_with_the_reason(routed: Routed) -> None:
    routed.use([route("only_mr", {"fact": "modality", "equals": "MR"})])
    with capture_logs() as logs:
        routed.router.route("1.2.3", 1)
    (line,) = logs
    assert line["event"] == "series_unmatched"
    assert line["reasons"] == {"only_mr": "modality is CT, wanted MR"}
    assert (line["code"], line["reason"]) == (
        "modality",
        "no route matches: only_mr: modality is CT, wanted MR",
    )
    assert routed.jobs() == [] and routed.enqueued == []
    decision = routed.series()[0]["decision"]
    assert decision["matched"] == []
    assert decision["reason_code"] == "modality"
    assert decision["routes"][0]["why"] == "modality is CT, wanted MR"
    text = routed.metrics.expose().decode()
    assert 'pacsnode_routing_total{outcome="unmatched",reason="modality"} 1.0' in text


def test_no_routes(routed: Routed) -> None:
    routed.use([])
    routed.router.route("1.2.3", 1)
    assert routed.series()[0]["decision"]["reason_code"] == "no_routes"


def test_unreadable_series(routed: Routed) -> None:
    (routed.data_dir / "0.dcm").write_bytes(b"damaged")
    routed.router.route("1.2.3", 1)
    assert routed.series()[0]["decision"]["reason_code"] == "unreadable"


def test_a_bad_rule_names_its_route() -> None:
    with pytest.raises(ConfigError, match=r"routes\[broken\]\.when\.fact: 'x'"):
        compile_routes([route("broken", {"fact": "x", "equals": 1})])


def test_explain_a_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for number in range(8):
        write(tmp_path / "deep" / f"{number}.dcm", number, SeriesDescription="Lung 1.0")
    write(tmp_path / "no_uid.dcm", 99, SeriesInstanceUID="")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").touch()
    found = explain(tmp_path, DEFAULT)
    assert found.any_match
    reasons = {path.name: reason for path, reason in found.skipped}
    assert set(reasons) == {"no_uid.dcm", "notes.txt", "empty"}
    assert "not a DICOM file" in reasons["notes.txt"]
    assert "Series Instance UID" in reasons["no_uid.dcm"]
    text = explain_text(found)
    assert "route chest_ct -> chest_ct_pneumonia: matches" in text
    assert "Lung 1.0" in text
    assert json.loads(json.dumps(found.to_json()))["series"][0]["matched"] == ["chest_ct"]


def test_explain_one_file_and_nothing(tmp_path: Path) -> None:
    write(tmp_path / "one.dcm", 1)
    (decision,) = explain(tmp_path / "one.dcm", DEFAULT).series
    assert decision.verdicts[0].why() == "frame_count is 1, wanted at least 8"
    (tmp_path / "empty").mkdir()
    assert "no DICOM series found" in explain_text(explain(tmp_path / "empty", DEFAULT))
    with pytest.raises(FileNotFoundError):
        explain(tmp_path / "nowhere", DEFAULT)


class Routed:
    """A complete series of one instance and three routes, two of which match with the same pipeline."""

    def __init__(self, data_dir: Path, engine: Engine) -> None:
        self.data_dir, self.engine = data_dir, engine
        self.metrics = Metrics("test")
        self.enqueued: list[str] = []
        self.fail = False
        self.use(
            [
                route("first", {"fact": "modality", "equals": "CT"}, destinations=("a",), priority=50),
                route("second", {"fact": "rows", "at_least": 1}, destinations=("a", "b"), priority=20),
                route("third", {"fact": "modality", "equals": "MR"}),
            ]
        )
        write(data_dir / "0.dcm", 0)
        with engine.begin() as connection:
            connection.execute(insert(series).values(series_row(state="complete")))
            connection.execute(
                insert(instances).values(instance_row(series_instance_uid="1.2.3", series_version=1))
            )

    def use(self, routes: list[RouteConfig]) -> None:
        self.router = Router(
            self.engine,
            self.data_dir,
            compile_routes(routes),
            self._enqueue,
            self.metrics,
            clock=lambda: 5000.0,
        )

    def _enqueue(self, job: str) -> None:
        if self.fail:
            raise RuntimeError("killed")
        self.enqueued.append(job)

    def jobs(self) -> list[dict[str, Any]]:
        return self._rows(jobs)

    def series(self) -> list[dict[str, Any]]:
        return self._rows(series)

    def _rows(self, table: Table) -> list[dict[str, Any]]:
        with self.engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(select(table))]


@pytest.fixture
def routed(tmp_path: Path, engine: Engine) -> Routed:
    return Routed(tmp_path, engine)


def route(
    name: str, when: dict[str, Any], *, destinations: tuple[str, ...] = ("a",), priority: int = 100
) -> RouteConfig:
    return RouteConfig(name=name, pipeline="chest", when=when, destinations=destinations, priority=priority)


def write(path: Path, number: int, **changes: Any) -> None:
    image = ct_slice("1.2.3", number, **changes)
    header = encode_header(
        sop_class_uid=image.SOPClassUID,
        sop_instance_uid=image.SOPInstanceUID,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        calling_ae_title="A",
    )
    path.write_bytes(header + encoded(image))
