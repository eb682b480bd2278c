"""The audit trail: the standard's messages, bounded files, and floods that are counted."""

from __future__ import annotations

import base64
import os
import threading
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from node import audit
from node.audit import ALERTS_IN_FULL, AlertLimit, AuditTrail, RotatingFile
from node.audit_message import MINOR_FAILURE, Peer, Source, Transfer
from node.config import AuditConfig
from node.receive.metrics import ReceiveMetrics
from tests.audit_schema import event_of, parsed

PEER = Peer("MODALITY", "192.0.2.7")


class Trail:
    """A started trail in a folder, and what it wrote."""

    def __init__(self, folder: Path, **config: object) -> None:
        self.path = folder / "audit-receive.log"
        self.metrics = ReceiveMetrics()
        self.trail = AuditTrail(
            AuditConfig.model_validate(config),
            folder,
            Source("PACSNODE", "receive", "site"),
            self.metrics.audit,
        )
        self.trail.start()

    def stop(self) -> list[ET.Element]:
        self.trail.stop()
        return [parsed(line) for line in self.path.read_bytes().splitlines()]

    def count(self, outcome: str) -> float:
        name = "pacsnode_receive_audit_messages_total"
        return self.metrics.registry.get_sample_value(name, {"outcome": outcome}) or 0.0


def test_start_and_stop(tmp_path: Path) -> None:
    start, stop = Trail(tmp_path).stop()
    assert event_of(start) == ("110100", "110120", "0")
    assert event_of(stop) == ("110100", "110121", "0")
    (ourselves,) = start.findall("ActiveParticipant")
    assert ourselves.get("UserID") == str(os.getpid())
    assert ourselves.get("AlternativeUserID") == "AETITLES=PACSNODE"
    source = start.find("AuditSourceIdentification")
    assert source is not None
    assert (source.get("AuditSourceID"), source.get("AuditEnterpriseSiteID")) == ("PACSNODE", "site")


def test_a_person_logs_in_and_out(tmp_path: Path) -> None:
    trail = Trail(tmp_path)
    trail.trail.authenticated("anna", "192.0.2.9", "login", right=True)
    trail.trail.authenticated("anna", "192.0.2.9", "logout", right=True)
    for _ in range(ALERTS_IN_FULL + 2):
        trail.trail.authenticated("o<tto", "192.0.2.9", "login", right=False)
    _, login, logout, *failed, _counted, _ = trail.stop()
    assert event_of(login) == ("110114", "110122", "0")
    assert event_of(logout) == ("110114", "110123", "0")
    assert [event_of(one) for one in failed] == [("110114", "110122", "4")] * ALERTS_IN_FULL
    person = login.find("ActiveParticipant")
    assert person is not None
    assert (person.get("UserID"), person.get("UserIsRequestor")) == ("anna", "true")
    assert person.get("NetworkAccessPointID") == "192.0.2.9"
    assert trail.count("suppressed") == 2


def test_who_was_shown_the_patient_of_a_study(tmp_path: Path) -> None:
    trail = Trail(tmp_path)
    trail.trail.accessed("anna", "192.0.2.9", "1.2.3")
    _, accessed, _ = trail.stop()
    assert event_of(accessed) == ("110103", "", "0")
    study = accessed.find("ParticipantObjectIdentification")
    assert study is not None and study.get("ParticipantObjectID") == "1.2.3"


def test_a_refused_node(tmp_path: Path) -> None:
    trail = Trail(tmp_path)
    assert trail.trail.refused(PEER, "host", "association rejected: because")
    alert = trail.stop()[1]
    assert event_of(alert) == ("110113", "110126", "8")
    ours, theirs = alert.findall("ActiveParticipant")
    assert (theirs.get("UserID"), theirs.get("UserIsRequestor")) == ("MODALITY", "false")
    assert (theirs.get("NetworkAccessPointID"), theirs.get("NetworkAccessPointTypeCode")) == (
        "192.0.2.7",
        "2",
    )
    assert ours.get("UserIsRequestor") == "true"
    subject = alert.find("ParticipantObjectIdentification")
    assert subject is not None and subject.get("ParticipantObjectID") == "192.0.2.7"
    detail = subject.find("ParticipantObjectDetail")
    assert detail is not None and detail.get("type") == "Alert Description"
    assert base64.b64decode(detail.get("value", "")) == b"association rejected: because"


@pytest.mark.parametrize(
    ("direction", "changes", "action", "outcome"),
    [
        ("received", {}, "C", "0"),
        ("received", {"known": True}, "R", "0"),
        ("received", {"failure": "aborted"}, "C", "4"),
        ("sent", {}, "R", "0"),
    ],
)
def test_transferred_instances(
    tmp_path: Path, direction: Any, changes: dict[str, Any], action: str, outcome: str
) -> None:
    trail = Trail(tmp_path)
    transfer = Transfer(PEER, direction, "1.2.3", {"1.2.4": 30, "1.2.5": 1}, **changes)
    trail.trail.begin(transfer)
    trail.trail.transferred(transfer)
    _, begin, message, _ = trail.stop()
    assert event_of(begin) == ("110102", "", outcome)
    assert event_of(message) == ("110104", "", outcome)
    assert message[0].get("EventActionCode") == action
    roles = {
        participant.get("UserID"): participant.find("RoleIDCode").get("csd-code")  # type: ignore[union-attr]
        for participant in message.findall("ActiveParticipant")
    }
    source, destination = (PEER.ae_title, str(os.getpid()))[:: 1 if direction == "received" else -1]
    assert roles == {source: "110153", destination: "110152"}
    (study,) = message.findall("ParticipantObjectIdentification")
    assert study.get("ParticipantObjectID") == "1.2.3"
    counts = [(e.get("UID"), e.get("NumberOfInstances")) for e in study.iter("SOPClass")]
    assert counts == [("1.2.4", "30"), ("1.2.5", "1")]


