"""A socket to be connected to, for the web server and for whoever asks whether it could have one."""

from __future__ import annotations

import socket


def listen(host: str, port: int) -> socket.socket:
    """On an IPv4 or IPv6 address or a name. Raises OSError when it can't be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)
