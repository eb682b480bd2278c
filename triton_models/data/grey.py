"""Pictures of CT as Hounsfield units.

In: 8-bit grey pictures whose window nobody wrote down.  Out: int16 HU as if it had been ``GREY_HU``, an
ordinary lung window; what was clipped is lost, and other windows give other HU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: HU of black and white: level -400, width 1300, which puts aerated lung and muscle of the MedSeg pictures
#: where they belong (medians of their grey: 42 and 215)
GREY_HU = (-1050.0, 250.0)


def read_grey(path: Path) -> NDArray[np.uint8]:
    """A picture as (rows, columns) grey. Raises FileNotFoundError, or ValueError for what is no picture."""
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("L"))
    except FileNotFoundError:
        raise
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: isn't a picture that can be read: {error}") from error


def grey_to_hu(grey: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Any shape."""
    low, high = GREY_HU
    hu = low + grey.astype(np.float32) * ((high - low) / 255.0)
    return np.asarray(np.rint(hu), dtype=np.int16)
