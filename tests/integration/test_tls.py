"""TLS with DCMTK and OpenSSL on the other side, both ways: who gets through, with what, and how it fails."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from pydicom import dcmread
from pynetdicom import AE, build_context
from pynetdicom.sop_class import Verification

from node.config import ReceiveConfig, ServerTls
from tests.audit_schema import event_of, parsed
from tests.certificates import Authority, Signed
from tests.integration.receiving import (
    CALLING,
    CT,
    ReceivingNode,
    Sender,
    ct_slice,
    encoded,
    storescu,
    wait_for,
)
from tests.unit.node.deliver.conftest import SERIES, write_object

pytestmark = pytest.mark.integration
DCMTK = Path("/usr/bin")  # pynetdicom installs scripts of the same names


def tls_node(data_dir: Path, tls: ServerTls, **changes: Any) -> ReceivingNode:
    receive: dict[str, Any] = {
        "port": 0,
        "allow_any_calling_ae_title": True,
        "acse_timeout_seconds": 2.0,
        "network_timeout_seconds": 5.0,
        "journal_bytes": 0,
        "free_disk_floor_bytes": 0,
    }
    return ReceivingNode(data_dir, ReceiveConfig(tls=tls, **(receive | changes))).start()


@pytest.fixture
def ours(authority: Authority) -> Signed:
    return authority.sign("node")


@pytest.fixture
def node(tmp_path: Path, authority: Authority, ours: Signed) -> Iterator[ReceivingNode]:
    """Requires certificates of ``authority``."""
    running = tls_node(
        tmp_path, ServerTls(certificate=ours.certificate, key=ours.key, client_ca=authority.ca)
    )
    yield running
    running.stop()


def client(authority: Authority, own: Signed | None) -> ssl.SSLContext:
    """An OpenSSL client that allows everything that OpenSSL can do, however weak."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
    context.load_verify_locations(authority.ca)
    if own is not None:
        context.load_cert_chain(own.certificate, own.key)
    return context


