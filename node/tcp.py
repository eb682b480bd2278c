"""No waiting for Nagle's algorithm: neither for ours, nor for a peer's.

Many peers (DCMTK and what is built on it, Orthanc too) write a PDU's head and its body one after the other,
and their kernel keeps the second back until the first is acknowledged, which ours would put off by 40 ms: as
long as a PDU of theirs is under way, we acknowledge at once.
"""

from __future__ import annotations

import socket

#: a read of less may have ended between two writes of the peer: a PDU's and a PDV's head are 12 bytes
SMALL_READ_BYTES = 64

#: of Linux; it lasts until the kernel thinks better of it, so it is asked for again
_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)


def send_at_once(connection: socket.socket) -> None:
    """Whatever is written goes out, acknowledged or not what went before."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def acknowledge_at_once(connection: socket.socket) -> None:
    """Acknowledge what was read and not acknowledged yet."""
    if _QUICKACK is not None:
        connection.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
