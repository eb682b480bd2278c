"""Small Part 10 files to deliver."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from tests.integration.receiving import ct_slice

SERIES = "1.2.826.0.1.3680043.8.498.77"


def write_object(folder: Path, number: int, **changes: object) -> Path:
    """A CT image of SERIES as a file; ``changes`` sets attributes."""
    image: Dataset = ct_slice(SERIES, number, PatientName="Doe^Jane", **changes)
    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = folder / f"{number}.dcm"
    image.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two CT images and a secondary capture."""
    folder = tmp_path / "results"
    folder.mkdir()
    capture = {"SOPClassUID": SecondaryCaptureImageStorage, "Modality": "OT"}
    return [write_object(folder, 1), write_object(folder, 2), write_object(folder, 3, **capture)]
