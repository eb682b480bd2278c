"""Messages between the receiver's processes: JSON packets over a pair of Unix sockets.

Descriptors or bytes may go along. When the process on one side ends, however it ends, the other side reads
the end.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

#: a packet must fit into a Unix socket's buffer, which is 200 KB by default
_PACKET_BYTES = 128 * 1024
_ATTACHMENT_BYTES = 64 * 1024
_MAX_DESCRIPTORS = 64


class Message(NamedTuple):
    """What was sent. The descriptors are the receiver's to close."""

    fields: dict[str, Any]
    descriptors: Sequence[int]
    attachment: bytes


class Channel:
    """One side. Any thread may send; one at a time receives."""

    def __init__(self, side: socket.socket) -> None:
        self._side = side
        self._sending = threading.Lock()

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(one), cls(other)

    def fileno(self) -> int:
        return self._side.fileno()

    def send(self, fields: dict[str, Any], descriptors: Sequence[int] = (), attachment: bytes = b"") -> None:
        """Raises OSError when the other side has ended."""
        packet = json.dumps(fields | {"attached": len(attachment)}).encode()
        with self._sending:
            socket.send_fds(self._side, [packet], descriptors)
            for start in range(0, len(attachment), _ATTACHMENT_BYTES):
                self._side.send(attachment[start : start + _ATTACHMENT_BYTES])

    def receive(self) -> Message | None:
        """The next message; None at the end."""
        try:
            packet, descriptors, _flags, _address = socket.recv_fds(
                self._side, _PACKET_BYTES, _MAX_DESCRIPTORS
            )
            if not packet:
                return None
            fields = json.loads(packet)
            attachment = bytearray()
            while len(attachment) < fields["attached"]:
                piece = self._side.recv(_ATTACHMENT_BYTES)
                if not piece:
                    return None
                attachment += piece
        except ConnectionError:
            return None
        return Message(fields, descriptors, bytes(attachment))

    def close(self) -> None:
        self._side.close()
