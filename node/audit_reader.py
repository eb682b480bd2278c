"""Reads what ``audit.RotatingFile`` writes, from where it was read last, across files and restarts.

In: the trail's files.  Out: whole messages in their order. How far they were sent stands in a small file
beside them, by the file's first message and an offset: names change when files rotate.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

#: of messages read at once
BATCH_BYTES = 131_072
_END = b"</AuditMessage>"
_IDENTIFIED_BY = 4096


@dataclass(frozen=True)
class _Place:
    """first: hash of the file's beginning; "" before any file was seen."""

    first: str = ""
    offset: int = 0


class TrailReader:
    """The messages of one trail. For one thread; the trail may be written meanwhile."""

    def __init__(self, path: Path, max_files: int) -> None:
        """path: of the newest file."""
        self._path = path
        self._names = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, max_files))]
        self._kept = path.with_name(f"{path.name}.sent")
        self._accepted = self._load()
        self._file = -1
        self._inode = 0
        self._offset = 0
        #: how often files were gone before they were read to their end
        self.gaps = 0

    def read(self) -> list[bytes]:
        """The next messages, without their line ends; none when there are no more now. Raises OSError."""
        if self._file < 0 and not self._open_accepted():
            return []
        while True:
            newer, gone = self._newer()  # before the reading: what has a newer one isn't written any more
            found = self._lines(whole=newer is not None)
            if found or newer is None:
                return found
            self.gaps += gone
            self._use(newer)

    def accept(self) -> None:
        """What was read has arrived: it isn't read again, not by another process either. Raises OSError."""
        if self._file < 0:
            return
        place = _Place(_first_of(self._file), self._offset)
        if place != self._accepted:
            partial = self._kept.with_name(f".{self._kept.name}.partial")
            partial.write_text(json.dumps({"first": place.first, "offset": place.offset}))
            partial.replace(self._kept)
            self._accepted = place

    def again(self) -> None:
        """Begin where was accepted last."""
        self.close()

    def waiting_bytes(self) -> int:
        """Of messages that weren't read, about."""
        waiting, inode = 0, self._inode if self._file >= 0 else self._find(self._accepted.first)[1]
        for name in self._names:
            try:
                found = name.stat()
            except OSError:
                continue
            if found.st_ino == inode:
                offset = self._offset if self._file >= 0 else self._accepted.offset
                return waiting + max(0, found.st_size - offset)
            waiting += found.st_size
        return waiting

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _lines(self, *, whole: bool) -> list[bytes]:
        """whole: nothing is added to the file any more."""
        data = os.pread(self._file, BATCH_BYTES, self._offset)
        end = data.rfind(b"\n") + 1
        if not end:  # a message has some kilobytes at most: this is the beginning of one, or a torn one
            self._offset += len(data) if whole else 0
            return []
        self._offset += end
        lines = [line for line in data[:end].split(b"\n") if line.endswith(_END)]  # a torn one is none
        return lines or self._lines(whole=whole)

    def _open_accepted(self) -> bool:
        """Where was accepted last, or the oldest file. Returns whether there is one."""
        path, _inode = self._find(self._accepted.first)
        if path is not None:
            return self._use(path, self._accepted.offset)
        if self._accepted.first:
            self.gaps += 1
        oldest = next((name for name in reversed(self._names) if name.exists()), None)
        return oldest is not None and self._use(oldest)

    def _find(self, first: str) -> tuple[Path | None, int]:
        for name in self._names if first else ():
            try:
                file = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                if _first_of(file) == first:
                    return name, os.fstat(file).st_ino
            finally:
                os.close(file)
        return None, 0

    def _newer(self) -> tuple[Path | None, bool]:
        """The file after the one that is read; whether that is gone, and others between the two with it."""
        newer = None
        for name in self._names:
            try:
                inode = name.stat().st_ino
            except OSError:
                continue
            if inode == self._inode:
                return newer, False
            newer = name
        return newer, newer is not None

    def _use(self, path: Path, offset: int = 0) -> bool:
        self.close()
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # rotated meanwhile: the next turn finds it
            return False
        self._inode = os.fstat(self._file).st_ino
        self._offset = offset
        return True

    def _load(self) -> _Place:
        try:
            kept = json.loads(self._kept.read_text())
            return _Place(str(kept["first"]), int(kept["offset"]))
        except (OSError, ValueError, KeyError, TypeError):
            return _Place()


def _first_of(file: int) -> str:
    """What tells a file from others, as soon as it has a line."""
    line, end, _ = os.pread(file, _IDENTIFIED_BY, 0).partition(b"\n")
    return hashlib.sha256(line).hexdigest() if end or len(line) == _IDENTIFIED_BY else ""
