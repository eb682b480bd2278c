"""C-STORE to a real SCP on the loopback that answers, refuses and misbehaves as told."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import CTImageStorage, SecondaryCaptureImageStorage
from pynetdicom import evt
from structlog.testing import capture_logs

from node.config import CStoreDestination
from node.deliver import make_destination
from node.deliver.cstore import CStoreDeliverer
from node.errors import DeliveryError
from node.triton_server import free_port
from tests.unit.node.deliver.peer import PEER, Peer

STATUS_RETRYABLE = {
    0xA700: True,  # out of resources
    0x0110: True,  # processing failure
    0x0213: True,  # resource limitation
    0x0124: False,  # not authorized
    0x0122: False,  # SOP class not supported
    0x0212: False,  # mistyped argument
    0xA900: False,  # data set doesn't match the SOP class
    0xA801: False,
    0xC000: False,  # cannot understand
    0xCFFF: False,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Peer]:
    peer = Peer(CTImageStorage, SecondaryCaptureImageStorage)
    yield peer
    peer.stop()


@pytest.fixture
def peer(server: Peer) -> Peer:
    """The peer that takes everything, with nothing on record."""
    server.answers, server.stored, server.associations = [], [], []
    return server


def deliverer(
    port: int, *, timeout_seconds: float = 10.0, calling_ae_title: str | None = None
) -> CStoreDeliverer:
    config = CStoreDestination(
        type="cstore",
        ae_title=PEER,
        host="127.0.0.1",
        port=port,
        timeout_seconds=timeout_seconds,
        calling_ae_title=calling_ae_title,
    )
    made = make_destination("pacs", config, calling_ae_title="PACSNODE")
    assert isinstance(made, CStoreDeliverer)
    return made


def uids(files: list[Path]) -> list[str]:
    return [str(dcmread(file).SOPInstanceUID) for file in files]


def refusal(port: int, files: list[Path], *, timeout_seconds: float = 10.0) -> DeliveryError:
    with pytest.raises(DeliveryError) as raised:
        deliverer(port, timeout_seconds=timeout_seconds).deliver(files)
    assert str(raised.value).startswith(f"destination pacs (PACS at 127.0.0.1:{port})")
    assert "Doe" not in str(raised.value)
    return raised.value


def test_everything_is_sent_in_order_over_one_association(peer: Peer, files: list[Path]) -> None:
    deliverer(peer.port).deliver(files)
    assert peer.stored == uids(files)
    assert peer.associations == [("PACSNODE", PEER, 131072)]


def test_a_destinations_own_calling_ae_title(peer: Peer, files: list[Path]) -> None:
    deliverer(peer.port, calling_ae_title="RESULTS").deliver(files)
    assert peer.associations[0][0] == "RESULTS"


def test_delivered_again_is_sent_again(peer: Peer, files: list[Path]) -> None:
    for _ in range(2):
        deliverer(peer.port).deliver(files)
    assert peer.stored == uids(files) * 2


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007])
def test_warnings_count_as_stored(peer: Peer, files: list[Path], status: int) -> None:
    peer.answers = [0x0000, status, 0x0000]
    with capture_logs() as logs:
        stored = deliverer(peer.port).deliver(files)
    assert peer.stored == uids(files)
    assert [bool(each.warning) for each in stored] == [False, True, False]
    assert f"{status:#06x}" in stored[1].warning
    (line,) = [line for line in logs if line["event"] == "c_store_warning"]
    assert (line["sop_instance_uid"], line["status"]) == (uids(files)[1], f"{status:#06x}")


@pytest.mark.parametrize("status", STATUS_RETRYABLE)
def test_failures(peer: Peer, files: list[Path], status: int) -> None:
    peer.answers = [0x0000, status]
    error = refusal(peer.port, files)
    assert (error.code, error.retryable) == ("c_store_failed", STATUS_RETRYABLE[status])
    assert f"C-STORE of {uids(files)[1]} failed with status {status:#06x} (" in str(error)
    assert error.hint
    # what it never takes doesn't keep the next from it; what it doesn't take now ends the attempt
    assert len(peer.stored) == (2 if error.retryable else 3)


def test_several_failures_are_all_named(peer: Peer, files: list[Path]) -> None:
    peer.answers = [0xA900, 0x0000, 0xC123]
    error = refusal(peer.port, files)
    first, _, third = uids(files)
    assert f"{first} failed with status 0xa900 (error: data set does not match SOP class)" in str(error)
    assert f"{third} failed with status 0xc123 (error: cannot understand)" in str(error)
    assert not error.retryable
    peer.answers = [0xA900, 0xA700]
    assert refusal(peer.port, files).retryable


def test_a_duplicate_is_stored(peer: Peer, files: list[Path]) -> None:
    """The receiver has it of an attempt before, of which we don't know the end."""
    peer.answers = [0x0111]
    stored = deliverer(peer.port).deliver(files)
    assert [each.sop_instance_uid for each in stored] == uids(files)
    assert "it is there already" in stored[0].warning and not stored[1].warning


