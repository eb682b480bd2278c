"""A phantom as a classic CT Image Storage series on disk.

In: a ``Phantom``.  Out: one Part 10 file a slice, valid against PS3.3 A.3, with UIDs that are a pure
function of the seed, so that a series that is written twice is the same series.
"""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from triton_models.data.phantom import Phantom

_NAMESPACE = uuid.UUID("6f6a1f0e-2a0b-5d0e-9b3c-0d1f3a5c7e91")
RESCALE_INTERCEPT = -1024


def phantom_uid(seed: int, name: str) -> str:
    """A 2.25 UID (PS3.5 B.2) from the seed and a role such as "study" or "slice 3"."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, f'{seed}/{name}').int}"


def write_series(phantom: Phantom, folder: Path, *, seed: int) -> list[Path]:
    """Write the phantom into ``folder`` (made when missing) and return the files, feet to head.

    Explicit VR Little Endian, identity orientation, head first supine, rescale 1 / -1024. ``seed`` makes the
    UIDs; it need not be the phantom's own. Raises OSError when the folder can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    common = _common(phantom, seed)
    paths = []
    for index in range(phantom.hu.shape[0]):
        path = folder / f"CT.{index + 1:04d}.dcm"
        _instance(phantom, common, index, seed).save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def _common(phantom: Phantom, seed: int) -> Dataset:
    """The attributes that all slices share."""
    ds = Dataset()
    _study_attributes(ds, seed)
    _acquisition_attributes(ds, phantom)
    _pixel_attributes(ds, phantom)
    return ds


def _study_attributes(ds: Dataset, seed: int) -> None:
    day = np.random.default_rng([0x44415445, seed]).integers(0, 28, 3)
    date = f"2024{day[0] % 12 + 1:02d}{day[1] + 1:02d}"
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = CTImageStorage
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = date
    ds.StudyTime, ds.SeriesTime, ds.AcquisitionTime, ds.ContentTime = "101500", "101730", "101742", "101801"
    ds.AccessionNumber = f"PH{seed % 10**8:08d}"
    ds.Modality = "CT"
    ds.InstitutionName = "Phantom Hospital"
    ds.ReferringPhysicianName = ""
    ds.StudyDescription = "CT CHEST (GENERATED PHANTOM)"
    ds.PatientName = "Phantom^Chest"
    ds.PatientID = f"PHANTOM{seed % 10**8:08d}"
    ds.PatientBirthDate = f"19{50 + day[2]:02d}0101"
    ds.PatientSex = "O"
    ds.PatientAge = f"{74 - day[2]:03d}Y"
    ds.BodyPartExamined = "CHEST"
    ds.StudyInstanceUID = phantom_uid(seed, "study")
    ds.SeriesInstanceUID = phantom_uid(seed, "series")
    ds.FrameOfReferenceUID = phantom_uid(seed, "frame of reference")
    ds.PositionReferenceIndicator = ""
    ds.StudyID, ds.SeriesNumber, ds.AcquisitionNumber = "1", "2", "1"


def _acquisition_attributes(ds: Dataset, phantom: Phantom) -> None:
    meta, scanner = phantom.meta, phantom.meta.scanner
    slices, _, columns = phantom.hu.shape
    ds.Manufacturer = scanner.manufacturer
    ds.ManufacturerModelName = scanner.model
    ds.SeriesDescription = f"Chest {meta.thickness_mm:g} mm {scanner.kernel}"
    ds.SliceThickness = f"{meta.thickness_mm:g}"
    ds.SpacingBetweenSlices = _ds(phantom.spacing_mm[0])
    ds.KVP = "120"
    ds.DataCollectionDiameter = "500"
    ds.ReconstructionDiameter = _ds(columns * phantom.spacing_mm[2])
    ds.SoftwareVersions = "chest_phantom"
    ds.GantryDetectorTilt = "0"
    ds.TableHeight = "150"
    ds.RotationDirection = "CW"
    ds.ExposureTime, ds.XRayTubeCurrent, ds.Exposure = "500", "240", "120"
    ds.FilterType = "BODY FILTER"
    ds.ConvolutionKernel = scanner.kernel
    ds.PatientPosition = "HFS"
    ds.ImagesInAcquisition = str(slices)


def _pixel_attributes(ds: Dataset, phantom: Phantom) -> None:
    scanner = phantom.meta.scanner
    _, rows, columns = phantom.hu.shape
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = rows, columns
    ds.PixelSpacing = [_ds(phantom.spacing_mm[1]), _ds(phantom.spacing_mm[2])]
    ds.PixelRepresentation = int(scanner.signed)
    ds.BitsAllocated = 16
    ds.BitsStored, ds.HighBit = (16, 15) if scanner.signed else (12, 11)
    if scanner.signed and scanner.padding_hu is not None:
        ds.add_new("PixelPaddingValue", "SS", scanner.padding_hu - RESCALE_INTERCEPT)
    ds.WindowCenter, ds.WindowWidth = ["-600", "40"], ["1500", "400"]
    ds.WindowCenterWidthExplanation = ["LUNG", "MEDIASTINUM"]
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = str(RESCALE_INTERCEPT), "1", "HU"


def _instance(phantom: Phantom, common: Dataset, index: int, seed: int) -> FileDataset:
    uid = phantom_uid(seed, f"slice {index}")
    file_meta = FileMetaDataset()
    file_meta.MediaStorageSOPClassUID = CTImageStorage
    file_meta.MediaStorageSOPInstanceUID = uid
    file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", common, file_meta=file_meta, preamble=b"\0" * 128)
    x, y, z = phantom.meta.first_position_mm
    z += index * phantom.spacing_mm[0]
    ds.SOPInstanceUID = uid
    ds.InstanceNumber = str(index + 1)
    ds.ImagePositionPatient = [_ds(x), _ds(y), _ds(z)]
    ds.SliceLocation = _ds(z)
    stored = phantom.hu[index].astype(np.int32) - RESCALE_INTERCEPT
    if not phantom.meta.scanner.signed:
        stored = np.clip(stored, 0, 4095)
    ds.PixelData = stored.astype("<i2").tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def _ds(value: float) -> str:
    """A Decimal String (PS3.5 6.2, at most 16 bytes) that is exact to a nanometre."""
    return f"{value:.6f}".rstrip("0").rstrip(".")
