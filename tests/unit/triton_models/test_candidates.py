"""The region proposal network in volumes: blocks, targets, losses, decoding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from triton_models.architectures.vnet_ir import STRIDE, InceptionResidual, Proposals, VNetIR
from triton_models.data.volumes import GRID, WorkingVolume
from triton_models.served.detection import cell_boxes, on_image, top_peaks
from triton_models.training.recipes.candidates import (
    CELLS,
    Targets,
    grid_boxes,
    move,
    proposal_loss,
    targets_of,
)


def _numbers(*boxes: tuple[int, ...]) -> NDArray[np.uint8]:
    numbers = np.zeros(GRID, np.uint8)
    for index, (z0, y0, x0, z1, y1, x1) in enumerate(boxes, start=1):
        numbers[z0:z1, y0:y1, x0:x1] = index
    return numbers


def _proposals(targets: Targets) -> Proposals:
    """What a perfect network would answer, whatever the cell: every cell proposes the first box."""
    cells = np.indices(CELLS) + 0.5
    start, stop = targets.boxes[0, :3].numpy(), targets.boxes[0, 3:].numpy()
    middle = (start + stop)[:, None, None, None] / 2 - cells
    sides = np.broadcast_to(np.log(stop - start)[:, None, None, None], middle.shape)
    places = torch.from_numpy(np.concatenate([middle, sides])).float()[None]
    peak = (targets.heat[None, None] == 1.0) * 40.0 - 20.0
    return Proposals(peak, places, (targets.lesion[None, None] - 0.5) * 40)


def test_every_stage_has_inception_residual_blocks() -> None:
    network = VNetIR(1, 128)
    for stage in [*network.encoder, *network.decoder]:
        assert any(isinstance(part, InceptionResidual) for part in stage)
    assert not [m for m in network.modules() if isinstance(m, nn.MaxPool3d)]  # strided convolutions instead
    with pytest.raises(ValueError, match="1 class"):
        VNetIR(2, 128)


def test_inception_residual_adds_its_input() -> None:
    block = InceptionResidual(4).eval()
    joining = block.join[0]
    assert isinstance(joining, nn.Conv3d)
    nn.init.zeros_(joining.weight)
    x = torch.rand(1, 4, 4, 4, 4)  # positive, so PReLU is the identity
    assert torch.allclose(block(x), x)


def test_a_cell_is_a_stride_of_voxels() -> None:
    proposals = VNetIR(1, 32).eval()(torch.zeros(1, 2, 16, 32, 32))
    cells = tuple(n // s for n, s in zip((16, 32, 32), STRIDE, strict=True))
    assert [part.shape[1:] for part in proposals] == [(c, *cells) for c in (1, 6, 1)]


def test_the_peak_lies_in_the_lesion() -> None:
    """A region bent around a corner: the middle of its box is outside of it."""
    numbers = _numbers((20, 40, 40, 24, 100, 44), (20, 96, 40, 24, 100, 100))
    numbers[numbers == 2] = 1
    targets = targets_of(numbers, np.array([True]))
    peak = tuple(np.argwhere(targets.heat.numpy() == 1.0)[0])
    assert targets.lesion[peak] == 1
    assert (targets.boxes == torch.tensor([10, 10, 10, 12, 25, 25])).all()
    assert len(targets.cells) == len(targets.boxes) == len(targets.weights) > 0


def test_small_components_are_ignored_but_are_lesion() -> None:
    targets = targets_of(_numbers((20, 40, 40, 22, 44, 44)), np.array([False]))
    assert not targets.heat.any()
    assert targets.ignored[10, 10, 10]
    assert targets.lesion[10, 10, 10] == 1
    assert not len(targets.cells)


def test_a_lesion_counts_the_same_whatever_its_size() -> None:
    targets = targets_of(
        _numbers((8, 8, 8, 40, 64, 64), (50, 100, 100, 52, 104, 104)), np.array([True, True])
    )
    small = (targets.boxes[:, 0] == 25.0).numpy()
    assert 0 < small.sum() < (~small).sum()
    assert float(targets.weights[small].sum()) == pytest.approx(1.0)
    assert float(targets.weights[~small].sum()) == pytest.approx(1.0)


def test_the_right_answer_costs_little_and_a_wrong_one_much() -> None:
    targets = targets_of(_numbers((20, 40, 40, 32, 64, 72)), np.array([True]))
    right = _proposals(targets)
    cost = float(proposal_loss(right, targets))
    moved = right._replace(places=right.places + 1.0)
    assert cost < 0.05
    assert float(proposal_loss(moved, targets)) > cost + 0.3
    assert float(proposal_loss(right._replace(peak=-right.peak), targets)) > cost + 3.0


def test_top_peaks_give_the_box_once() -> None:
    numbers = _numbers((20, 40, 40, 32, 64, 72))
    boxes, scores = top_peaks(_proposals(targets_of(numbers, np.array([True]))), 8)
    assert scores.shape == (1, 8)
    assert float(scores[0, 0]) > 0.99
    assert float(scores[0, 1]) < 0.01
    truth, counts = grid_boxes(WorkingVolume(np.zeros(GRID, np.int16), numbers, np.array([True])))
    np.testing.assert_allclose(boxes[0, :1].numpy(), truth, atol=1e-4)
    assert counts.tolist() == [True]


def test_boxes_scale_with_the_image_and_end_at_its_borders() -> None:
    shares = torch.tensor([[[-0.1, 0.25, 0.5, 0.5, 0.5, 1.5]]])
    image = torch.zeros(1, 10, 200, 300)
    assert on_image(shares, image).tolist() == [[[0.0, 50.0, 150.0, 5.0, 100.0, 300.0]]]


def test_offsets_and_logs_make_boxes() -> None:
    places = torch.zeros(1, 6, 2, 3, 4)
    places[0, :, 1, 2, 3] = torch.tensor([0.5, -0.5, 0.0, 0.0, 0.0, float(np.log(2.0))])
    assert cell_boxes(places)[0, :, 1, 2, 3].tolist() == pytest.approx([1.5, 1.5, 2.5, 2.5, 2.5, 4.5])


def test_some_volumes_stay_as_sharp_as_the_served_graph_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton_models.training.recipes.candidates.UNBENT_SHARE", 1.0)
    numbers = torch.from_numpy(_numbers((20, 40, 40, 32, 64, 72)))
    hu = torch.rand(GRID) * 100
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        _, labels = move(hu, numbers, np.random.default_rng(seed), generator)
        assert torch.equal(labels, numbers) or torch.equal(labels, numbers.flip(2))


def test_volume_and_components_move_together() -> None:
    numbers = _numbers((20, 40, 40, 32, 64, 72))
    hu = torch.from_numpy(np.where(numbers > 0, 0, -1000)).float()
    for seed in range(3):
        moved, labels = move(
            hu, torch.from_numpy(numbers), np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        )
        assert labels.dtype == torch.uint8
        assert moved.shape == labels.shape == GRID
        lesion = moved > -500
        assert (lesion & (labels == 1)).sum() > 0.9 * (labels == 1).sum()
        assert (lesion & (labels == 0)).sum() < 0.1 * (labels == 1).sum()
