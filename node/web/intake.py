"""Requests that bring files: so many at once, while there is room, each in a folder of its own.

In: a request.  Out: a folder that is removed afterwards, and how much may be unpacked in it; or why it can't
be taken now.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request
from fastapi.responses import JSONResponse

from node.errors import SpoolError
from node.receive.handing import Handing
from node.web.multipart import BadBody, removed
from node.web.sources import Sources

AT_ONCE = 4
RETRY_AFTER = {"Retry-After": "10"}


def refused(_request: Request, error: Exception) -> JSONResponse:
    """What is answered to a request that can't be taken: the reason, and whether to come again."""
    if isinstance(error, BadBody):
        return JSONResponse({"error": str(error)}, error.status, RETRY_AFTER if error.status == 503 else None)
    hint = error.hint if isinstance(error, SpoolError) else ""
    return JSONResponse({"error": f"{error}; {hint}"}, 503, RETRY_AFTER)


def receiver_of(sources: Sources) -> Handing:
    """Raises BadBody where nothing is received."""
    if sources.handing is None:
        raise BadBody(404, "this process receives nothing: files go to a listener")
    return sources.handing


@dataclass(frozen=True)
class Room:
    """free_bytes: above the floor, for what is unpacked beside what comes and what is kept of it."""

    folder: Path
    free_bytes: int


class IntakeGate:
    """Guards the uploads' folder."""

    def __init__(self, sources: Sources) -> None:
        self._uploads = sources.uploads
        self._floor = sources.free_disk_floor_bytes
        self._free = threading.BoundedSemaphore(AT_ONCE)

    @contextmanager
    def enter(self, request: Request) -> Iterator[Room]:
        """Raises BadBody: 503 when there is no room now, 404 where nothing can be taken."""
        uploads = self._uploads
        if uploads is None:
            raise BadBody(404, "this process can't take files")
        if not self._free.acquire(blocking=False):
            raise BadBody(503, f"{AT_ONCE} requests with files are being taken already; try again soon")
        try:
            uploads.mkdir(parents=True, exist_ok=True)
            length = request.headers.get("content-length", "")
            wanted = int(length) if length.isdigit() and len(length) < 16 else 0
            disk = os.statvfs(uploads)
            # it is here twice for a moment: as it came, and in the spool
            free = disk.f_bavail * disk.f_frsize - self._floor - 2 * wanted
            if free < 0:
                raise BadBody(503, "there is no room on the disk now")
            with removed(uploads) as folder:
                yield Room(folder, free // (2 * AT_ONCE))
        finally:
            self._free.release()
