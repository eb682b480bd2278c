"""A thread that looks every so often."""

from __future__ import annotations

import threading

from sqlalchemy.exc import OperationalError

from node.watch import Watch


class Looking(Watch):
    """Fails as often as it is told, then says that it looked."""

    def __init__(self, failures: int) -> None:
        super().__init__("looking", 0.001)
        self.failures = failures
        self.looked = threading.Event()

    def look(self) -> None:
        if self.failures:
            self.failures -= 1
            raise OperationalError("SELECT", {}, ConnectionError("gone"))
        self.looked.set()


def test_a_look_that_fails_comes_again() -> None:
    watch = Looking(failures=3)
    watch.start()
    assert watch.looked.wait(5)
    assert watch.failures == 0
    watch.stop()


def test_stopping_waits_for_no_pause() -> None:
    watch = Looking(failures=0)
    watch._pause_seconds = 60.0
    watch.start()
    assert watch.looked.wait(5)
    watch.stop()
    assert not watch._thread.is_alive()