def connect(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A connection after its handshake; with TLS 1.3 the server may still refuse."""
    plain = socket.create_connection(("127.0.0.1", port), timeout=5)
    try:
        return context.wrap_socket(plain, server_hostname="127.0.0.1")
    except OSError:
        plain.close()
        raise


def refused_with(port: int, context: ssl.SSLContext) -> str:
    """Why a connection isn't taken; fails the test when it is."""
    try:
        with connect(port, context) as connection:
            data = connection.recv(1)
            pytest.fail(f"connected with {connection.version()}, {connection.cipher()}: {data!r}")
    except ssl.SSLError as error:
        return str(error.reason)


def echo(port: int, context: ssl.SSLContext | None) -> str | None:
    """C-ECHO; returns the TLS version, or None without an association."""
    ae = AE(ae_title=CALLING)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 5
    association = ae.associate(
        "127.0.0.1",
        port,
        contexts=[build_context(Verification)],
        ae_title="PACSNODE",
        tls_args=(context, "127.0.0.1") if context is not None else None,
    )
    if not association.is_established:
        return None
    connection = association.dul.socket.socket
    version = connection.version() if isinstance(connection, ssl.SSLSocket) else "plain"
    assert association.send_c_echo().Status == 0x0000
    association.release()
    return version


def security_alerts(node: ReceivingNode) -> list[str]:
    path = node.data_dir / "audit/audit-receive.log"
    messages = [parsed(line) for line in path.read_bytes().splitlines()]
    return [
        message[0].findtext("EventOutcomeDescription", "")
        for message in messages
        if event_of(message)[:2] == ("110113", "110126")
    ]


def sample(node: ReceivingNode, name: str, **labels: str) -> float:
    return node.metrics.registry.get_sample_value(f"pacsnode_{name}", labels) or 0.0


def test_dcmtk_stores_over_tls(
    node: ReceivingNode, authority: Authority, sender: Signed, tmp_path: Path
) -> None:
    pixels = bytes(400_000)  # many TLS records a PDU, many PDUs an instance
    paths = [
        write_object(tmp_path, number, Rows=400, Columns=500, PixelData=pixels) for number in range(1, 6)
    ]
    result = storescu(
        node.port,
        paths,
        "--max-send-pdu",
        "131072",
        "+tls",
        str(sender.key),
        str(sender.certificate),
        "+cf",
        str(authority.ca),
    )
    assert result.returncode == 0, result.stderr
    assert [node.dataset_bytes(row) for row in node.rows()] == [encoded(dcmread(path)) for path in paths]
    wait_for(lambda: node.completed == [(SERIES, 1)])
    assert node.series_rows()[0]["evidence"]["rule"] == "association_release"


def test_tls_1_3_is_used_when_the_peer_can(node: ReceivingNode, authority: Authority, sender: Signed) -> None:
    modern = client(authority, sender)
    assert echo(node.port, modern) == "TLSv1.3"
    modern.maximum_version = ssl.TLSVersion.TLSv1_2
    assert echo(node.port, modern) == "TLSv1.2"


@pytest.mark.parametrize("rsa_bits", [None, 2048], ids=["ecdsa", "rsa"])
def test_of_tls_1_2_only_the_listed_suites(
    tmp_path: Path, authority: Authority, sender: Signed, rsa_bits: int | None
) -> None:
    ours = authority.sign("rsa" if rsa_bits else "ec", rsa_bits=rsa_bits)
    tls = ServerTls(certificate=ours.certificate, key=ours.key, client_ca=authority.ca)
    running = tls_node(tmp_path, tls)
    try:
        context = client(authority, sender)
        offered = [suite["name"] for suite in context.get_ciphers() if suite["protocol"] != "TLSv1.3"]
        assert len(offered) > 40
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        good = [
            name
            for name in offered
            if name.startswith("ECDHE-")
            and name.endswith(("GCM-SHA256", "GCM-SHA384"))
            and "AES" in name
            and "PSK" not in name
        ]
        assert len(good) == 4
        context.set_ciphers(":".join(name for name in offered if name not in good) + ":@SECLEVEL=0")
        assert refused_with(running.port, context) == "SSLV3_ALERT_HANDSHAKE_FAILURE"
        kind = "RSA" if rsa_bits else "ECDSA"
        for name in [name for name in good if kind in name]:
            context.set_ciphers(name)
            assert echo(running.port, context) == "TLSv1.2"
    finally:
        running.stop()


def test_nothing_older_than_tls_1_2(node: ReceivingNode, authority: Authority, sender: Signed) -> None:
    old = client(authority, sender)
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        with pytest.warns(DeprecationWarning):
            old.maximum_version = version
        assert refused_with(node.port, old) == "TLSV1_ALERT_PROTOCOL_VERSION"


def test_only_those_with_a_certificate_of_our_ca(
    node: ReceivingNode, authority: Authority, stranger: Signed, sender: Signed
) -> None:
    assert refused_with(node.port, client(authority, None)) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    assert refused_with(node.port, client(authority, stranger)) == "TLSV1_ALERT_UNKNOWN_CA"
    ended = authority.sign("ended", days=-1)
    assert refused_with(node.port, client(authority, ended)) == "SSLV3_ALERT_CERTIFICATE_EXPIRED"
    for options in (
        ["+tla", "-ic"],
        ["+tls", str(stranger.key), str(stranger.certificate), "-ic"],
    ):
        assert echoscu(node.port, *options) != 0
    assert echoscu(node.port, "+tls", str(sender.key), str(sender.certificate), "+cf", str(authority.ca)) == 0
    wait_for(lambda: sample(node, "connections_dropped_total", reason="tls") == 5.0)
    wait_for(lambda: len(security_alerts(node)) == 5)
    alerts = security_alerts(node)
    assert "TLS handshake failed: peer did not return a certificate" in alerts
    assert "TLS handshake failed: certificate verify failed: certificate has expired" in alerts


def echoscu(port: int, *options: str) -> int:
    if not (DCMTK / "echoscu").exists():
        pytest.skip("needs DCMTK (apt install dcmtk)")
    command = [str(DCMTK / "echoscu"), *options, "-aec", "PACSNODE", "127.0.0.1", str(port)]
    return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode


def test_certificates_of_senders_can_be_optional(
    tmp_path: Path, authority: Authority, ours: Signed, stranger: Signed
) -> None:
    tls = ServerTls(
        certificate=ours.certificate, key=ours.key, client_ca=authority.ca, require_client_certificate=False
    )
    running = tls_node(tmp_path, tls)
    try:
        assert echo(running.port, client(authority, None)) == "TLSv1.3"
        assert refused_with(running.port, client(authority, stranger)) == "TLSV1_ALERT_UNKNOWN_CA"
    finally:
        running.stop()


def test_a_new_certificate_is_used_without_a_restart(
    node: ReceivingNode, authority: Authority, ours: Signed, sender: Signed, tmp_path: Path
) -> None:
    context = client(authority, sender)

    def served() -> int:
        with connect(node.port, context) as connection:
            certificate = connection.getpeercert(binary_form=True)
        assert certificate is not None
        return x509.load_der_x509_certificate(certificate).serial_number

    first = served()
    held = Sender(node.port, CT, tls=(context, "127.0.0.1"))
    ours.certificate.write_bytes(b"broken")
    wait_for(lambda: served() == first and sample(node, "receive_tls_reload_failures_total") == 1.0)
    renewed = authority.sign("node")  # in the same files
    wait_for(lambda: served() == renewed.x509.serial_number, what="the new certificate")
    assert sample(
        node, "receive_certificate_not_after_timestamp_seconds", file="certificate"
    ) == pytest.approx(renewed.x509.not_valid_after_utc.timestamp())
    assert held.store_image(ct_slice(SERIES, 1)) == 0x0000, "running associations go on"
    held.release()


def test_handshakes_that_never_come_hold_nobody_up(
    node: ReceivingNode, authority: Authority, sender: Signed
) -> None:
    context = client(authority, sender)
    silent = [socket.create_connection(("127.0.0.1", node.port), timeout=10) for _ in range(10)]
    trickling = socket.create_connection(("127.0.0.1", node.port), timeout=10)
    stop = threading.Event()

    def trickle() -> None:
        for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100):
            try:
                trickling.send(bytes([byte]))
            except OSError:
                return
            if stop.wait(0.2):
                return

    thread = threading.Thread(target=trickle)
    thread.start()
    started = time.monotonic()
    assert echo(node.port, context) == "TLSv1.3"
    assert time.monotonic() - started < 1.5
    for connection in (*silent, trickling):  # all of them by the timeout of 2 s
        while connection.recv(100):
            pass
        connection.close()
    assert time.monotonic() - started < 4.0
    stop.set()
    thread.join()
    wait_for(lambda: sample(node, "connections_dropped_total", reason="tls") == 11.0)
    assert "TLS handshake failed: no TLS handshake in time" in security_alerts(node)


