"""Three sources of candidates: what each asks its model, and boxes in the axial view's voxels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines import candidates
from pipelines.candidates import (
    COMPONENTS,
    PROPOSALS,
    SLICE_BOXES,
    Candidate,
    CandidateSource,
    Chest,
    lesion_components,
)
from pipelines.masks import voxel_counts
from pipelines.triton import Arrays
from pipelines.volume import Lesion, Lung
from tests.unit.pipelines.examples import ByRule, axial_affine, volume


def chest(
    shape: tuple[int, int, int] = (20, 60, 80), spacing_mm: tuple[float, float, float] = (2.0, 1.0, 1.0)
) -> Chest:
    lungs = np.zeros(shape, np.uint8)
    lungs[2:-2, 10:-10, 5:-5] = Lung.LEFT
    hu = np.full(shape, -850, np.int16)
    return Chest.of(volume(hu, axial_affine(spacing_mm)), lungs, np.zeros(shape, np.uint8))


def find(source: CandidateSource, scene: Chest, **rules: Any) -> list[Candidate]:
    inference = ByRule(lambda _: {}, **rules)
    models = {source.spec.name: inference.check(source.spec)} if source.spec else {}
    return candidates.find_candidates(source, scene, inference, models)


def answer(boxes: list[list[float]], scores: list[float]) -> dict[str, NDArray[Any]]:
    padded = np.zeros((1, 64, 6), np.float32)
    padded[0, : len(boxes)] = np.reshape(boxes, (-1, 6))
    ranked = np.zeros((1, 64), np.float32)
    ranked[0, : len(scores)] = scores
    return {"BOXES": padded, "SCORES": ranked}


@pytest.mark.parametrize("shape", [(20, 60, 80), (200, 512, 512), (65, 768, 300)])
def test_proposals_see_a_small_volume_and_boxes_come_back_to_scale(shape: tuple[int, int, int]) -> None:
    scene = chest(shape)
    asked: list[NDArray[np.int16]] = []

    def rule(inputs: Arrays) -> dict[str, NDArray[Any]]:
        (hu,) = inputs["HU"]
        asked.append(hu)
        middle = [n / 2 for n in hu.shape]
        return answer([[m - 4 for m in middle] + [m + 4 for m in middle]], [0.6])

    (found,) = find(PROPOSALS, scene, candidates=rule)
    (small,) = asked
    assert small.dtype == np.int16
    assert small.nbytes <= 64 * 512 * 512 * 2
    assert len(small) == min(shape[0], 64)
    start, stop = np.array(found.box[:3]), np.array(found.box[3:])
    assert (start + stop) / 2 == pytest.approx(np.array(shape) / 2)
    assert stop - start == pytest.approx(8 * np.array(shape) / np.array(small.shape))
    assert found.score == pytest.approx(0.6)


def test_thin_slices_are_averaged_not_skipped() -> None:
    scene = chest((200, 32, 32))
    scene.hu[101] = 0
    asked: list[NDArray[np.int16]] = []

    def rule(inputs: Arrays) -> dict[str, NDArray[Any]]:
        asked.append(inputs["HU"][0])
        return answer([], [])

    assert find(PROPOSALS, scene, candidates=rule) == []
    (small,) = asked
    share = (small[:, 0, 0] + 850) / 850 * 200 / 64  # of slice 101 in each
    assert share.sum() == pytest.approx(1.0, abs=0.02)
    assert np.argmax(share) == int(101.5 * 64 / 200)


def test_candidates_out_of_the_lungs_or_below_the_threshold_are_left_out() -> None:
    boxes: list[list[float]] = [[5, 20, 20, 9, 30, 30], [5, 0, 20, 9, 8, 30], [12, 20, 20, 15, 30, 30]]
    found = find(PROPOSALS, chest(), candidates=lambda _: answer(boxes, [0.5, 0.4, 0.05]))
    assert [one.box for one in found] == [tuple(boxes[0])]


def test_boxes_on_slices_are_joined_from_slice_to_slice() -> None:
    first, second, alone = [20.0, 20, 30, 30], [22.0, 21, 33, 31], [40.0, 60, 48, 70]
    found = [
        (np.array([first, alone], np.float32), np.array([0.5, 0.3], np.float32)),
        (np.array([second], np.float32), np.array([0.7], np.float32)),
        (np.zeros((0, 4), np.float32), np.zeros(0, np.float32)),
        (np.array([first], np.float32), np.array([0.4], np.float32)),
    ]
    joined = candidates.joined(found, [4, 6, 8, 10], 2, 20)
    assert sorted(one.box for one in joined) == [
        (3, 20, 20, 7, 33, 31),
        (3, 40, 60, 5, 48, 70),
        (9, 20, 20, 11, 30, 30),
    ]
    assert max(one.score for one in joined) == pytest.approx(0.7)


def test_slices_of_lung_are_asked_every_5_mm() -> None:
    sent: list[int] = []

    def rule(inputs: Arrays) -> dict[str, NDArray[Any]]:
        n = len(inputs["HU"])
        sent.append(n)
        boxes, scores = np.zeros((n, 32, 4), np.float32), np.zeros((n, 32), np.float32)
        boxes[:, 0], scores[:, 0] = (20, 20, 30, 30), 0.9
        return {"BOXES": boxes, "SCORES": scores, "TYPES": np.full((n, 32, 2), 0.5, np.float32)}

    (found,) = find(SLICE_BOXES, chest((104, 60, 80), (1.0, 1.0, 1.0)), lesion_boxes=rule)
    assert sent == [20]
    assert found.box[0] <= 4
    assert found.box[3] >= 99
    assert found.box[1:3] == (20, 20)


@pytest.mark.parametrize("source", [PROPOSALS, SLICE_BOXES, COMPONENTS])
def test_only_what_hu_alone_say_is_asked_early(source: CandidateSource) -> None:
    scene = chest()
    boxes = answer([[5.0, 20, 20, 9, 30, 30]], [0.5])
    inference = ByRule(lambda _: {}, candidates=lambda _: boxes)
    models = {source.spec.name: inference.check(source.spec)} if source.spec else {}
    with ThreadPoolExecutor(1) as threads:
        early = candidates.ask_early(source, scene.volume, inference, models, threads)
        assert (early is not None) == (source is PROPOSALS)
        if early is not None:
            found = candidates.find_candidates(source, scene, inference, {}, early=early)
            assert [one.box for one in found] == [(5, 20, 20, 9, 30, 30)]


def test_without_lung_no_slice_is_asked() -> None:
    scene = chest()
    scene.lungs[:] = 0
    assert find(SLICE_BOXES, scene) == []


def test_components_need_no_model() -> None:
    scene = chest()
    scene.lesions[4:8, 20:30, 20:30] = Lesion.GROUND_GLASS
    scene.lesions[5:7, 23:27, 23:27] = Lesion.CONSOLIDATION
    scene.lesions[12, 20:22, 20:22] = Lesion.GROUND_GLASS  # too small
    (found,) = find(COMPONENTS, scene)
    assert found == Candidate((4, 20, 20, 8, 30, 30), 1.0)


def test_more_components_than_16_bits_count() -> None:
    scene = chest((82, 164, 84), (1.0, 1.0, 1.0))
    scene.lungs[:] = Lung.LEFT
    scene.lesions[::2, ::2, ::2] = Lesion.GROUND_GLASS
    crop, components = lesion_components(scene)
    count = 41 * 82 * 42
    assert count > np.iinfo(np.uint16).max
    assert components.max() == count == np.count_nonzero(components)
    assert voxel_counts(components, count).tolist() == [1] * count
    assert crop == (slice(0, 81), slice(0, 163), slice(0, 83))
