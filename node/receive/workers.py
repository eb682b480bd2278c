"""A few threads that do what would hold up the caller, in the order it was given.

In: functions.  Out: each called once, in one of the threads; none is waited for at the end of the process.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import structlog

log = structlog.get_logger("node.receive.workers")


class Workers:
    """``count`` threads; with 0, everything is done at once by the caller."""

    def __init__(self, count: int, name: str) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, task: Callable[[], object]) -> None:
        """Have it called."""
        if self._threads:
            self._tasks.put(task)
        else:
            task()

    def stop(self) -> None:
        """Begin nothing more after what was submitted; doesn't wait."""
        for _thread in self._threads:
            self._tasks.put(None)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                task()
            except Exception:  # worker boundary: what fails is one series' evidence
                log.error("task_failed", worker=threading.current_thread().name, exc_info=True)
