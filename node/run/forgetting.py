"""What the workflow engine remembers of workflows that ended long ago is deleted; jobs' rows stay.

A workflow that ended is only there so that enqueueing it again does nothing. Some days later nobody does; and
if somebody did, its step would find that the job or the delivery is settled.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from node.watch import Watch

LOOK_SECONDS = 3600.0
KEPT_SECONDS = 7 * 86400.0
#: deleted in one transaction, so that others needn't wait for long
AT_ONCE = 500


class ForgetWatch(Watch):
    """Looks between ``start`` and ``stop``; several nodes may."""

    def __init__(self, forget: Callable[[float, int], int]) -> None:
        """forget(before, limit): those that ended before then, so many at most; returns how many."""
        super().__init__("forget", LOOK_SECONDS)
        self._forget = forget

    def look(self) -> int:
        """Forget all that are due; returns how many."""
        before = time.time() - KEPT_SECONDS
        forgotten = 0
        while not self.stopping.is_set():
            some = self._forget(before, AT_ONCE)
            forgotten += some
            if some < AT_ONCE:
                break
        return forgotten
