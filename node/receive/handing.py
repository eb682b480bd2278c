"""Files from the web server into the receiver: STOW-RS requests and uploads, each like an association.

In: Part 10 files.  Out: for each what became of it; where that is status 0x0000 it is durable, as after
C-STORE.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from node.receive.taking import Taken

#: a file may take so long: a large one, on a slow disk
FILE_SECONDS = 60.0
ORDER_SECONDS = 30.0


class Obeying(Protocol):
    """The receiver's process. See ``ReceiverProcess.obey``."""

    def obey(self, order: dict[str, Any], seconds: float) -> list[dict[str, Any]]: ...


class Association:
    """One sender's; its files one after the other. Every method raises SpoolError when the receiver can't be
    asked."""

    def __init__(self, receiver: Obeying, ae_title: str, address: str) -> None:
        self._receiver = receiver
        self._name = uuid.uuid4().hex
        self._order("open", ae_title=ae_title, address=address)

    def take(self, files: Sequence[Path], *, study: str = "") -> list[Taken]:
        """In the order of the files, which stay where they are. study: that they must be of, if not ""."""
        paths = [str(file) for file in files]
        seconds = ORDER_SECONDS + FILE_SECONDS * len(paths)
        return [Taken(**one) for one in self._order("take", seconds, paths=paths, study=study)]

    def end(self, *, released: bool) -> None:
        """released: the sender said that it was all."""
        self._order("end", released=released)

    def _order(self, order: str, seconds: float = ORDER_SECONDS, **values: Any) -> list[dict[str, Any]]:
        return self._receiver.obey({"order": order, "association": self._name, **values}, seconds)


class Handing:
    """Opens associations."""

    def __init__(self, receiver: Obeying) -> None:
        self._receiver = receiver

    def open(self, ae_title: str, address: str) -> Association:
        """ae_title: what routes and the audit trail know as the sender's."""
        return Association(self._receiver, ae_title, address)

    @contextmanager
    def association(self, ae_title: str, address: str) -> Iterator[Association]:
        """Released at the end, or, after an exception, not."""
        opened = self.open(ae_title, address)
        try:
            yield opened
        except BaseException:
            opened.end(released=False)
            raise
        opened.end(released=True)