@pytest.mark.parametrize("title", ['"/><x', "a\nb\x00\x1b[31m", "\ud800", "&amp;", "ÄÖ", "x" * 100_000])
def test_what_a_peer_says_can_t_break_a_line(tmp_path: Path, title: str) -> None:
    trail = Trail(tmp_path)
    trail.trail.refused(Peer(title, "::1"), "host", title)
    assert len(trail.stop()) == 3
    assert trail.path.stat().st_size < 5000


def test_a_flood_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "ALERT_SECONDS", 3600.0)
    trail = Trail(tmp_path)
    admitted = [trail.trail.refused(PEER, "host", "no", outcome=MINOR_FAILURE) for _ in range(10_000)]
    assert sum(admitted) == ALERTS_IN_FULL and trail.trail.refused(Peer("", "192.0.2.8"), "host", "no")
    *_, summary, stopped = messages = trail.stop()
    assert len(messages) == 1 + ALERTS_IN_FULL + 1 + 1 + 1
    assert summary[0].findtext("EventOutcomeDescription", "").startswith("host: 9995 more")
    assert event_of(stopped)[1] == "110121"
    assert (trail.count("suppressed"), trail.count("written")) == (9995.0, float(len(messages)))


def test_many_hosts_at_once_are_counted_together() -> None:
    limit = AlertLimit()
    admitted = sum(limit.admit("host", f"192.0.{n // 256}.{n % 256}", 0.0) for n in range(5000))
    assert admitted == audit.ALERT_KEYS + ALERTS_IN_FULL
    assert limit.suppressed(1.0) == {}
    (count,) = limit.suppressed(audit.ALERT_SECONDS).values()
    assert count + admitted == 5000
    assert limit.suppressed(audit.ALERT_SECONDS) == {}
    assert limit.admit("host", "192.0.2.1", audit.ALERT_SECONDS), "a new window"


def test_suppressed_alerts_are_written_when_their_window_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "ALERT_SECONDS", 0.2)
    monkeypatch.setattr(audit, "SYNC_SECONDS", 0.05)
    trail = Trail(tmp_path)
    for _ in range(ALERTS_IN_FULL + 7):
        trail.trail.refused(PEER, "host", "no")
    deadline = threading.Event()
    for _ in range(200):
        if b"host: 7 more" in trail.path.read_bytes():
            break
        deadline.wait(0.05)
    else:
        pytest.fail("no summary")
    trail.stop()


def test_files_rotate_and_the_oldest_goes(tmp_path: Path) -> None:
    trail = Trail(tmp_path, max_file_bytes=65_536, max_files=3)
    for number in range(1000):
        trail.trail.transferred(Transfer(PEER, "received", f"1.2.{number}", {"1.2.4": 1}))
    newest = trail.stop()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [
        "audit-receive.log",
        "audit-receive.log.1",
        "audit-receive.log.2",
    ]
    assert all(file.stat().st_size <= 65_536 for file in files)
    lines = [parsed(line) for file in reversed(files) for line in file.read_bytes().splitlines()]
    studies = [m.find("ParticipantObjectIdentification") for m in lines[:-1]]
    numbers = [int(study.get("ParticipantObjectID", "")[4:]) for study in studies if study is not None]
    assert numbers == list(range(numbers[0], 1000)), "the newest ones, without a gap, in order"
    assert event_of(newest[-1])[1] == "110121"
    assert trail.count("lost") == 0.0


def test_a_line_cut_short_stays_alone(tmp_path: Path) -> None:
    path = tmp_path / "trail"
    path.write_bytes(b"<AuditMess")
    file = RotatingFile(path, 1000, 2)
    file.open()
    file.append(b"whole\n")
    file.close()
    assert path.read_bytes() == b"<AuditMess\nwhole\n"


def test_a_full_disk_loses_messages_and_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "audit-receive.log").symlink_to("/dev/full")
    trail = Trail(tmp_path)
    for _ in range(3):
        trail.trail.refused(PEER, "host", "no")
    trail.trail.stop()
    assert trail.count("lost") == 5.0


def test_more_than_can_wait_is_lost_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked, go_on = threading.Event(), threading.Event()
    append = RotatingFile.append

    def slowly(self: RotatingFile, line: bytes) -> None:
        blocked.set()
        go_on.wait(10)
        append(self, line)

    monkeypatch.setattr(audit, "QUEUE_LENGTH", 10)
    monkeypatch.setattr(RotatingFile, "append", slowly)
    trail = Trail(tmp_path)
    assert blocked.wait(10)
    for _ in range(15):
        trail.trail.transferred(Transfer(PEER, "sent", "1.2.3", {"1.2.4": 1}))
    assert trail.count("lost") == 5.0
    go_on.set()
    assert len(trail.stop()) >= 11


def test_no_trail(tmp_path: Path) -> None:
    trail = Trail(tmp_path / "none", enabled=False)
    trail.trail.refused(PEER, "host", "no")
    trail.trail.stop()
    assert not (tmp_path / "none").exists()
