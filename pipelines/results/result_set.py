"""The DICOM objects of one job, in memory and as files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset, dcmwrite


@dataclass(frozen=True)
class ResultSet:
    """The DICOM objects of one job.

    objects: (role, dataset), in the order in which to send them: what others refer to comes first.
    notes: what a reader should know about how it was made (a missing 3D view and why).
    """

    objects: tuple[tuple[str, Dataset], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ResultEntry:
    """One written object, as ``summary.json`` lists it."""

    sop_class_uid: str
    sop_instance_uid: str
    modality: str
    path: Path


def write_result_set(result_set: ResultSet, folder: Path) -> list[ResultEntry]:
    """Write each object to ``folder/<role>.dcm``: whole or not at all, durable when this returns.

    Files from an earlier run are replaced; the folder is made if it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for role, dataset in result_set.objects:
        path = folder / f"{role}.dcm"
        partial = folder / f".{role}.dcm.partial"
        with partial.open("wb") as file:
            dcmwrite(file, dataset, enforce_file_format=True)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        entries.append(
            ResultEntry(str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), str(dataset.Modality), path)
        )
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return entries