def test_stop_does_not_wait_for_handshakes(tmp_path: Path, authority: Authority, ours: Signed) -> None:
    tls = ServerTls(certificate=ours.certificate, key=ours.key, client_ca=authority.ca)
    running = tls_node(tmp_path, tls, acse_timeout_seconds=30.0)
    with socket.create_connection(("127.0.0.1", running.port), timeout=5) as silent:
        wait_for(lambda: "process_request_thread" in " ".join(t.name for t in threading.enumerate()))
        started = time.monotonic()
        running.stop(grace_seconds=0.2)
        assert silent.recv(10) == b""
        assert time.monotonic() - started < 3.0


def test_plain_tcp_to_the_tls_port_and_tls_to_a_plain_one(
    node: ReceivingNode, tmp_path: Path, authority: Authority, sender: Signed
) -> None:
    started = time.monotonic()
    assert echo(node.port, None) is None
    assert echoscu(node.port) != 0
    wait_for(lambda: sample(node, "connections_dropped_total", reason="tls") == 2.0)
    plain = ReceivingNode(tmp_path / "plain").start()
    try:
        context = client(authority, sender)
        with pytest.raises(OSError), connect(plain.port, context):
            pass
        options = ("+tls", str(sender.key), str(sender.certificate), "+cf", str(authority.ca))
        assert echoscu(plain.port, *options) != 0
        assert echo(plain.port, None) == "plain"
    finally:
        plain.stop()
    assert time.monotonic() - started < 8.0
    assert echo(node.port, context) == "TLSv1.3"
