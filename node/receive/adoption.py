"""What a listener that is gone had acknowledged and not yet filed, filed by another that shares its data_dir.

In: the folders of other nodes whose ``receive.lock`` nobody holds.  Out: their journals' instances in the
index, and their open commitment requests ours to report.

The lock ends with its process, on this machine or another; whoever takes it keeps the node from starting for
as long as that lasts, so that nobody writes to a journal that is read.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import structlog

from node.files import lock
from node.receive.journal import Journal
from node.receive.places import JOURNAL
from node.receive.spool import Spool
from node.watch import Watch

log = structlog.get_logger("node.receive.adoption")

LOOK_SECONDS = 5.0
LOCK = "receive.lock"


class Adoption(Watch):
    """Looks after other nodes' journals."""

    def __init__(self, spool: Spool, nodes: Path, node_id: str, on_gone: Callable[[str], object]) -> None:
        """nodes: where each node has its folder.  on_gone: called with the id of one that is taken up."""
        super().__init__("adoption", LOOK_SECONDS)
        self._spool = spool
        self._nodes = nodes
        self._node_id = node_id
        self._on_gone = on_gone
        self._done: set[str] = set()

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
            log.warning("listener_gone", node_id=name, hint="what it had acknowledged is filed")
        return gone

    def _file(self, journal: Path) -> None:
        for folder in (journal, *(path for path in journal.glob("*/") if path.name.isdigit())):
            if folder.is_dir():
                left = Journal(folder, 0, self._spool.file_records)
                left.start()
                left.stop()
