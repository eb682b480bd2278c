"""A folder as destination: ``<path>/<SeriesInstanceUID of the result>/<SOPInstanceUID>.dcm``."""

from __future__ import annotations

import io
import os
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from node.config import FolderDestination
from node.deliver.base import Instance, Pace, Stored, unhindered
from node.errors import DeliveryError
from node.files import fsync_folder


class FolderDeliverer:
    """Copies objects; each appears under its name only once it is whole and on disk."""

    def __init__(self, name: str, config: FolderDestination) -> None:
        self.name = name
        self._root = config.path

    def deliver(self, files: Sequence[Path], pace: Pace = unhindered) -> tuple[Stored, ...]:
        """See ``Destination``; every failure of the file system is retryable."""
        instances = [Instance.read(file) for file in files]
        try:
            return tuple(self._copy(instance, pace) for instance in instances)
        except OSError as error:
            raise self._failed(error) from error

    def check(self) -> None:
        """A file is written and removed again."""
        probe = self._root / f".{uuid.uuid4().hex}.probe"
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            _write(probe, io.BytesIO(b"probe"))
        except OSError as error:
            raise self._failed(error) from error
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing is kept open."""

    def _failed(self, error: OSError) -> DeliveryError:
        return DeliveryError(
            f"destination {self.name}: {self._root}: {error.strerror or error}",
            hint="is the folder mounted, writable and not full?",
            code="destination_down",
        )

    def _copy(self, instance: Instance, pace: Pace) -> Stored:
        pace(instance.size)
        folder = self._root / instance.series_instance_uid
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{instance.sop_instance_uid}.partial"
        with instance.path.open("rb") as source:
            _write(partial, source)
        partial.replace(folder / f"{instance.sop_instance_uid}.dcm")
        fsync_folder(folder)
        return Stored(instance.sop_class_uid, instance.sop_instance_uid)


def _write(path: Path, source: BinaryIO) -> None:
    with path.open("wb") as target:
        shutil.copyfileobj(source, target)
        target.flush()
        os.fsync(target.fileno())
