"""The triage page: what it says, on which side, and that nothing runs over."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.drawing import palette
from pipelines.drawing.page import WIDTH
from pipelines.triage_picture import CLASSES, _pictures, triage_picture
from tests.unit.pipelines.estimates import FUSION, RANDOM_FUSION, estimates_of
from tests.unit.pipelines.results.synthetic import ORIENTATIONS, context
from tests.unit.pipelines.test_picture import written
from tests.unit.pipelines.test_render import near

__all__ = ["written"]


def test_the_page_says_estimates_slices_and_models(written: list[str]) -> None:
    volume, estimates = estimates_of(fusion=FUSION, notes=("a note",))
    page = triage_picture(volume, estimates, context())
    assert page.shape[1] == WIDTH
    drawn = "\n".join(written)
    case = {**estimates.by_model[0].case, **estimates.by_model[1].case}
    for name, p in case.items():
        assert CLASSES[name][0] in written
        assert f"{p:.3f}" in written
    assert sum(words.startswith("Image ") for words in written) == len(estimates.key_slices)
    for words in (
        *("NOT FOR CLINICAL USE", "pneumonia_class", "fusion", "chest_ct_pneumonia 1.0", "Note: a note"),
        f"mean of {len(estimates.key_slices)} key slices",
        *(f"{count} of {len(estimates.key_slices)} slices" for count in estimates.by_model[0].votes.values()),
    ):
        assert words in drawn, words
    for patient in ("Müller", "4711", "1950", "ACC1", "Doe"):
        assert patient not in drawn


def test_a_random_models_class_is_not_stated(written: list[str]) -> None:
    volume, estimates = estimates_of(fusion=RANDOM_FUSION)
    triage_picture(volume, estimates, context())
    assert "Means nothing: random weights" in written
    assert written.count("COVID-19 positive") == 1  # beside its bar, and not as the answer
    assert "positive" not in written


@pytest.mark.parametrize("orientation", list(ORIENTATIONS))
def test_slices_are_in_radiological_convention(orientation: str) -> None:
    volume, estimates = estimates_of(orientation=orientation)
    pictures = _pictures(volume, estimates)
    picture = np.asarray(pictures[len(pictures) // 2].convert("L")).astype(float)
    spine = np.argwhere(picture > 250)
    assert spine[:, 0].mean() > picture.shape[0] / 2  # posterior: below
    # ground glass, at 136 of 255 in the lung window, is large in the right lung's upper half
    upper = np.asarray(pictures[len(pictures) * 2 // 3].convert("L"))
    glass = np.argwhere((upper > 120) & (upper < 150))
    assert glass[:, 1].mean() < upper.shape[1] / 3
    height = {picture.height / picture.width for picture in pictures}
    assert len(height) == 1 and 0.5 < height.pop() < 0.8  # as in the body: 144 x 220 mm and a margin


def test_classes_are_told_apart_by_colour_and_length(written: list[str]) -> None:
    volume, estimates = estimates_of()
    page = triage_picture(volume, estimates, context())[:482]
    lengths = {
        name: max(np.count_nonzero(near(page, CLASSES[name][1]), axis=1)[200:]) / (WIDTH - 128)
        for name in estimates.by_model[0].classes
    }
    for name, p in estimates.by_model[0].case.items():
        assert lengths[name] == pytest.approx(p, abs=0.03), name


@pytest.mark.parametrize("clinical_use", [True, False])
def test_nothing_runs_over_the_margin(clinical_use: bool, written: list[str]) -> None:
    volume, estimates = estimates_of(fusion=FUSION, notes=("note " * 60,) * 3)
    page = triage_picture(volume, estimates, context(pipeline="p" * 64, clinical_use=clinical_use))
    assert (page[:, -8:] == palette.BACKGROUND).all()
    assert (page[-8:] == palette.BACKGROUND).all()
    assert ("NOT FOR CLINICAL USE" in written) != clinical_use
