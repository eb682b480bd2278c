"""A small file system of its own that can be filled to the last byte, where we may mount one (root); and how
often the nodes said that it was full.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections import Counter
from pathlib import Path

_PIECE_BYTES = 1 << 20
#: what is left before it is filled; the more, the more memory a full disk takes
_LEFT_BYTES = 64 << 20
#: what a line of a node's log says, if it has all of the words
SAYS = {
    "instances_refused": (b'"instance_refused"', b"out_of_space"),
    "journal_not_filed": (b'"journal_not_filed"',),
    "records_not_filed": (b'"records_not_filed"',),
    "database_full": (b"database or disk is full",),
    "runs_failed": (b'"job_retried"', b'"io_error"'),
}


class SmallDisk:
    """``folder``: on a tmpfs if that could be mounted, else on the disk that it is on.

    It is small only while it is to be full: what a long run leaves there must not fill it by itself.
    """

    def __init__(self, folder: Path, size_bytes: int) -> None:
        """size_bytes: of the file system while it isn't to be full."""
        self.folder = folder
        self._size_bytes = size_bytes
        folder.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
        self.is_small = (
            os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
        )
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Leave no room for anything."""
        assert self.is_small
        now = os.statvfs(self.folder)
        self._resize((now.f_blocks - now.f_bfree) * now.f_frsize + _LEFT_BYTES)
        with self._filler.open("ab", buffering=0) as file:
            for size in (_PIECE_BYTES, 4096):
                while True:
                    try:
                        file.write(bytes(size))
                    except OSError as error:
                        if error.errno != errno.ENOSPC:
                            raise
                        break

    def empty(self) -> None:
        """What ``fill`` took is free again."""
        self._filler.unlink(missing_ok=True)
        if self.is_small:
            self._resize(self._size_bytes)

    def _resize(self, size_bytes: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size_bytes}", str(self.folder)], check=True)

    def remove(self) -> None:
        if self.is_small:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


class Noticed:
    """Reads the logs as they grow."""

    def __init__(self, folder: Path) -> None:
        """folder: of all nodes' folders."""
        self._folder = folder
        self._read: dict[Path, int] = {}
        self._counts: Counter[str] = Counter(dict.fromkeys(SAYS, 0))

    def so_far(self) -> dict[str, int]:
        """How often what was said."""
        for log in self._folder.glob("*/node.log"):
            with log.open("rb") as stream:
                stream.seek(self._read.get(log, 0))
                lines = stream.readlines()
            if lines and not lines[-1].endswith(b"\n"):
                lines.pop()  # it is being written
            self._read[log] = self._read.get(log, 0) + sum(map(len, lines))
            for name, words in SAYS.items():
                self._counts[name] += sum(all(word in line for word in words) for line in lines)
        return dict(self._counts)
