"""A folder as destination: ``<path>/<SeriesInstanceUID of the result>/<SOPInstanceUID>.dcm``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from pydicom import dcmread

from node.config import FolderDestination
from node.errors import DeliveryError


class FolderDeliverer:
    """Copies objects; each appears under its name only once it is whole and on disk."""

    def __init__(self, name: str, config: FolderDestination) -> None:
        self._name = name
        self._root = config.path

    def deliver(self, files: Sequence[Path]) -> None:
        """See ``Deliverer``; every failure of the file system is retryable."""
        try:
            for file in files:
                self._copy(file)
        except OSError as error:
            raise DeliveryError(
                f"destination {self._name}: {self._root}: {error.strerror or error}",
                hint="is the folder mounted, writable and not full?",
            ) from error

    def check(self) -> None:
        """See ``Deliverer``."""
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DeliveryError(f"destination {self._name}: {self._root}: {error.strerror}") from error
        if not os.access(self._root, os.W_OK):
            raise DeliveryError(f"destination {self._name}: {self._root} isn't writable")

    def _copy(self, file: Path) -> None:
        header = dcmread(file, specific_tags=["SeriesInstanceUID", "SOPInstanceUID"], stop_before_pixels=True)
        folder = self._root / str(header.SeriesInstanceUID)
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{header.SOPInstanceUID}.partial"
        with file.open("rb") as source, partial.open("wb") as target:
            shutil.copyfileobj(source, target)
            target.flush()
            os.fsync(target.fileno())
        partial.replace(folder / f"{header.SOPInstanceUID}.dcm")
