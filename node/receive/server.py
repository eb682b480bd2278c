"""The TCP server: pynetdicom's, with our socket options, and TLS whose handshake holds nobody up.

In: connections.  Out: each in a thread of its own, through TLS where that is configured, on its way to become
an association.
"""

from __future__ import annotations

import select
import socket
import socketserver
import ssl
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
from pynetdicom.transport import ThreadedAssociationServer

from node.receive.admission import Admission, hang_up, host_of
from node.receive.stream import limit_waiting
from node.tcp import send_at_once
from node.tls import TlsContext

log = structlog.get_logger("node.receive.server")

#: how long a peer may take to read why its TLS handshake failed
LINGER_SECONDS = 1.0


class Server(ThreadedAssociationServer):  # type: ignore[misc]
    """``on_idle`` is called about twice a second."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(
        self,
        *args: Any,
        admission: Admission,
        tls: TlsContext | None,
        on_idle: Callable[[], None],
        **kwargs: Any,
    ) -> None:
        self._admission = admission
        self._tls = tls
        self._on_idle = on_idle
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        super().__init__(*args, **kwargs)

    def get_request(self) -> tuple[socket.socket, Any]:
        request, address = super().get_request()
        if self._tls is not None:
            request = self._tls.current().wrap_socket(
                request, server_side=True, do_handshake_on_connect=False
            )
        send_at_once(request)
        # A peer that stops in the middle of a PDU, or reads no answers, would block its thread for ever.
        limit_waiting(request, self.ae.network_timeout)
        self._sockets.add(request)
        self._admission.connected(request, host_of(address))
        return request, address

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Runs in a thread of the connection's own."""
        if isinstance(request, ssl.SSLSocket) and not self._shake_hands(request, client_address):
            self.shutdown_request(request)
        else:
            super().finish_request(request, client_address)

    def _shake_hands(self, request: ssl.SSLSocket, client_address: Any) -> bool:
        limit_waiting(request, self.ae.acse_timeout)
        try:
            request.do_handshake()
        except OSError as error:
            self._admission.handshake_failed(host_of(client_address), error)
            _let_read(request)
            return False
        limit_waiting(request, self.ae.network_timeout)
        return True

    def service_actions(self) -> None:
        super().service_actions()
        self._on_idle()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 socketserver's hook
        log.error("connection_failed", exc_info=True)

    def shutdown(self) -> None:
        """Stop accepting; running associations go on."""
        socketserver.BaseServer.shutdown(self)
        self.server_close()

    def disconnect_all(self, *, after_seconds: float) -> None:
        """Close what is still connected, leaving a moment for A-ABORTs to be sent."""
        if self.active_associations:
            time.sleep(after_seconds)
        for connection in list(self._sockets):
            hang_up(connection)


def _let_read(connection: socket.socket) -> None:
    """Give the peer a moment to read why its handshake failed: closing with unread bytes would reset."""
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_WR)
        deadline = time.monotonic() + LINGER_SECONDS
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0 and poll.poll(left * 1000):
            if not socket.socket.recv(connection, 4096):
                return
