"""Pictures -> Secondary Capture objects: one image (PS3.3 A.8.1) or a multi-frame true colour loop (A.8.5).

In: RGB arrays, the Volume or picture that they show and a ResultContext.  Out: a pydicom Dataset, Explicit VR
Little Endian, not compressed: every viewer shows it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.tag import Tag
from pydicom.uid import MultiFrameTrueColorSecondaryCaptureImageStorage, SecondaryCaptureImageStorage

from pipelines.results import codes
from pipelines.results.identity import SERIES_TYPES, result_uid, stamp
from pipelines.results.sources import referenced_series_sequence, source_image_sequence
from pipelines.volume import ResultContext, SourceImages

#: role -> (how the picture was derived, in words; the same coded, CID 7203)
_DERIVATION = {
    "picture": ("Key slices with AI findings drawn on them", (codes.MULTIPLANAR_REFORMATTING,)),
    "rotation": (
        "Surface rendering (left) and ray-cast volume rendering (right) with AI findings",
        (codes.SURFACE_RENDERING, codes.VOLUME_RENDERING),
    ),
    "inpainted": (
        "Key slices, the same with lesions filled in by a network, and the difference",
        (codes.PIXEL_BY_PIXEL_SUBTRACTION,),
    ),
    "montage": ("Slices with AI findings drawn on them", (codes.MULTIPLANAR_REFORMATTING,)),
    "no_result_picture": ("Why there is no AI result", ()),
    "triage_picture": ("AI class estimates, key slices with their own", (codes.MULTIPLANAR_REFORMATTING,)),
    "estimates_picture": ("AI class estimates of a picture, cut to the lungs found on it", ()),
}
FRAME_TIME_MS = 125.0


def build_capture(
    images: NDArray[np.uint8], volume: SourceImages, context: ResultContext, *, role: str
) -> Dataset:
    """Wrap pictures in DICOM.

    images: uint8 RGB, (rows, columns, 3) for one image or (frames, rows, columns, 3) for a loop.
    role: a key of _DERIVATION; it names series, UID and derivation.
    Raises ValueError for another shape or type.
    """
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] != 3:
        raise ValueError(f"images: uint8 (…, rows, columns, 3) expected, got {images.dtype} {images.shape}")
    loop = images.ndim == 4
    dataset = Dataset()
    dataset.SOPClassUID = (
        MultiFrameTrueColorSecondaryCaptureImageStorage if loop else SecondaryCaptureImageStorage
    )
    dataset.SOPInstanceUID = result_uid(volume, context, f"{role}/instance")
    dataset.SeriesInstanceUID = result_uid(volume, context, f"{role}/series")
    dataset.InstanceNumber = 1
    _describe(dataset, volume, role)
    stamp(dataset, volume, context, SERIES_TYPES[role])
    dataset.ConversionType = "WSD"  # workstation: made from data, not scanned or digitised
    dataset.DateOfSecondaryCapture = dataset.ContentDate
    dataset.TimeOfSecondaryCapture = dataset.ContentTime
    dataset.SecondaryCaptureDeviceManufacturer = dataset.Manufacturer
    dataset.SecondaryCaptureDeviceManufacturerModelName = dataset.ManufacturerModelName
    dataset.SecondaryCaptureDeviceSoftwareVersions = context.software_version[:64]
    if loop:
        _add_loop(dataset, frames=images.shape[0])
    _add_pixels(dataset, images)
    return dataset


def _describe(dataset: Dataset, volume: SourceImages, role: str) -> None:
    description, derivations = _DERIVATION[role]
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.PatientOrientation = None  # Type 2C: pictures have several, and say so in the image
    dataset.BurnedInAnnotation = "NO"  # results and models are written on it, the patient is not
    dataset.DerivationDescription = description
    if derivations:
        dataset.DerivationCodeSequence = [codes.concept(code) for code in derivations]
    dataset.SourceImageSequence = source_image_sequence(volume)
    dataset.ReferencedSeriesSequence = referenced_series_sequence(volume)


def _add_loop(dataset: Dataset, frames: int) -> None:
    """Multi-frame and Cine modules (PS3.3 C.7.6.6, C.7.6.5)."""
    dataset.NumberOfFrames = frames
    dataset.FrameIncrementPointer = Tag("FrameTime")
    dataset.FrameTime = FRAME_TIME_MS
    dataset.RecommendedDisplayFrameRate = round(1000.0 / FRAME_TIME_MS)
    dataset.PreferredPlaybackSequencing = 0


def _add_pixels(dataset: Dataset, images: NDArray[np.uint8]) -> None:
    dataset.SamplesPerPixel = 3
    dataset.PhotometricInterpretation = "RGB"
    dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = images.shape[-3], images.shape[-2]
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    dataset.LossyImageCompression = "00"
    pixels = np.ascontiguousarray(images).tobytes()
    dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)
    dataset["PixelData"].VR = "OB"
