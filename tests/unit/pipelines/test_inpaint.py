"""Key slices as if without their lesions: which, what is asked, and what stays as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import inpaint
from pipelines.candidates import Candidate, Chest
from pipelines.regions import Drawn, draw
from pipelines.triton import Arrays
from pipelines.volume import InpaintedSlice, Lesion, Lung
from tests.unit.pipelines.examples import ByRule, axial_affine, volume


def scene(spacing_mm: tuple[float, float, float]) -> tuple[Chest, list[Drawn]]:
    """A lung with three lesions; the two of slices 4 and 5 are 4 mm apart."""
    hu = np.full((20, 200, 300), -850, np.int16)
    lungs, lesions = np.full(hu.shape, Lung.LEFT, np.uint8), np.zeros(hu.shape, np.uint8)
    boxes = [(4, 20, 20, 5, 60, 60), (5, 120, 200, 6, 150, 230), (15, 0, 270, 16, 30, 300)]
    for s0, r0, c0, s1, r1, c1 in boxes:
        lesions[s0:s1, r0:r1, c0:c1] = Lesion.GROUND_GLASS
    hu[lesions > 0] = -300
    chest = Chest.of(volume(hu, axial_affine(spacing_mm)), lungs, lesions)
    return chest, draw([Candidate(box, 0.5) for box in boxes], chest)[0]


def run(chest: Chest, drawn: list[Drawn]) -> tuple[tuple[InpaintedSlice, ...], list[Arrays]]:
    asked: list[Arrays] = []

    def healed(inputs: Arrays) -> dict[str, NDArray[Any]]:
        asked.append(inputs)
        return {"INPAINTED": np.where(inputs["MASK"] > 0, np.int16(-850), inputs["HU"])}

    inference = ByRule(lambda _: {}, inpaint=healed)
    return inpaint.inpaint_key_slices(chest, drawn, inference, inference.check(inpaint.SPEC)), asked


def test_slices_apart_of_the_largest_regions() -> None:
    found, asked = run(*scene((4.0, 1.0, 1.0)))
    assert [one.index for one in found] == [4, 15]
    assert asked[0]["HU"].shape == asked[0]["MASK"].shape == (2, 128, 128)


def test_lesions_are_gone_and_nothing_else_changed() -> None:
    found, _ = run(*scene((4.0, 1.0, 1.0)))
    for one in found:
        assert (one.original[one.mask] == -300).any()
        assert (one.inpainted[one.mask] == -850).all()
        np.testing.assert_array_equal(one.original[~one.mask], one.inpainted[~one.mask])
        assert (one.original[~one.mask] == -850).all()  # all of the lesion is masked


def test_a_window_is_as_wide_as_high_in_mm_and_inside_of_the_image() -> None:
    found, asked = run(*scene((4.0, 1.0, 0.5)))
    for one in found:
        rows, columns = one.original.shape
        assert rows * 1.0 == columns * 0.5 >= 100.0
    # the lesion of slice 4 is 40 x 40 pixels of 1 x 0.5 mm: in the square window twice as high as wide
    mask = asked[0]["MASK"][0]
    assert np.count_nonzero(mask.any(axis=1)) > 1.5 * np.count_nonzero(mask.any(axis=0))


def test_without_regions_the_model_is_not_asked() -> None:
    found, asked = run(scene((4.0, 1.0, 1.0))[0], [])
    assert found == ()
    assert asked == []