def test_every_instance_waits_for_its_turn(peer: Peer, files: list[Path]) -> None:
    sizes: list[int] = []
    deliverer(peer.port).deliver(files, sizes.append)
    assert sizes == [file.stat().st_size for file in files]


def test_nobody_listens(files: list[Path]) -> None:
    port = free_port()
    error = refusal(port, files)
    assert error.retryable
    assert "no connection" in str(error)
    with pytest.raises(DeliveryError, match="no connection"):
        deliverer(port).check()


def test_a_rejected_association_says_why(files: list[Path]) -> None:
    peer = Peer(CTImageStorage, require_calling_aet=["SOMEONE"])
    try:
        error = refusal(peer.port, files)
    finally:
        peer.stop()
    assert error.retryable
    assert "association rejected" in str(error)
    assert "Calling AE title not recognised" in str(error)


def test_a_class_that_the_peer_does_not_take(files: list[Path]) -> None:
    peer = Peer(CTImageStorage)
    try:
        error = refusal(peer.port, files)
        assert (error.code, error.retryable) == ("sop_class_not_accepted", False)
        assert "doesn't accept SOP class Secondary Capture Image Storage" in str(error)
        assert "Explicit VR Little Endian" in str(error)
        assert peer.stored == []  # not even what it would have taken
        error = refusal(peer.port, files[2:])  # none at all, so it takes no association either
        assert (error.code, error.retryable) == ("sop_class_not_accepted", False)
    finally:
        peer.stop()


def test_a_peer_that_aborts_in_the_middle(peer: Peer, files: list[Path]) -> None:
    def abort(event: evt.Event) -> int:
        event.assoc.abort()
        return 0x0000

    peer.answers = [0x0000, abort]
    error = refusal(peer.port, files)
    assert error.retryable
    assert f"no answer to C-STORE of {uids(files)[1]}" in str(error)
    deliverer(peer.port).deliver(files)


def test_a_peer_that_aborts_between_two_instances(
    peer: Peer, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The association is gone before the next instance is sent."""
    sending = deliverer(peer.port)
    send = sending._send

    def send_then_lose(association: Any, *more: Any) -> Any:
        outcome = send(association, *more)
        association.abort()
        return outcome

    monkeypatch.setattr(sending, "_send", send_then_lose)
    with pytest.raises(DeliveryError, match=f"ended before {uids(files)[1]}") as raised:
        sending.deliver(files)
    assert raised.value.retryable


def test_a_peer_that_answers_no_c_store(peer: Peer, files: list[Path]) -> None:
    released = threading.Event()

    def sleep(_event: evt.Event) -> int:
        released.wait(30)
        return 0x0000

    peer.answers = [sleep]
    started = time.monotonic()
    try:
        error = refusal(peer.port, files, timeout_seconds=0.5)
    finally:
        released.set()
    assert error.retryable and "no answer" in str(error)
    assert time.monotonic() - started < 10


def test_a_peer_that_answers_no_association_request(files: list[Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = refusal(silent.getsockname()[1], files, timeout_seconds=0.5)
    assert error.retryable


def test_check_is_an_echo(peer: Peer) -> None:
    deliverer(peer.port).check()
    assert [calling for calling, _, _ in peer.associations] == ["PACSNODE"]


def test_the_socket_does_not_wait_for_more(
    peer: Peer, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = []
    sending = deliverer(peer.port)
    send = sending._send

    def look(association: Any, *more: Any) -> Any:
        connection = association.dul.socket.socket
        options.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        return send(association, *more)

    monkeypatch.setattr(sending, "_send", look)
    sending.deliver(files)
    assert all(options) and len(options) == 3
