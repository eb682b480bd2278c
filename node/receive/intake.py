"""Where instances come in: the disk that they are written to, before anyone knows of them.

In: C-STOREs.  Out: each on its way into the journal, or into a file of its own. What isn't for the journal is
given to ``keep``, which belongs to the process that has the index.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from node.errors import OutOfSpace
from node.receive.index import Incoming
from node.receive.journal import Journal, Lane
from node.receive.places import INCOMING
from node.receive.receiving import FileReceiving, JournalReceiving, Receiving, Stored, failures


class Intake(ABC):
    """Safe to call from many threads."""

    def __init__(
        self,
        data_dir: Path,
        journal: Journal,
        *,
        free_disk_floor_bytes: int,
        own_dir: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """own_dir: of this node alone, on the same file system; left out, data_dir."""
        self.data_dir = data_dir
        self.own_dir = data_dir if own_dir is None else own_dir
        self.journal = journal
        self.incoming = self.own_dir / INCOMING
        self._floor = free_disk_floor_bytes
        self._space_of = str(data_dir)
        self._clock = clock

    @abstractmethod
    def keep(self, incoming: Incoming, file: Path, header_bytes: int, head: bytes) -> Stored:
        """File one instance that is complete and fsynced on disk. See ``Spool.keep``."""

    def receive(self, incoming: Incoming, lane: Lane | None = None) -> Receiving:
        """Begin one instance, in its association's lane of the journal where there is room.

        Raises OutOfSpace below the free-space floor, SpoolError on I/O failure.
        """
        self.check_space()
        room = lane.room() if lane is not None else None
        if lane is None or room is None:
            return FileReceiving(self, incoming)
        return JournalReceiving(self, incoming, lane, room)

    def check_space(self) -> None:
        """Raises OutOfSpace below the free-space floor, SpoolError when that can't be told."""
        with failures():
            disk = os.statvfs(self._space_of)
        free = disk.f_bavail * disk.f_frsize
        if free < self._floor:
            raise OutOfSpace(
                f"{free} bytes are free, the floor is {self._floor}",
                hint="free disk space under data_dir or lower receive.free_disk_floor_bytes",
            )

    def now(self) -> float:
        return self._clock()
