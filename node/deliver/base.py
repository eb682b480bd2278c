"""What a destination is: somewhere that takes the objects of a result set.

In: files of Part 10.  Out: each of them ``Stored``, perhaps with a warning, or one DeliveryError that says of
each what became of it. ``tests/contract/test_destinations.py`` holds every kind of destination to this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydicom import dcmread

from node.deliver.statuses import Outcome, meaning_of
from node.errors import DeliveryError

#: Called with an instance's size in bytes before it is sent; returns when it may be.
Pace = Callable[[int], None]


def unhindered(_size: int) -> None:
    """No limit."""


@dataclass(frozen=True)
class Instance:
    """One object of a result set, as a file."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    study_instance_uid: str
    series_instance_uid: str

    @classmethod
    def read(cls, path: Path) -> Instance:
        """Raises OSError, or InvalidDicomError for what is no Part 10 file."""
        tags = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
        header = dcmread(path, specific_tags=tags, stop_before_pixels=True)
        return cls(
            path,
            str(header.SOPClassUID),
            str(header.SOPInstanceUID),
            str(header.file_meta.TransferSyntaxUID),
            str(header.StudyInstanceUID),
            str(header.SeriesInstanceUID),
        )

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size


@dataclass(frozen=True)
class Stored:
    """An instance that is at the destination. warning: "", or what it did to it or says of it."""

    sop_class_uid: str
    sop_instance_uid: str
    warning: str = ""


class Destination(Protocol):
    """One configured destination. Several threads may use it at the same time.

    Delivering again what was delivered before does no harm: result UIDs are stable, so the receiver replaces
    or ignores.
    """

    @property
    def name(self) -> str:
        """As in the configuration."""

    def deliver(self, files: Sequence[Path], pace: Pace = unhindered) -> tuple[Stored, ...]:
        """Hand over all objects, in order. Raises DeliveryError; ``retryable`` says whether trying again can
        help, ``retry_after_seconds`` when, if the destination said so.

        An object that it will never take doesn't keep the others from it; one that it doesn't take now ends
        the attempt.
        """

    def check(self) -> None:
        """Whether the destination can be reached now. Raises DeliveryError saying why not."""

    def close(self) -> None:
        """Let go of connections that are kept between deliveries."""


class Judged:
    """The outcomes of one attempt, as its instances are answered one by one."""

    def __init__(self, who: str, operation: str, *, code: str) -> None:
        """who and operation: for messages, such as "destination pacs (…)" and "C-STORE"."""
        self._who, self._operation, self._code = who, operation, code
        self.stored: list[Stored] = []
        self._failed: list[str] = []
        self._hint = ""
        self._retryable = False

    def add(self, instance: Instance, status: int, *, comment: str = "") -> Outcome:
        """Take note of an answer. comment: of the receiver, already known to be free of patient data."""
        row = meaning_of(status)
        said = f"{self._operation} of {instance.sop_instance_uid}"
        what = f"status {status:#06x} ({row.meaning}{': ' + comment if comment else ''})"
        if row.outcome.is_stored:
            warning = f"{said} answered with {what}" if row.outcome is Outcome.WARNING else ""
            self.stored.append(Stored(instance.sop_class_uid, instance.sop_instance_uid, warning))
        else:
            self._failed.append(f"{said} failed with {what}")
            self._hint = self._hint or row.remedy
            self._retryable |= row.outcome is Outcome.REFUSED
        return row.outcome

    def settle(self) -> tuple[Stored, ...]:
        """What is stored, when all is. Raises DeliveryError; it is retryable when any instance may be taken
        later."""
        if not self._failed:
            return tuple(self.stored)
        raise DeliveryError(
            f"{self._who}: {'; '.join(self._failed)}",
            hint=self._hint,
            code=self._code,
            retryable=self._retryable,
        )
