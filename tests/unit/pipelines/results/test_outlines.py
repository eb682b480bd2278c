"""Outlines hold exactly the pixels of what they were drawn around."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from pipelines.results.outlines import around_lungs, outline, trace
from tests.unit.pipelines.results.synthetic import chest, without_plane


def filled(points: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels whose centres lie in the polygon, by Pillow, at four times the size."""
    image = Image.new("1", (4 * shape[1], 4 * shape[0]))
    ImageDraw.Draw(image).polygon([(float(x) * 4, float(y) * 4) for x, y in points], fill=1)
    return np.asarray(image)[2::4, 2::4]


@settings(max_examples=100, deadline=None)
@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_an_outline_holds_the_largest_part_and_nothing_else(mask: NDArray[np.bool_]) -> None:
    if not mask.any():
        with pytest.raises(ValueError, match="nothing"):
            trace(mask)
        return
    parts, _ = ndimage.label(mask)
    part = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    points = trace(mask)
    assert (points[0] == points[-1]).all()
    rows, columns = mask.shape
    np.testing.assert_array_equal(filled(points, (rows, columns)), ndimage.binary_fill_holes(part))
    x, y = points.T
    area = abs(float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))) / 2
    assert area == ndimage.binary_fill_holes(part).sum()


@pytest.mark.parametrize("orientation", ["axial", "reversed", "coronal", "oblique"])
def test_an_outline_is_on_the_image_with_most_of_the_region(orientation: str) -> None:
    volume, findings = chest(orientation)
    for region in findings.regions:
        drawn = outline(volume, findings.region_labels, region)
        assert (drawn.source, drawn.frame) == volume.source_frames[region.key_slice]
        on_slice = findings.region_labels[region.key_slice] == region.number
        np.testing.assert_array_equal(filled(drawn.points, on_slice.shape), on_slice)


def test_no_outline_is_on_an_interpolated_slice() -> None:
    whole, found = chest()
    key = found.regions[0].key_slice
    volume, findings = without_plane(whole, found, missing=key)
    drawn = outline(volume, findings.region_labels, found.regions[0])
    assert volume.source_slices[drawn.source] != key
    assert abs(volume.source_slices[drawn.source] - key) <= 3


def test_the_outline_around_the_lungs_holds_both_and_is_convex() -> None:
    volume, findings = chest()
    drawn = around_lungs(volume, findings.lungs)
    most = int(np.count_nonzero(findings.lungs, axis=(1, 2)).argmax())
    assert (drawn.source, drawn.frame) == volume.source_frames[most]
    lungs = findings.lungs[most] > 0
    assert filled(drawn.points, lungs.shape)[lungs].all()
    steps = np.diff(drawn.points.astype(float), axis=0)
    turns = steps[:-1, 0] * steps[1:, 1] - steps[:-1, 1] * steps[1:, 0]
    assert (turns > 0).all() or (turns < 0).all()
    for axis, across in ((0, 0), (1, 1)):
        places = np.flatnonzero(lungs.any(axis=across))
        assert (drawn.points[:, axis].min(), drawn.points[:, axis].max()) == (places[0], places[-1] + 1)


def test_there_is_no_outline_without_lungs() -> None:
    volume, findings = chest()
    with pytest.raises(ValueError, match="no lung"):
        around_lungs(volume, np.zeros_like(findings.lungs))
