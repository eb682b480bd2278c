"""Denormal numbers as zeros, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def denormals_as_zeros() -> Iterator[None]:
    """A feature that fades away slows a CPU down many times.

    The switch is the thread's, for all of its arithmetic, Python's too: it is put back.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
