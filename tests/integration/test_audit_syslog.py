"""The audit trail at a real collector: rsyslog, by syslog over TLS with certificates on both sides."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node.audit import AuditTrail
from node.audit_message import SERIOUS_FAILURE, Peer, Source, Transfer
from node.audit_syslog import check_collector
from node.config import AuditConfig, SyslogConfig
from node.errors import DeliveryError
from node.metrics import Metrics
from node.triton_server import free_port
from tests.audit_schema import event_of, parsed
from tests.certificates import Authority, Signed
from tests.integration.receiving import wait_for

pytestmark = pytest.mark.integration

_CONFIG = """
global(workDirectory="{folder}" maxMessageSize="64k" defaultNetstreamDriver="gtls"
  defaultNetstreamDriverCAFile="{ca}" defaultNetstreamDriverCertFile="{certificate}"
  defaultNetstreamDriverKeyFile="{key}")
module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1" streamDriver.authMode="x509/certvalid")
template(name="told" type="string" string="%pri% %hostname% %app-name% %procid% %msgid% %msg%\\n")
input(type="imtcp" port="{port}" address="127.0.0.1")
action(type="omfile" file="{received}" template="told")
"""


class Rsyslog:
    """A collector in a folder. What it received outlives it."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        program = shutil.which("rsyslogd", path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None and not os.environ.get("CI"):
            pytest.skip("needs rsyslog: apt-get install rsyslog rsyslog-gnutls")
        assert program is not None, "CI must have rsyslog installed"
        folder.mkdir()
        self.port = free_port()
        self.received = folder / "received"
        own = authority.sign("collector")
        config = folder / "rsyslog.conf"
        config.write_text(
            _CONFIG.format(
                folder=folder,
                ca=authority.ca,
                certificate=own.certificate,
                key=own.key,
                port=self.port,
                received=self.received,
            )
        )
        self._command = [program, "-n", "-f", str(config), "-i", str(folder / "pid")]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def lines(self) -> list[str]:
        return self.received.read_text(encoding="utf-8").splitlines() if self.received.exists() else []

    def events(self) -> list[tuple[str, str, str]]:
        """Of the messages, each fit for the schema."""
        return [event_of(parsed(line.split(" ", 5)[5].lstrip("\ufeff"))) for line in self.lines()]


@pytest.fixture
def collector(tmp_path: Path, authority: Authority) -> Iterator[Rsyslog]:
    found = Rsyslog(tmp_path / "collector", authority)
    yield found
    found.kill()


class Trail:
    def __init__(self, folder: Path, collector: Rsyslog, authority: Authority, own: Signed) -> None:
        tls = {"ca": authority.ca, "certificate": own.certificate, "key": own.key}
        syslog = {"host": "127.0.0.1", "port": collector.port, "tls": tls, "timeout_seconds": 5.0}
        self.config = AuditConfig.model_validate({"syslog": syslog})
        self.metrics = Metrics("0")
        self.trail = AuditTrail(self.config, folder, Source("PACSNODE", "node"), self.metrics.audit)
        self.trail.start()

    @property
    def syslog(self) -> SyslogConfig:
        assert self.config.syslog is not None
        return self.config.syslog

    def value(self, name: str, **labels: Any) -> float:
        return self.metrics.registry.get_sample_value(f"pacsnode_audit_{name}", labels) or 0.0

    def transferred(self, number: int) -> None:
        study = f"1.2.{number}"
        self.trail.transferred(Transfer(Peer("MODALITY", "192.0.2.7"), "received", study, {"1.2.840": 3}))


def test_messages_arrive_as_the_profile_says(
    tmp_path: Path, collector: Rsyslog, authority: Authority, sender: Signed
) -> None:
    collector.start()
    trail = Trail(tmp_path / "audit", collector, authority, sender)
    trail.transferred(1)
    trail.trail.refused(Peer("ÄÖ<&", "192.0.2.8"), "host", "because", outcome=SERIOUS_FAILURE)
    wait_for(lambda: len(collector.lines()) == 3, what="three messages")
    assert trail.value("messages_total", outcome="sent") == 3
    trail.trail.stop()  # the last one goes out before the process ends
    wait_for(lambda: len(collector.lines()) == 4, what="the message of the stop")
    assert collector.events() == [
        ("110100", "110120", "0"),
        ("110104", "", "0"),
        ("110113", "110126", "8"),
        ("110100", "110121", "0"),
    ]
    headers = [line.split(" ", 5) for line in collector.lines()]
    assert [one[0] for one in headers] == ["85", "85", "84", "85"]
    assert {tuple(one[2:5]) for one in headers} == {("pacsnode", "node", "DICOM+RFC3881")}
    assert all(one[5].startswith("\ufeff<AuditMessage>") for one in headers)
    assert 'UserID="ÄÖ&lt;&amp;"' in collector.lines()[2]


def test_nothing_is_missing_when_the_collector_was_away_and_the_node_restarted(
    tmp_path: Path, collector: Rsyslog, authority: Authority, sender: Signed
) -> None:
    trail = Trail(tmp_path / "audit", collector, authority, sender)
    for number in range(200):
        trail.transferred(number)
    wait_for(lambda: trail.value("unsent_bytes") > 100_000, what="messages that wait")
    trail.trail.stop()
    again = Trail(tmp_path / "audit", collector, authority, sender)
    collector.start()
    wait_for(lambda: again.value("messages_total", outcome="sent") >= 203, what="all that waited")
    assert again.value("unsent_bytes") == 0
    collector.kill()
    for number in range(200, 230):
        again.transferred(number)
    wait_for(lambda: again.value("messages_total", outcome="written") == 31, what="messages in the file")
    collector.start()
    wait_for(lambda: '"1.2.229"' in "".join(collector.lines()), what="the last message")
    again.trail.stop()
    wait_for(lambda: collector.events()[-1][1] == "110121", what="the message of the stop")
    studies = [
        line.split('ParticipantObjectID="')[1].split('"')[0] for line in collector.lines() if "1.2.84" in line
    ]
    assert sorted(set(studies), key=studies.index) == [f"1.2.{number}" for number in range(230)], "in order"
    assert len(studies) == 230, "a collector that acknowledged doesn't get it twice"


def test_a_stranger_isn_t_sent_anything(
    tmp_path: Path, collector: Rsyslog, authority: Authority, sender: Signed, stranger: Signed
) -> None:
    collector.start()
    trail = Trail(tmp_path / "audit", collector, authority, sender)
    wait_for(lambda: len(collector.lines()) == 1, what="a message")
    check_collector(trail.syslog)
    trail.trail.stop()
    other = Trail(tmp_path / "other", collector, authority, stranger)
    with pytest.raises(DeliveryError, match="the collector"):
        check_collector(other.syslog)
    foreign = Authority(tmp_path / "foreign")
    tls = trail.syslog.tls.model_copy(update={"ca": foreign.ca})
    with pytest.raises(DeliveryError, match="certificate verify failed") as raised:
        check_collector(trail.syslog.model_copy(update={"tls": tls}))
    assert "ca and server_name" in raised.value.hint
    collector.kill()
    with pytest.raises(DeliveryError, match=rf"127.0.0.1:{collector.port} can't be reached"):
        check_collector(trail.syslog)
    other.trail.stop()
    assert len(collector.lines()) == 2
