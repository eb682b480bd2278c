"""What a destination is: somewhere that takes a result set, whole or not at all as far as we report it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Deliverer(Protocol):
    """One configured destination.

    Delivering again what was delivered before must do no harm: result UIDs are stable, so the receiver
    replaces or ignores.
    """

    def deliver(self, files: Sequence[Path]) -> None:
        """Hand over all objects. Raises DeliveryError; ``retryable`` says whether trying again can help."""

    def check(self) -> None:
        """Whether the destination can be reached now. Raises DeliveryError saying why not."""
