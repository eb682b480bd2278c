"""Links by which one phone may upload for a while: made by who is logged in, claimed by who opens one first.

In: a user; then the link's token with the cookie of the phone that claimed it.  Out: an ``Upload``: what came
over it, as an association of the receiver. In memory: a restart ends all links; what was acknowledged stays.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from node.errors import SpoolError
from node.receive.handing import Association, Handing
from node.receive.storage import STATUS_STORED
from node.receive.taking import Taken
from node.web.users import token_sha256

log = structlog.get_logger("node.web")

AE_TITLE = "UPLOAD"
#: links that are good at the same time, of everybody and of one user; the oldest go
MOST_LINKS, MOST_OF_ONE = 500, 20
#: requests with files by one link, and pictures among them, each of which is a job
MOST_REQUESTS = 10_000
MOST_PICTURES = 100
#: a phone that says nothing for so long has gone: its series need not wait for more
IDLE_SECONDS = 60.0

Clock = Callable[[], float]


class Upload:
    """What comes over one link. Safe to use from several threads."""

    def __init__(self, user: str, ends_at: float, handing: Handing | None) -> None:
        """ends_at: by the clock of ``UploadLinks``."""
        self.user = user
        self.ends_at = ends_at
        self.claimed_by: str | None = None  # hash of the cookie
        self._handing = handing
        self._lock = threading.Lock()
        self._association: Association | None = None
        self._idle: threading.Timer | None = None
        self._requests = 0
        self._pictures = 0
        #: (study, series) of what was stored, in the order of its coming
        self._series: dict[tuple[str, str], None] = {}

    @property
    def series(self) -> list[tuple[str, str]]:
        """(study, series) of what was stored."""
        with self._lock:
            return list(self._series)

    def admit(self) -> bool:
        """Count a request with files; False when there were too many."""
        with self._lock:
            self._requests += 1
            return self._requests <= MOST_REQUESTS

    def admit_picture(self) -> bool:
        """Count a picture; False when there were too many."""
        with self._lock:
            self._pictures += 1
            return self._pictures <= MOST_PICTURES

    def take(self, files: Sequence[Path], address: str) -> list[Taken]:
        """Durable when it is said to be stored. Raises SpoolError."""
        assert self._handing is not None  # noqa: S101 - the gate let it in
        with self._lock:
            self._stop_waiting()
            try:
                if self._association is None:
                    self._association = self._handing.open(AE_TITLE, address)
                taken = self._association.take(files)
            except SpoolError:
                self._association = None  # the next file begins another
                raise
            for one in taken:
                if one.status == STATUS_STORED:
                    self._series[one.study_instance_uid, one.series_instance_uid] = None
            self._idle = threading.Timer(IDLE_SECONDS, self.end, kwargs={"released": False})
            self._idle.daemon = True
            self._idle.start()
            return taken

    def end(self, *, released: bool) -> None:
        """What came is all for now. released: the phone said so."""
        with self._lock:
            self._stop_waiting()
            association, self._association = self._association, None
            if association is None:
                return
            try:
                association.end(released=released)
            except SpoolError as error:  # the receiver has gone, and its associations with it
                log.warning("upload_end_not_told", reason=str(error))

    def _stop_waiting(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None


class UploadLinks:
    """All links of this process."""

    def __init__(self, seconds: float, handing: Handing | None, clock: Clock = time.monotonic) -> None:
        self.seconds = seconds
        self._handing = handing
        self._clock = clock
        self._links: OrderedDict[str, Upload] = OrderedDict()
        self._lock = threading.Lock()

    def make(self, user: str) -> str:
        """The new link's token."""
        token = secrets.token_urlsafe(24)
        upload = Upload(user, self._clock() + self.seconds, self._handing)
        with self._lock:
            gone = self._expired()
            self._links[token_sha256(token)] = upload
            own = [key for key, each in self._links.items() if each.user == user]
            too_many = [*own[:-MOST_OF_ONE], *list(self._links)[:-MOST_LINKS]]
            gone += [self._links.pop(key) for key in dict.fromkeys(too_many)]
        _end(gone)
        return token

    def claim(self, token: str, cookie: str) -> tuple[Upload, str] | None:
        """(the upload, the cookie to keep) for who claimed the link, or is the first to; None for others."""
        with self._lock:
            gone = self._expired()
            upload = self._links.get(token_sha256(token))
            if upload is not None and upload.claimed_by is None:
                cookie = secrets.token_urlsafe(24)
                upload.claimed_by = token_sha256(cookie)
        _end(gone)
        if upload is None or not _is_claimed_by(upload, cookie):
            return None
        return upload, cookie

    def find(self, token: str, cookie: str) -> Upload | None:
        """For who claimed the link."""
        with self._lock:
            gone = self._expired()
            upload = self._links.get(token_sha256(token))
        _end(gone)
        return upload if upload is not None and _is_claimed_by(upload, cookie) else None

    def left_seconds(self, upload: Upload) -> float:
        return max(0.0, upload.ends_at - self._clock())

    def _expired(self) -> list[Upload]:
        now = self._clock()
        over = [key for key, each in self._links.items() if each.ends_at <= now]
        return [self._links.pop(key) for key in over]


def _is_claimed_by(upload: Upload, cookie: str) -> bool:
    return upload.claimed_by is not None and hmac.compare_digest(upload.claimed_by, token_sha256(cookie))


def _end(uploads: Sequence[Upload]) -> None:
    for upload in uploads:
        upload.end(released=False)
