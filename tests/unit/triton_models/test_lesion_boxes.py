"""Faster R-CNN on slices: anchors, region features, matching, losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from triton_models.architectures.faster_rcnn import (
    ANCHOR_RATIOS,
    BINS,
    PROPOSALS,
    SAMPLES,
    STRIDES,
    Detections,
    FasterRCNN,
    anchor_boxes,
    changed,
    changes_to,
    overlap_table,
    region_features,
)
from triton_models.data.slices import IGNORE
from triton_models.served.detection import LESION_BOXES, ranked
from triton_models.training.recipes.lesion_boxes import (
    Truth,
    anchor_loss,
    inside_share,
    region_loss,
    with_truth,
)


@pytest.fixture(scope="module")
def network() -> FasterRCNN:
    torch.manual_seed(3)
    return FasterRCNN(2, 128).eval()


def test_anchors_cover_the_slice_in_every_shape(network: FasterRCNN) -> None:
    cells = sum((128 // stride) ** 2 for stride in STRIDES)
    assert network.anchors.shape == (cells * len(ANCHOR_RATIOS), 4)
    sides = network.anchors[:, 2:] - network.anchors[:, :2]
    ratios = sides[:, 0] / sides[:, 1]
    assert sorted({round(float(r), 2) for r in ratios}) == sorted(ANCHOR_RATIOS)


def test_proposals_answer_in_the_anchors_order(network: FasterRCNN) -> None:
    with torch.inference_mode():
        proposed = network.proposed(network.features(torch.rand(2, 2, 128, 128)))
    assert proposed.logits.shape == (2, len(network.anchors))
    assert proposed.changes.shape == (2, len(network.anchors), 4)


def test_changes_and_back() -> None:
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0], [5.0, 5.0, 9.0, 8.0]])
    truth = torch.tensor([[12.0, 25.0, 22.0, 70.0], [4.0, 6.0, 10.0, 8.0]])
    assert torch.allclose(changed(boxes, changes_to(boxes, truth)), truth, atol=1e-4)


def test_overlaps_of_boxes_in_a_batch() -> None:
    first, second = torch.rand(2, 3, 4), torch.rand(2, 5, 4)
    first[..., 2:] += first[..., :2]
    second[..., 2:] += second[..., :2]
    table = overlap_table(first, second)
    assert table.shape == (2, 3, 5)
    assert torch.allclose(table, overlap_table(second, first).transpose(1, 2))
    assert torch.allclose(overlap_table(first, first).diagonal(dim1=1, dim2=2), torch.ones(2, 3))


def test_region_features_are_those_of_roi_align() -> None:
    """Against grid_sample at the same points; the box is small, so it is taken from the finest level."""
    torch.manual_seed(4)
    features = tuple(torch.rand(1, 5, 64 // stride, 64 // stride) for stride in STRIDES)
    box = torch.tensor([[[10.0, 21.0, 20.0, 33.0]]])
    found = region_features(features, box)[0, 0].permute(1, 0, 2)  # channels, bins, bins
    points = (torch.arange(BINS * SAMPLES) + 0.5) / (BINS * SAMPLES)
    rows, columns = box[0, 0, 0] + 10.0 * points, box[0, 0, 1] + 12.0 * points
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flip(-1) / 64.0 * 2.0 - 1.0
    sampled = functional.grid_sample(features[0], grid[None], align_corners=False, padding_mode="border")
    assert torch.allclose(found, functional.avg_pool2d(sampled, SAMPLES)[0], atol=1e-5)


def test_large_regions_come_from_a_coarser_level() -> None:
    features = tuple(
        torch.full((1, 1, 256 // stride, 256 // stride), float(level)) for level, stride in enumerate(STRIDES)
    )
    boxes = torch.tensor([[[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 40.0, 40.0], [0.0, 0.0, 200.0, 200.0]]])
    levels = region_features(features, boxes).mean(dim=(2, 3, 4))
    assert levels.tolist() == [[0.0, 1.0, 2.0]]


def test_kept_proposals_do_not_overlap_a_better_one(network: FasterRCNN) -> None:
    torch.manual_seed(5)
    proposed = network.proposed(network.features(torch.rand(1, 2, 128, 128)))
    one_hot = torch.full_like(proposed.logits, -20.0)
    one_hot[0, :300] = torch.linspace(9, 3, 300)
    boxes = network.proposals(proposed._replace(logits=one_hot))
    assert boxes.shape == (1, PROPOSALS, 4)
    anchors = network.anchors[:1]
    assert overlap_table(boxes[0, :1], anchors).item() > 0.5  # the highest score comes first


def test_truth_of_a_slice() -> None:
    lesions = np.zeros((128, 128), np.uint8)
    lesions[10:30, 20:40] = 1
    lesions[60:80, 60:90] = 2
    lesions[100:120, 100:120] = IGNORE
    lesions[90:92, 10:12] = 1  # too small
    truth = Truth.of(lesions)
    assert truth.boxes.tolist() == [[60, 60, 80, 90], [10, 20, 30, 40]]
    assert truth.classes.tolist() == [2, 1]
    assert {tuple(box) for box in truth.ignored.tolist()} == {(90, 10, 92, 12), (100, 100, 120, 120)}
    boxes = torch.tensor([[100.0, 100, 110, 110], [0.0, 0, 10, 10], [90.0, 100, 110, 110]])
    assert inside_share(boxes, truth.ignored).tolist() == [1.0, 0.0, 0.5]


def _truth() -> Truth:
    return Truth(torch.tensor([[40.0, 40.0, 64.0, 64.0]]), torch.tensor([2]), torch.zeros(0, 4))


def test_anchors_learn_the_lesion() -> None:
    anchors, generator = anchor_boxes(128), torch.Generator().manual_seed(0)
    over = overlap_table(anchors, _truth().boxes)[:, 0]
    right = torch.where(over >= min(0.5, float(over.max())), 8.0, -8.0)
    changes = changes_to(anchors, _truth().boxes.expand(len(anchors), 4))
    good = anchor_loss(anchors, right, changes, _truth(), generator)
    assert float(good) < 0.01
    assert float(anchor_loss(anchors, -right, changes, _truth(), generator)) > 5.0
    assert float(anchor_loss(anchors, right, changes + 1.0, _truth(), generator)) > float(good) + 0.3


def test_regions_learn_box_and_class() -> None:
    boxes = torch.tensor([[40.0, 40.0, 64.0, 64.0], [0.0, 0.0, 20.0, 20.0]])
    logits = torch.tensor([[-8.0, -8.0, 8.0], [8.0, -8.0, -8.0]])
    assert float(region_loss(boxes, logits, torch.zeros(2, 4), _truth())) < 0.01
    assert float(region_loss(boxes, logits.flip(1), torch.zeros(2, 4), _truth())) > 5.0
    nothing = Truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    assert float(region_loss(boxes, logits, torch.zeros(2, 4), nothing)) > 5.0


def test_true_boxes_join_the_proposals() -> None:
    boxes = with_truth(
        torch.zeros(2, 6, 4), [_truth(), Truth(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 4))]
    )
    assert boxes[0, -1].tolist() == [40.0, 40.0, 64.0, 64.0]
    assert not boxes[1].any()


def test_answers_are_ranked() -> None:
    logits = torch.randn(1, PROPOSALS, 3)
    found, scores, types = ranked(Detections(torch.rand(1, PROPOSALS, 4), logits))
    assert found.shape == (1, LESION_BOXES, 4)
    assert (scores.diff(dim=1) <= 0).all()
    assert torch.allclose(types.sum(dim=2), torch.ones(1, LESION_BOXES))
    best = logits[0, int((-torch.softmax(logits, dim=2)[0, :, 0]).argmax())]
    assert torch.allclose(types[0, 0], torch.softmax(best[1:], dim=0))
