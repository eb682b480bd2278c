"""Destinations over TLS, with DCMTK's storescp and a receiver that speaks TLS 1.3."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification

from node.config import ClientTls, CStoreDestination
from node.deliver import make_deliverer
from node.deliver.base import Deliverer
from node.errors import ConfigError, DeliveryError
from node.triton_server import free_port
from tests.certificates import Authority, Signed
from tests.integration.receiving import wait_for
from tests.unit.node.deliver.conftest import write_object

pytestmark = pytest.mark.integration
STORESCP = Path("/usr/bin/storescp")  # pynetdicom installs a script of the same name


@pytest.fixture
def storescp(tmp_path: Path, authority: Authority) -> Iterator[Callable[..., int]]:
    """Start a storescp with a certificate of ``authority`` that requires one; returns its port."""
    if not STORESCP.exists():
        pytest.skip("needs DCMTK (apt install dcmtk)")
    processes = []
    received = tmp_path / "received"
    received.mkdir()

    def start(own: Signed) -> int:
        port = free_port()
        command = [STORESCP, "+tls", own.key, own.certificate, "+cf", authority.ca, "-od", received]
        processes.append(subprocess.Popen([*command, str(port)], stderr=subprocess.DEVNULL))
        wait_for(lambda: listens(port), what="storescp")
        return port

    yield start
    for process in processes:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def destination(port: int, **tls: Any) -> Deliverer:
    config = CStoreDestination(
        type="cstore",
        ae_title="STORESCP",
        host="127.0.0.1",
        port=port,
        timeout_seconds=5,
        tls=ClientTls(**tls),
    )
    return make_deliverer("pacs", config, calling_ae_title="PACSNODE")


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
    files = {"certificate": own.certificate, "key": own.key} if own is not None else {}
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
