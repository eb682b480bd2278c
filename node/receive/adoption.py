"""What a listener that is gone had acknowledged and not yet filed, filed by another that shares its data_dir.

In: the folders of other nodes whose ``receive.lock`` nobody holds.  Out: their journals' instances in the
index, and their open commitment requests ours to report.

The lock ends with its process, on this machine or another; whoever takes it keeps the node from starting for
as long as that lasts, so that nobody writes to a journal that is read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from node.files import lock
from node.receive.journal import Journal
from node.receive.places import JOURNAL
from node.receive.spool import Spool

log = structlog.get_logger("node.receive.adoption")

LOOK_SECONDS = 5.0
LOCK = "receive.lock"


class Adoption:
    """Looks after other nodes' journals, in a thread between ``start`` and ``stop``."""

    def __init__(self, spool: Spool, nodes: Path, node_id: str, on_gone: Callable[[str], object]) -> None:
        """nodes: where each node has its folder.  on_gone: called with the id of one that is taken up."""
        self._spool = spool
        self._nodes = nodes
        self._node_id = node_id
        self._on_gone = on_gone
        self._done: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adoption", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def look(self) -> list[str]:
        """Take up what nodes that are gone left; returns their ids."""
        gone = []
        for path in sorted(self._nodes.glob(f"*/{LOCK}")):
            name = path.parent.name
            if name == self._node_id:
                continue
            with ExitStack() as stack:
                try:
                    lock(path, stack)
                except OSError:  # it is at work
                    self._done.discard(name)
                    continue
                if name in self._done:
                    continue
                self._file(path.parent / JOURNAL)
                self._on_gone(name)
            self._done.add(name)
            gone.append(name)
        return gone

    def _file(self, journal: Path) -> None:
        for folder in (journal, *(path for path in journal.glob("*/") if path.name.isdigit())):
            if folder.is_dir():
                left = Journal(folder, 0, self._spool.file_records)
                left.start()
                left.stop()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                for name in self.look():
                    log.warning("listener_gone", node_id=name, hint="what it had acknowledged is filed")
            except (OSError, SQLAlchemyError) as error:
                log.error("adoption_failed", error=type(error).__name__, exc_info=True)
            self._stopping.wait(LOOK_SECONDS)
