"""What looks after something every so often: a thread between ``start`` and ``stop``."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

import structlog
from sqlalchemy.exc import SQLAlchemyError

log = structlog.get_logger(__name__)


class Watch(ABC):
    """Looks, waits, looks again. A look that the disk or the database fails is logged, and comes again."""

    def __init__(self, name: str, seconds: float) -> None:
        """name: of the thread, and in the log.  seconds: between the end of a look and the next."""
        self._name = name
        self._pause_seconds = seconds
        self.stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @abstractmethod
    def look(self) -> object:
        """One look; a long one ends early once ``stopping`` is set."""

    def start(self) -> None:
        """Look for the first time soon, in the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Wait for the end of the look that is under way."""
        self.stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self.stopping.is_set():
            try:
                self.look()
            except (OSError, SQLAlchemyError):
                log.error("watch_failed", watch=self._name, hint="it looks again", exc_info=True)
            self.stopping.wait(self._pause_seconds)
