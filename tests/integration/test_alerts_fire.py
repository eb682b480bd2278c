"""Each alert that we ship fires by its real fault: a real Prometheus with our rules, of which only the
durations are shorter (``short_alerts``), scrapes a real node while the faults are made.

TurnaroundSlow is the one whose fault isn't waited for: the node finds a job that came twenty minutes ago, as
one that was down for so long does.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from sqlalchemy import insert

from node.database import jobs, open_database, series
from node.route.defaults import default_routes
from node.triton_server import DEFAULT_REPOSITORY, EmbeddedTriton, free_port
from pipelines.request import SUMMARY
from tests.certificates import Authority
from tests.chaos.disk import SmallDisk
from tests.integration import seeding
from tests.integration.commitment_peers import Requestor
from tests.integration.receiving import ct_slice, wait_for
from tests.integration.running import CALLING, RunningNode, storescu
from tests.integration.short_alerts import ALERTS, shortened
from tests.integration.test_prometheus import Prometheus
from tests.processes import children, read
from tests.unit.node.deliver.conftest import write_object
from tests.unit.node.rows import job_row, series_row

pytestmark = pytest.mark.integration

NAMES = frozenset(
    rule["alert"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
)
#: the alert's own threshold; less free space than this isn't enough for the node, either
FLOOR_BYTES = 20_000_000_000
LATE_SECONDS = 1200.0


def _dead(**more: Any) -> dict[str, Any]:
    """A destination or peer where nobody listens."""
    return {"ae_title": "AWAY", "host": "127.0.0.1", "port": free_port()} | more


@dataclass
class World:
    """A node with everything that can go wrong, and who watches it."""

    folder: Path
    source: Path
    stack: ExitStack

    def __post_init__(self) -> None:
        stack, folder = self.stack, self.folder
        self.disk = seeding.Disk(folder / "disk", floor_bytes=FLOOR_BYTES)
        stack.callback(self.disk.remove)
        self.audit_disk = SmallDisk(folder / "audit", 2 * seeding.MIB)
        stack.callback(self.audit_disk.remove)
        authority = Authority(folder / "ca")
        self.signed = authority.sign("ends-soon", days=5)
        files = {"ca": authority.ca, "certificate": self.signed.certificate, "key": self.signed.key}
        tls = {name: str(path) for name, path in files.items()}
        repository = folder / "repository"
        shutil.copytree(DEFAULT_REPOSITORY / "lungs", repository / "lungs")
        self.triton = stack.enter_context(EmbeddedTriton(repository))
        retried = {"type": "cstore", "retry_seconds": 0.5, "max_retry_seconds": 1.0, "timeout_seconds": 5.0}
        self.node = RunningNode(
            folder / "node",
            triton_url=self.triton.url,
            pacs_port=0,
            data_dir=str(self.disk.folder / "var"),
            receive={
                "allowed_calling_ae_titles": [CALLING],
                "free_disk_floor_bytes": FLOOR_BYTES,
                "journal_bytes": 48 * seeding.MIB,
                "movers": 1,
                "commitment": {"peers": {CALLING: {"host": "127.0.0.1", "port": free_port()}}},
            },
            series={"quiet_seconds": 2.0, "released_quiet_seconds": 0.3, "missing_wait_seconds": 1.0},
            query={"archive": _dead(senders=[CALLING], retry_seconds=0.3, timeout_seconds=2.0)},
            destinations={
                "shelf": {"type": "folder", "path": str(folder / "shelf")},
                "gone": retried | _dead(max_attempts=2),
                "secure": retried | _dead(tls=tls),
            },
            routes=[route.model_dump(mode="json") for route in default_routes(["shelf"])],
            audit={
                "folder": str(self.audit_disk.folder),
                "syslog": {"host": "127.0.0.1", "port": free_port(), "tls": tls, "timeout_seconds": 2.0},
            },
        )
        self._left_by_a_node_that_was_down()
        self.node.start()
        stack.callback(self.node.stop)
        rules = folder / "alerts.yml"
        rules.write_text(shortened(ALERTS.read_text()))
        metrics = self.triton.metrics_url.removeprefix("http://").removesuffix("/metrics")
        (folder / "prometheus").mkdir()
        self.prometheus = Prometheus(
            folder / "prometheus", node=f"127.0.0.1:{self.node.web_port}", triton=metrics, rules=rules
        )
        stack.callback(self.prometheus.stop)

    def _left_by_a_node_that_was_down(self) -> None:
        """Two jobs whose results are made: one for the folder, one for the destinations that are away."""
        engine = open_database(self.node.data_dir)
        came = time.time() - LATE_SECONDS
        for name, uid, destinations in (("late", "1.2.3", ["shelf"]), ("away", "1.2.4", ["gone", "secure"])):
            folder = self.node.data_dir / "results" / name
            folder.mkdir(parents=True)
            path = write_object(folder, 1)
            summary = {"results": [{"path": path.name}], "findings": [], "noisy_or": {}}
            (folder / SUMMARY).write_text(json.dumps(summary | {"case_type": "", "timings_seconds": {}}))
            times = {"opened_at": came, "last_instance_at": came, "completed_at": came}
            job = {"destinations": destinations, "created_at": came, "series_instance_uid": uid}
            with engine.begin() as connection:
                connection.execute(insert(series).values(series_row(series_instance_uid=uid, **times)))
                connection.execute(insert(jobs).values(job_row(job_id=name, **job)))
        engine.dispose()

    def fired(self) -> set[str]:
        """Which alerts have fired so far."""
        found = self.prometheus.query('max_over_time(ALERTS{alertstate="firing"}[1h])')
        return {one["metric"]["alertname"] for one in found}

    def fault(self, make: Callable[[], object], *alerts: str) -> None:
        """Make it. None of its alerts may have fired before."""
        early = self.fired() & set(alerts)
        assert not early, f"fired before their fault was made: {early}"
        make()

    def until_firing(self, *alerts: str) -> None:
        """Now: of faults that last, which a busy machine may show for a moment before."""
        for alert in alerts:
            firing = f'ALERTS{{alertname="{alert}",alertstate="firing"}}'
            wait_for(lambda: self.prometheus.query(firing), seconds=60, what=alert)  # noqa: B023

    def until_fired(self, *alerts: str, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while missing := set(alerts) - self.fired():
            assert time.monotonic() < deadline, f"didn't fire: {sorted(missing)}; see {self.node.log_path}"
            time.sleep(0.25)

    def send(self, name: str, change: seeding.Change = seeding.keep) -> None:
        seeding.seeded_series(self.source, self.folder / name, change)
        assert storescu(self.node.port, self.folder / name).returncode == 0

    def ask_for_a_commitment(self) -> None:
        """Of an instance whose series no route wants; nobody takes the report."""
        image = _unwanted()
        with Requestor(self.node.port, calling=CALLING) as requestor:
            assert requestor.store(image) == 0x0000
            requestor.ask([image])

    def deliver_again(self) -> None:
        """A first delivery is no rate; ops ask for it a second time, once the first has been scraped."""
        count = "pacsnode_turnaround_seconds_count"
        wait_for(lambda: self.prometheus.query(f"{count} > 0"), seconds=60, what="the first one")
        address = f"http://127.0.0.1:{self.node.web_port}"
        asked = httpx.post(f"{address}/api/jobs/late/retry", headers={"Origin": address}, timeout=30.0)
        assert asked.status_code == 200, asked.text

    def send_what_no_route_wants(self) -> None:
        """Twelve series at once, while none comes that one wants."""
        unmatched = 'pacsnode_routing_total{outcome="unmatched"} > 0'
        wait_for(lambda: self.prometheus.query(unmatched), seconds=60, what="the first unmatched series")
        matched = 'increase(pacsnode_routing_total{outcome="matched"}[5s]) > 0'
        wait_for(lambda: not self.prometheus.query(matched), seconds=60, what="nothing to match")
        folder = self.folder / "unwanted"
        folder.mkdir()
        for number in range(16):
            image = _unwanted()
            image.ensure_file_meta()
            image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            image.save_as(folder / f"{number}.dcm", enforce_file_format=True)
        assert storescu(self.node.port, folder).returncode == 0

    def kill_triton(self) -> None:
        """With a job that waits for it. The tests' own process is the one that started it."""
        (pid,) = (one for one in children(os.getpid(), deep=True) if _serves(one, self.triton))
        os.kill(pid, signal.SIGKILL)
        wait_for(
            lambda: self.prometheus.query("pacsnode_triton_ready == 0"),
            seconds=60,
            what="a Triton that is gone",
        )
        self.send("waiting")

    def knock(self) -> None:
        """Someone who isn't known."""
        echo = ["/usr/bin/echoscu", "-aet", "NOBODY", "-aec", "PACSNODE", "127.0.0.1", str(self.node.port)]
        assert subprocess.run(echo, capture_output=True, timeout=60, check=False).returncode != 0

    def fill_the_trail_s_disk(self) -> None:
        """Then transfers can't be written down, as soon as the last block is full."""
        self.audit_disk.fill()

        def noticed() -> object:
            storescu(self.node.port, self.folder / "quarantined")
            return self.node.events("audit_trail_failed")

        wait_for(noticed, seconds=60, what="a trail that can't be written")

    def break_the_certificate(self) -> None:
        self.signed.certificate.write_text("no certificate\n")

    def fill_the_disk(self) -> None:
        seeding.refuse_by_full_disk(self.node, self.disk, self.folder / "incomplete")


