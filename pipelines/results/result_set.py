"""The DICOM objects of one job, in memory and as files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset, dcmwrite

from pipelines.encoding import DEFAULT, Encoding
from pipelines.results.sequences import with_encoded_sequences


@dataclass(frozen=True)
class ResultSet:
    """The DICOM objects of one job.

    objects: (role, dataset), in the order in which to send them: what others refer to comes first.
    notes: what a reader should know about how it was made (a missing 3D view and why).
    variants: of further encodings (``pipelines.encoding``), the objects that take the place of those of the
        same role. A role that isn't among ``objects`` is sent last.
    """

    objects: tuple[tuple[str, Dataset], ...]
    notes: tuple[str, ...] = ()
    variants: tuple[tuple[Encoding, tuple[tuple[str, Dataset], ...]], ...] = ()


@dataclass(frozen=True)
class ResultEntry:
    """One written object, as ``summary.json`` lists it."""

    sop_class_uid: str
    sop_instance_uid: str
    modality: str
    path: Path


def write_result_set(result_set: ResultSet, folder: Path) -> list[ResultEntry]:
    """``write_all`` of a set in the default encoding alone."""
    return write_all(result_set, folder)[DEFAULT]


def write_all(result_set: ResultSet, folder: Path) -> dict[Encoding, list[ResultEntry]]:
    """Write each object to ``folder/<role>.dcm``: whole or not at all, durable when this returns.

    Those of further encodings are written beside them, as ``<role>.<encoding>.dcm``. Files from an earlier
    run are replaced; the folder is made if it is missing.
    """
    written = {DEFAULT: _write(folder, result_set.objects, "")}
    for encoding, objects in result_set.variants:
        written[encoding] = _write(folder, objects, encoding.suffix)
    return written


def write_object(
    dataset: Dataset, folder: Path, encoding: Encoding = DEFAULT, role: str = "rejection"
) -> ResultEntry:
    """Write one object beside a set."""
    return _write(folder, ((role, dataset),), encoding.suffix)[0]


def _write(folder: Path, objects: Sequence[tuple[str, Dataset]], suffix: str) -> list[ResultEntry]:
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for role, dataset in objects:
        path = folder / f"{role}{suffix}.dcm"
        partial = folder / f".{role}{suffix}.dcm.partial"
        with partial.open("wb") as file:
            dcmwrite(file, with_encoded_sequences(dataset), enforce_file_format=True)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        uids = str(dataset.SOPClassUID), str(dataset.SOPInstanceUID)
        entries.append(ResultEntry(*uids, str(dataset.Modality), path))
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return entries
