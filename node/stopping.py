"""Waiting for the signal that ends a process."""

from __future__ import annotations

import threading

#: a signal that the kernel gave to another thread than the first is handled when the first runs again
LOOK_SECONDS = 1.0


def wait_until(stopping: threading.Event) -> None:
    """Block the first thread until a signal's handler has set ``stopping``."""
    while not stopping.wait(LOOK_SECONDS):
        pass