def _unwanted() -> Dataset:
    return ct_slice(str(generate_uid()), 0, Modality="XX")


def _serves(pid: int, triton: EmbeddedTriton) -> bool:
    try:
        command = read(pid, "cmdline")
    except OSError:
        return False
    port = triton.url.rpartition(":")[2]
    return command.split("\0")[0].endswith("tritonserver") and port in command


@pytest.fixture
def world(tmp_path: Path, phantom_series: Path) -> Iterator[World]:
    if os.geteuid() != 0:
        pytest.skip("mounting small file systems needs root")
    with ExitStack() as stack:
        yield World(tmp_path, phantom_series, stack)


def test_each_alert_fires_by_its_fault(world: World) -> None:
    from_the_start = {
        "PacsnodeAuditCollectorAway",
        "PacsnodeCertificateEnds",
        "PacsnodeDeliveryGivenUp",
        "PacsnodeDestinationDown",
    }
    fault = world.fault
    fault(world.ask_for_a_commitment, "PacsnodeCommitmentsWait", "PacsnodeQueryPeerFails")
    fault(lambda: world.send("quarantined", seeding.without_a_series), "PacsnodeInstancesQuarantined")
    fault(
        lambda: world.send("incomplete", seeding.without_the_middle),
        "PacsnodeSeriesIncomplete",
        "PacsnodeJobsFail",  # there is but one model
    )
    fault(world.deliver_again, "PacsnodeTurnaroundSlow")
    wait_for(lambda: world.node.events("job_failed"), seconds=60, what="the job without its models")
    fault(world.send_what_no_route_wants, "PacsnodeSeriesUnmatched")
    world.until_fired("PacsnodeSeriesUnmatched")
    world.kill_triton()
    world.until_firing("PacsnodeTritonNotReady", "PacsnodeJobsDontMove")
    fault(world.knock, "PacsnodeUnknownSender")
    fault(world.fill_the_trail_s_disk, "PacsnodeAuditLost")
    fault(world.break_the_certificate, "PacsnodeTlsReloadFails")
    world.until_fired("PacsnodeTlsReloadFails", *from_the_start)
    fault(world.fill_the_disk, "PacsnodeTurnsSendersAway", "PacsnodeInstancesRefused")
    world.until_fired(*(NAMES - {"PacsnodeDown"}))
    assert world.prometheus.query("pacsnode_free_disk_bytes < 20e9")
    fault(world.node.kill, "PacsnodeDown")
    world.until_fired(*NAMES)
