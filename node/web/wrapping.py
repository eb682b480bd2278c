"""A picture that somebody uploaded, wrapped as DICOM: a Secondary Capture Image (PS3.3 A.8.1) of nobody.

In: a JPEG or PNG.  Out: a Part 10 file that is a function of its bytes, UIDs and all, so that the same
picture twice is the same instance. It holds grey pixels and nothing else of the file: no place, no device,
no date; whose it is nobody says, so every attribute of patient and study is empty. Each picture is a study
of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from node.web.multipart import BadBody, Part
from pipelines.uids import derived_uid

#: the model name of what wraps, by which a route knows a picture (deploy/config.example.yaml)
MODEL = "picture upload"
MANUFACTURER = "PACS inference node"
#: changes whenever the same picture is wrapped differently
VERSION = "1"
MOST_BYTES = 50_000_000
#: decoding takes up to some hundred MB each
DECODED_AT_ONCE = 1
SECONDS = 60.0
#: what a process needs to find its libraries, without the secrets that the node's environment may hold
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG")
_TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
)


@dataclass(frozen=True)
class _Decoded:
    """pixels: a byte each, row by row.  what: what ``decoding`` says of them."""

    pixels: bytes
    what: dict[str, Any]


class Wrapping:
    """Wraps pictures, so many at the same time."""

    def __init__(self, uid_root: str | None) -> None:
        self._uid_root = uid_root
        self._places = threading.BoundedSemaphore(DECODED_AT_ONCE)

    def wrap(self, part: Part, folder: Path) -> Path:
        """The DICOM file, in the folder. Raises BadBody for what isn't taken, with the reason."""
        if part.size > MOST_BYTES:
            raise BadBody(413, f"a picture may have {MOST_BYTES // 1_000_000} MB at most")
        with self._places:
            decoded = _decode(part.path, folder)
        dataset = _dataset(decoded)
        sha256 = [hashlib.sha256(one).hexdigest() for one in (part.path.read_bytes(), decoded.pixels)]
        facts = ["picture", VERSION, *sha256]  # the pixels, too: another decoder may make others of a file
        dataset.SOPInstanceUID, dataset.SeriesInstanceUID, dataset.StudyInstanceUID = (
            derived_uid([*facts, role], self._uid_root) for role in ("instance", "series", "study")
        )
        wrapped = folder / f"{part.path.name}.dcm"
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta = meta
        dcmwrite(wrapped, dataset, enforce_file_format=True)
        return wrapped


def _decode(picture: Path, folder: Path) -> _Decoded:
    """By a process of its own. Raises BadBody."""
    pixels = folder / f"{picture.name}.pixels"
    command = [sys.executable, "-m", "node.web.decoding", str(picture), str(pixels)]
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            env=environment,
            check=False,
        )
        what = json.loads(done.stdout) if done.returncode == 0 else None
    except (subprocess.TimeoutExpired, ValueError):
        what = None
    if what is None:  # killed by a limit, or a defect of what decodes
        raise BadBody(422, "not taken: the picture took too much time or memory to decode")
    if "refused" in what:
        raise BadBody(422, f"not taken: {what['refused']}")
    return _Decoded(pixels.read_bytes(), what)


def _dataset(decoded: _Decoded) -> Dataset:
    """All but the UIDs. No clock: it is a function of the picture."""
    what = decoded.what
    dataset = Dataset()
    for keyword in _TYPE_2:
        setattr(dataset, keyword, None)
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.Modality = "OT"  # that it is CT is the sender's word
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    dataset.SeriesDescription = "Uploaded picture"
    dataset.Manufacturer = MANUFACTURER
    dataset.ManufacturerModelName = MODEL
    dataset.SoftwareVersions = f"wrapping {VERSION}"
    dataset.ConversionType = "DI"  # came by a digital interface; how it was made nobody knows
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.PatientOrientation = dataset.Laterality = None  # Type 2C: not known
    dataset.BurnedInAnnotation = "YES"  # nobody has looked
    dataset.DerivationDescription = (
        f"{what['format']} picture of {what['rows']} x {what['columns']} pixels, as 8-bit grey, upright"
    )
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = what["shown_rows"], what["shown_columns"]
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    if what["lossy_ratio"] is not None:
        dataset.LossyImageCompression = "01"
        dataset.LossyImageCompressionRatio = f"{what['lossy_ratio']:.2f}"
        dataset.LossyImageCompressionMethod = "ISO_10918_1"
    dataset.PixelData = decoded.pixels + b"\0" * (len(decoded.pixels) % 2)
    dataset["PixelData"].VR = "OB"
    return dataset
