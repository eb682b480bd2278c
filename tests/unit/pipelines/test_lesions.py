"""Which slices the ``lesions`` model is asked about, and when, changes nothing of what is found."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines import lesions
from pipelines.lesions import Answer, ask_lesions, likely_slices, segment_lesions
from pipelines.lungs import ClosedLungs
from pipelines.volume import Lesion, Volume
from tests.unit.pipelines.examples import ByRule, axial_affine, volume, within

SHAPE = (12, 20, 24)


def _series() -> Volume:
    hu = np.arange(np.prod(SHAPE), dtype=np.int64).reshape(SHAPE) * 7919 % 1000 - 1000
    return volume(hu.astype(np.int16), axial_affine((1.0, 5.0, 5.0)))


def _inference() -> ByRule:
    return ByRule(lambda hu: {"LABELS": (hu % 3 == 0).astype(np.uint8) * np.uint8(Lesion.GROUND_GLASS)})


def _lungs() -> ClosedLungs:
    lungs = np.zeros(SHAPE, np.uint8)
    lungs[3:9, 5:15, 5:20] = 1
    return within(lungs)


@pytest.mark.parametrize(
    ("known", "asked_after"),
    [
        (slice(3, 9), 0),
        (slice(4, 7), 3),
        (slice(0, 5), 4),
        (slice(8, 12), 5),
        (slice(0, 12), 0),
        (slice(0, 2), 6),
        (slice(10, 12), 6),
        (slice(0, 0), 6),
    ],
)
def test_what_is_known_is_not_asked_again(known: slice, asked_after: int) -> None:
    series, inference = _series(), _inference()
    model = inference.check(lesions.SPEC)
    plain = segment_lesions(series, _lungs(), inference, model)
    assert inference.slices_sent == 6
    answer = ask_lesions(series, known, inference, model)
    inference.slices_sent = 0
    found = segment_lesions(series, _lungs(), inference, model, known=answer)
    np.testing.assert_array_equal(found, plain)
    assert inference.slices_sent == asked_after


def test_an_answer_about_slices_without_lung_counts_for_nothing() -> None:
    series, inference = _series(), _inference()
    everything = Answer(slice(0, 12), np.ones(SHAPE, np.uint8))
    nothing = within(np.zeros(SHAPE, np.uint8))
    found = segment_lesions(series, nothing, inference, inference.check(lesions.SPEC), known=everything)
    assert not found.any()
    assert inference.slices_sent == 0


def test_likely_slices_are_the_longest_run_that_shows_lung() -> None:
    series = _series()  # pixels of 25 mm2: four are enough
    mask = np.zeros(SHAPE, np.bool_)
    assert likely_slices(series, mask) == slice(0, 0)
    mask[1, :2, :2] = mask[3:8, :2, :2] = mask[9:11, :5, :5] = True
    mask[8, 0, :3] = True
    assert likely_slices(series, mask) == slice(3, 8)
    mask[:] = True
    assert likely_slices(series, mask) == slice(0, 12)
