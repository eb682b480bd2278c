"""The bad network is as bad as it says, and as good when it is calm."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.chaos import network
from tests.chaos.network import HOST, Network
from tests.integration.receiving import wait_for

BYTES = 400_000


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets, until its peer has no more."""
    with socket.create_server((HOST, 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _address = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        def answer(connection: socket.socket) -> None:
            with connection:
                try:
                    while data := connection.recv(65536):
                        connection.sendall(data)
                except OSError:
                    pass

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def bad() -> Iterator[Network]:
    made = Network(seed=1)
    yield made
    made.stop()


def through(port: int) -> bytes:
    """What comes back of BYTES. Raises OSError."""
    with socket.create_connection((HOST, port), timeout=30) as connection:

        def send() -> None:
            try:
                connection.sendall(bytes(BYTES))
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # whoever reads finds out, too

        sending = threading.Thread(target=send)
        sending.start()
        try:
            received = b""
            while data := connection.recv(65536):
                received += data
            return received
        finally:
            sending.join()


def breaks(port: int) -> bool:
    """Whether not all comes back; who sends may hear of a reset before who receives."""
    try:
        return len(through(port)) < BYTES
    except ConnectionError:
        return True


@pytest.mark.parametrize("fate", ["clean", "delay", "throttle"])
def test_all_comes_through(bad: Network, echo: int, monkeypatch: pytest.MonkeyPatch, fate: str) -> None:
    monkeypatch.setattr(network, "FATES", {fate: 1})
    proxy = bad.proxy("p")
    proxy.target = echo
    assert through(proxy.port) == bytes(BYTES)
    counts = {} if fate == "clean" else {fate: 1}
    wait_for(lambda: bad.counts == counts, what="it to be counted, by another thread")


def test_truncated_and_reset(bad: Network, echo: int, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = bad.proxy("p")
    proxy.target = echo
    monkeypatch.setattr(network, "FATES", {"truncate": 1})
    assert breaks(proxy.port)
    monkeypatch.setattr(network, "FATES", {"reset": 1})
    assert breaks(proxy.port)
    assert bad.counts == {"reset": 1, "truncate": 1}


def test_cut_mended_and_calm(bad: Network, echo: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "FATES", {"reset": 1})
    proxy = bad.proxy("p")
    proxy.target = echo
    bad.calm()
    with socket.create_connection((HOST, proxy.port), timeout=30) as connection:
        connection.sendall(b"a")
        assert connection.recv(1) == b"a"
        bad.cut(proxy)
        with pytest.raises(ConnectionError):
            connection.recv(1)
    assert breaks(proxy.port)
    bad.mend(proxy)
    assert through(proxy.port) == bytes(BYTES)
