"""Three patches a candidate, where they lie, what is asked of the model, and their vote."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines import infection
from pipelines.candidates import Candidate, Chest
from pipelines.patches import cut_patch
from pipelines.triton import Arrays
from pipelines.volume import Lesion, Lung, PatchVote
from tests.unit.pipelines.examples import ByRule, axial_affine, volume


def patches(*probabilities: tuple[float, float, float]) -> list[PatchVote]:
    return [
        PatchVote((n, 0.0, 0.0), 0.1, dict(zip(infection.CLASSES, p, strict=True)))
        for n, p in enumerate(probabilities)
    ]


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        # two agree: their type with the larger of their confidences, though the third is surer
        (((0.6, 0.3, 0.1), (0.05, 0.05, 0.9), (0.7, 0.2, 0.1)), ("covid19", 0.7)),
        (((0.2, 0.1, 0.7), (0.0, 0.99, 0.01), (0.1, 0.3, 0.6)), ("irrelevant", 0.7)),
        # all agree
        (((0.1, 0.8, 0.1), (0.2, 0.7, 0.1), (0.1, 0.85, 0.05)), ("iavp", 0.85)),
        # no two agree: the surest
        (((0.5, 0.3, 0.2), (0.1, 0.6, 0.3), (0.2, 0.25, 0.55)), ("iavp", 0.6)),
        # … the first of equals
        (((0.6, 0.3, 0.1), (0.3, 0.6, 0.1), (0.2, 0.25, 0.55)), ("covid19", 0.6)),
    ],
)
def test_the_vote_by_the_paper_s_rules(
    probabilities: tuple[tuple[float, float, float], ...], expected: tuple[str, float]
) -> None:
    assert infection.vote(patches(*probabilities)) == expected


def chest() -> Chest:
    """One lung in rows 10..49 and columns 5..74, whose slices have HU of their own; 2 x 1 x 1 mm."""
    hu = np.arange(12, dtype=np.int16)[:, None, None] * 10 - 800 + np.zeros((12, 60, 80), np.int16)
    lungs = np.zeros(hu.shape, np.uint8)
    lungs[:, 10:50, 5:75] = Lung.LEFT
    return Chest.of(volume(hu, axial_affine()), lungs, np.zeros(hu.shape, np.uint8))


@pytest.mark.parametrize(
    ("slices", "expected"),
    [((4, 7), [4, 5, 6]), ((0, 1), [0, 1, 2]), ((10, 12), [9, 10, 11]), ((0, 12), [5, 6, 7])],
)
def test_the_centre_slice_and_its_neighbours(slices: tuple[int, int], expected: list[int]) -> None:
    candidate = Candidate((slices[0], 20, 30, slices[1], 30, 50), 0.5)
    places = infection.patch_places(candidate, chest())
    assert [index for index, _, _ in places] == expected
    assert {place[1:] for place in places} == {(24.5, 39.5)}  # the middle of the box: voxels have extent


def test_a_patch_lies_on_its_candidate_s_lesion() -> None:
    """A crescent: the middle of the box is healthy lung, the patch isn't."""
    scene = chest()
    scene.lesions[5, 20:30, 30] = Lesion.GROUND_GLASS
    scene.lesions[5, 20, 30:50] = Lesion.GROUND_GLASS
    scene.lesions[5, 40, 40] = Lesion.GROUND_GLASS  # another candidate's
    (_, before, _), (_, row, column), _ = infection.patch_places(
        Candidate((4, 20, 30, 7, 30, 50), 0.5), scene
    )
    assert scene.lesions[5, int(row), int(column)] == Lesion.GROUND_GLASS
    assert row < 30
    assert before == 24.5  # no lesion on the slice before


def test_the_model_is_asked_patches_and_their_distances() -> None:
    scene = chest()
    asked: list[Arrays] = []

    def answer(inputs: Arrays) -> dict[str, NDArray[Any]]:
        asked.append(inputs)
        return {"PROBABILITIES": np.tile(np.array([[0.7, 0.2, 0.1]], np.float32), (len(inputs["HU"]), 1))}

    inference = ByRule(lambda _: {}, infection_type=answer)
    model = inference.check(infection.SPEC)
    candidates = [Candidate((4, 20, 10, 7, 40, 10.5), 0.5), Candidate((0, 29, 39, 2, 30, 40), 0.4)]
    votes = infection.classify(candidates, scene, inference, model)
    (inputs,) = asked
    assert inputs["HU"].shape == (6, 64, 64)
    np.testing.assert_array_equal(inputs["HU"][0], cut_patch(scene.hu[4], (29.5, 9.75), (1.0, 1.0)))
    # by hand (Xu et al. 2020): 6 pixels to what isn't lung, lungs of 40 x 70
    assert inputs["DISTANCE"][0, 0] == pytest.approx(6 / np.hypot(40, 70))
    assert inputs["DISTANCE"][3, 0] == pytest.approx(20 / np.hypot(40, 70))
    assert [[vote.place[0] for vote in three] for three in votes] == [[4, 5, 6], [0, 1, 2]]
    kind, confidence = infection.vote(votes[0])
    assert kind == "covid19" and confidence == pytest.approx(0.7)
    assert infection.classify([], scene, inference, model) == []
