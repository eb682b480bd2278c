"""Workflows that nobody goes on with: put back into their queues, or their jobs begun again.

In: the engine, and what begins a job again.  Out: no job that hangs because a disk was full, or a database
away, at the moment when its workflow should have gone on.
"""

from __future__ import annotations

from collections.abc import Callable

from node.run.engine import JobEngine
from node.watch import Watch

LOOK_SECONDS = 15.0


class LeftWatch(Watch):
    """Looks for workflows that nobody runs, and for those that broke."""

    def __init__(
        self, engine: JobEngine, on_broken: Callable[[str, int], object], seconds: float = LOOK_SECONDS
    ) -> None:
        """on_broken: called with a job and its generation, of which a workflow can't go on; once, if it
        doesn't raise."""
        super().__init__("left-watch", seconds)
        self._engine = engine
        self._on_broken = on_broken
        self._broken: set[tuple[str, int]] = set()

    def look(self) -> None:
        self._engine.resume_left()
        self._broken |= self._engine.broken()
        for job_id, generation in sorted(self._broken):
            self._on_broken(job_id, generation)
            self._broken.discard((job_id, generation))
