"""Pictures come back from their DICOM objects unchanged, without the patient on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from pipelines.results.capture import build_capture
from tests.unit.pipelines.results.synthetic import chest, context


@pytest.mark.parametrize("shape", [(11, 7, 3), (3, 8, 10, 3)])
def test_pixels_read_back(shape: tuple[int, ...], tmp_path: Path) -> None:
    volume, _ = chest()
    images = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    role = "picture" if images.ndim == 3 else "rotation"
    path = tmp_path / "capture.dcm"
    build_capture(images, volume, context(), role=role).save_as(path, enforce_file_format=True)
    read = pydicom.dcmread(path)
    np.testing.assert_array_equal(read.pixel_array, images)
    assert (read.BurnedInAnnotation, read.PhotometricInterpretation) == ("NO", "RGB")
    assert len(read.SourceImageSequence) == len(volume.sources)


@pytest.mark.parametrize("wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_other_arrays_are_refused(wrong: NDArray[Any]) -> None:
    volume, _ = chest()
    with pytest.raises(ValueError, match="uint8"):
        build_capture(wrong, volume, context(), role="picture")
