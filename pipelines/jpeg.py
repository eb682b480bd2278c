"""Decoders for pydicom: every kind of JPEG that grey pictures come in, by libjpeg-turbo (imagecodecs).

In: a frame of JPEG Baseline, Extended (12 bits) or Lossless.  Out: its samples. Of the libraries that pydicom
knows for these, one is under the GPL and takes eight times as long, and one ends the process on damaged
frames (docs/adr/0032). JPEG-LS, JPEG 2000 and RLE are pydicom's own choice.
"""

from __future__ import annotations

from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.decoders import (
    JPEGBaseline8BitDecoder,
    JPEGExtended12BitDecoder,
    JPEGLosslessDecoder,
    JPEGLosslessSV1Decoder,
)
from pydicom.pixels.decoders.base import DecodeRunner

_DECODERS = (JPEGBaseline8BitDecoder, JPEGExtended12BitDecoder, JPEGLosslessDecoder, JPEGLosslessSV1Decoder)
_NAME, _REPLACED = "imagecodecs", {"gdcm", "pylibjpeg"}
#: what pydicom asks a module of decoders for
DECODER_DEPENDENCIES = {decoder.UID: ("imagecodecs>=2025.3",) for decoder in _DECODERS}


def is_available(uid: str) -> bool:
    """Whether frames of this transfer syntax can be decoded here."""
    return uid in DECODER_DEPENDENCIES


def decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """One grey frame's samples, little endian. Raises ValueError for what isn't (PS3.5 8.2.1)."""
    if runner.samples_per_pixel != 1:
        raise NotImplementedError("colour is left to others")
    try:
        samples: NDArray[np.unsignedinteger[Any]] = imagecodecs.jpeg8_decode(src)
    except imagecodecs.Jpeg8Error as error:
        raise ValueError(f"libjpeg-turbo: {error}") from error
    if samples.shape != (runner.rows, runner.columns):
        raise ValueError(f"a frame of {samples.shape}, where {runner.rows} x {runner.columns} is said")
    runner.set_option("bits_allocated", samples.itemsize * 8)
    return samples.astype(samples.dtype.newbyteorder("<"), copy=False).tobytes()


def make_known() -> None:
    """Let pydicom use it, and none of those that it replaces, whatever is installed: answers are to be the
    same everywhere. Harmless when it is known already."""
    for decoder in _DECODERS:
        for other in set(decoder.available_plugins) & _REPLACED:
            decoder.remove_plugin(other)
        if _NAME not in decoder.available_plugins:
            decoder.add_plugin(_NAME, (__name__, "decode_frame"))
