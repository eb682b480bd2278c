"""Destinations over TLS, with DCMTK's storescp and a receiver that speaks TLS 1.3."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import pytest
from pydicom.uid import CTImageStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification

from node.audit import AuditTrail
from node.audit_message import Source
from node.config import AuditConfig, ClientTls, CStoreDestination
from node.deliver import make_destination
from node.deliver.base import Destination
from node.errors import ConfigError, DeliveryError
from node.metrics import Metrics
from node.triton_server import free_port
from tests.audit_schema import event_of, parsed
from tests.certificates import Authority, Signed
from tests.integration.receiving import storescu, wait_for
from tests.integration.running import RunningNode
from tests.unit.node.deliver.conftest import write_object

pytestmark = pytest.mark.integration
STORESCP = Path("/usr/bin/storescp")  # pynetdicom installs a script of the same name


@pytest.fixture
def storescp(tmp_path: Path, authority: Authority) -> Iterator[Callable[..., int]]:
    """Start a storescp with a certificate of ``authority`` that requires one; returns its port."""
    if not STORESCP.exists():
        pytest.skip("needs DCMTK (apt install dcmtk)")
    processes: list[subprocess.Popen[bytes]] = []
    received = tmp_path / "received"
    received.mkdir()

    def start(own: Signed) -> int:
        port = free_port()
        files: list[str | Path] = ["+tls", own.key, own.certificate, "+cf", authority.ca, "-od", received]
        processes.append(subprocess.Popen([STORESCP, *files, str(port)], stderr=subprocess.DEVNULL))
        wait_for(lambda: listens(port), what="storescp")
        return port

    yield start
    for process in processes:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class _Files(TypedDict, total=False):
    certificate: Path
    key: Path


def destination(port: int, audit: AuditTrail | None = None, **tls: Any) -> Destination:
    config = CStoreDestination(
        type="cstore",
        ae_title="STORESCP",
        host="127.0.0.1",
        port=port,
        timeout_seconds=5,
        tls=ClientTls(**tls),
    )
    return make_destination("pacs", config, calling_ae_title="PACSNODE", audit=audit)


def test_results_go_to_storescp_over_tls(
    tmp_path: Path, storescp: Callable[..., int], authority: Authority, sender: Signed
) -> None:
    port = storescp(authority.sign("pacs"))
    deliverer = destination(port, ca=authority.ca, certificate=sender.certificate, key=sender.key)
    deliverer.check()
    deliverer.deliver([write_object(tmp_path, 1)])
    assert len(list((tmp_path / "received").iterdir())) == 1


@pytest.mark.parametrize(
    ("who", "why"),
    [
        (("pacs", "stranger"), "unknown ca"),
        (("stranger", "sender"), "unable to get local issuer"),
        (("elsewhere", "sender"), "IP address mismatch"),
        (("ended", "sender"), "certificate has expired"),
        (("pacs", None), "certificate required"),
    ],
)
def test_certificates_that_do_not_fit(
    storescp: Callable[..., int],
    authority: Authority,
    stranger: Signed,
    who: tuple[str, str | None],
    why: str,
) -> None:
    theirs, ours = who
    signed = {
        "stranger": stranger,
        "sender": authority.sign("sender"),
        "pacs": authority.sign("pacs"),
        "elsewhere": authority.sign("elsewhere", host="192.0.2.1"),
        "ended": authority.sign("ended", days=-1),
    }
    port = storescp(signed[theirs])
    own = signed[ours] if ours is not None else None
    files: _Files = {"certificate": own.certificate, "key": own.key} if own is not None else {}
    with pytest.raises(DeliveryError) as raised:
        destination(port, ca=authority.ca, **files).check()
    assert (raised.value.code, raised.value.retryable) == ("tls_failed", True)
    assert "TLS failed: " in str(raised.value) and why in str(raised.value)
    if theirs == "elsewhere":
        destination(port, ca=authority.ca, verify_host=False, **files).check()
        destination(port, ca=authority.ca, server_name="192.0.2.1", **files).check()


def test_a_receiver_with_tls_1_3(authority: Authority, sender: Signed) -> None:
    """Its refusal of our certificate comes after the handshake."""
    pacs = authority.sign("pacs")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pacs.certificate, pacs.key)
    context.load_verify_locations(authority.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    versions = []

    def accepted(event: evt.Event) -> None:
        versions.append(event.assoc.dul.socket.socket.version())

    ae = AE(ae_title="STORESCP")
    ae.add_supported_context(Verification)
    handlers = [(evt.EVT_ACCEPTED, accepted)]
    server = ae.start_server(("127.0.0.1", 0), block=False, ssl_context=context, evt_handlers=handlers)
    try:
        port = server.server_address[1]
        destination(port, ca=authority.ca, certificate=sender.certificate, key=sender.key).check()
        assert versions == ["TLSv1.3"]
        with pytest.raises(DeliveryError, match=r"TLS failed: .*certificate required"):
            destination(port, ca=authority.ca).check()
    finally:
        server.shutdown()


def test_a_destination_s_new_certificate_is_used(
    storescp: Callable[..., int], authority: Authority, stranger: Signed, sender: Signed, tmp_path: Path
) -> None:
    own = Signed(tmp_path / "own.crt", tmp_path / "own.key")
    shutil.copy(stranger.certificate, own.certificate)
    shutil.copy(stranger.key, own.key)
    deliverer = destination(
        storescp(authority.sign("pacs")), ca=authority.ca, certificate=own.certificate, key=own.key
    )
    with pytest.raises(DeliveryError, match="TLS failed"):
        deliverer.check()
    shutil.copy(sender.certificate, own.certificate)
    shutil.copy(sender.key, own.key)

    def works() -> bool:
        try:
            deliverer.check()
        except DeliveryError:
            return False
        return True

    wait_for(works)
    own.key.write_bytes(b"")
    time.sleep(1.1)  # until the files are looked at again
    deliverer.check()


def test_a_destination_with_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"destinations\.pacs\.tls\.ca"):
        destination(104, ca=tmp_path / "missing")


def test_what_is_sent_and_what_fails_is_in_the_audit_trail(
    storescp: Callable[..., int], authority: Authority, sender: Signed, stranger: Signed, tmp_path: Path
) -> None:
    metrics = Metrics("1")
    audit = AuditTrail(AuditConfig(), tmp_path / "audit", Source("PACSNODE", "node"), metrics.audit)
    audit.start()
    files = [write_object(tmp_path, number) for number in (1, 2)]
    port = storescp(authority.sign("pacs"))
    own = {"certificate": sender.certificate, "key": sender.key}
    destination(port, audit, ca=authority.ca, **own).deliver(files)
    with pytest.raises(DeliveryError):
        destination(port, audit, ca=stranger.certificate, **own).deliver(files)
    audit.stop()
    lines = (tmp_path / "audit/audit-node.log").read_bytes().splitlines()
    _, begin, transferred, alert, _ = messages = [parsed(line) for line in lines]
    assert [event_of(message)[0] for message in messages] == [
        "110100",
        "110102",
        "110104",
        "110113",
        "110100",
    ]
    for message in (begin, transferred):
        (instances,) = message.iter("SOPClass")
        assert (instances.get("UID"), instances.get("NumberOfInstances")) == (CTImageStorage, "2")
        receiver = message.findall("ActiveParticipant")[1]
        assert receiver.get("UserID") == "STORESCP" and receiver.get("NetworkAccessPointID") == "127.0.0.1"
    assert "certificate verify failed" in alert[0].findtext("EventOutcomeDescription", "")
    assert b"Doe" not in b"".join(lines)


def test_the_whole_node_with_tls(
    storescp: Callable[..., int], authority: Authority, sender: Signed, tmp_path: Path
) -> None:
    ours, pacs = authority.sign("node"), storescp(authority.sign("pacs"))
    own = {"certificate": str(ours.certificate), "key": str(ours.key)}
    to_pacs = {
        "type": "cstore",
        "ae_title": "P",
        "host": "127.0.0.1",
        "port": pacs,
        "tls": own | {"ca": str(authority.ca)},
    }
    sections: dict[str, Any] = {
        "routes": [],
        "receive": {
            "port": 0,
            "allow_any_calling_ae_title": True,
            "free_disk_floor_bytes": 0,
            "journal_bytes": 0,
            "tls": own | {"client_ca": str(authority.ca)},
        },
        "destinations": {"pacs": to_pacs},
    }
    node = RunningNode(tmp_path / "node", triton_url="127.0.0.1:1", pacs_port=1, **sections).start()
    try:
        port = int(node.events("listening")[-1]["port"])
        image = write_object(tmp_path, 1)
        options = ("+tls", str(sender.key), str(sender.certificate), "+cf", str(authority.ca))
        assert storescu(port, [image], *options).returncode == 0
        assert storescu(port, [image]).returncode != 0
        metrics = node.text("/metrics")
        ends = int(ours.x509.not_valid_after_utc.timestamp())
        for labels in (
            'receive_certificate_not_after_timestamp_seconds{file="certificate"}',
            'destination_certificate_not_after_timestamp_seconds{destination="pacs",file="certificate"}',
        ):
            (shown,) = [line for line in metrics.splitlines() if line.startswith(f"pacsnode_{labels} ")]
            assert float(shown.split()[-1]) == ends
    finally:
        node.stop()
    codes = {
        name: [
            event_of(parsed(line))[0]
            for line in (node.data_dir / f"audit/audit-{name}.log").read_bytes().splitlines()
        ]
        for name in ("receive", "node")
    }
    assert codes == {"receive": ["110100", "110104", "110113", "110100"], "node": ["110100", "110100"]}
