"""What the loss of lesions rewards, and what it doesn't look at."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from triton_models.data.labelled_2d import UNTYPED
from triton_models.data.slices import IGNORE, Slices
from triton_models.training.recipes.lesions import lesion_loss
from triton_models.training.recipes.mixture import lesion_targets

SIDE = 256


def _targets(lesions: NDArray[np.uint8], lungs: NDArray[np.uint8] | None = None) -> torch.Tensor:
    lungs = np.ones_like(lesions) if lungs is None else lungs
    slices = Slices(np.zeros(lesions.shape, np.int16), lungs, lesions)
    return lesion_targets(slices, np.arange(len(lesions)))


def _lesions() -> NDArray[np.uint8]:
    lesions = np.zeros((2, SIDE, SIDE), np.uint8)
    lesions[:, 40:120, 40:120] = 1
    lesions[:, 160:200, 40:120] = 2
    return lesions


def _sure(lesions: NDArray[np.uint8]) -> torch.Tensor:
    """Logits of a network that is right and sure of it."""
    planes = np.stack([lesions > 0, lesions == 2, np.ones_like(lesions)], axis=1)
    return (torch.from_numpy(planes).float() - 0.5) * 60


def test_being_right_costs_almost_nothing_and_each_mistake_something() -> None:
    lesions = _lesions()
    targets, right = _targets(lesions), _sure(lesions)
    best = lesion_loss([right], targets)
    assert best < 1e-3
    for channel in range(3):
        wrong = right.clone()
        wrong[:, channel] *= -1
        assert lesion_loss([wrong], targets) > best + 1.0
    coarse = torch.nn.functional.avg_pool2d(right, 4)
    assert lesion_loss([right, coarse], targets) < 1e-2
    assert lesion_loss([right, -coarse], targets) > 0.5


def test_what_is_ignored_does_not_count() -> None:
    lesions = _lesions()
    lungs = np.ones_like(lesions)
    lesions[:, :, 200:], lungs[:, :, 200:] = IGNORE, IGNORE
    logits = torch.randn(2, 3, SIDE, SIDE)
    changed = logits.clone()
    changed[..., 200:] += 50.0
    targets = _targets(lesions, lungs)
    assert torch.isclose(lesion_loss([logits], targets), lesion_loss([changed], targets))


def test_a_lesion_of_unknown_type_is_an_infection_of_any_type() -> None:
    lesions = _lesions()
    sure_of_type, other_type = _sure(lesions), _sure(lesions)
    other_type[:, 1] *= -1
    targets = _targets(np.where(lesions > 0, UNTYPED, 0).astype(np.uint8))
    assert torch.isclose(lesion_loss([sure_of_type], targets), lesion_loss([other_type], targets))
    missed = sure_of_type.clone()
    missed[:, 0] = -30.0
    assert lesion_loss([missed], targets) > lesion_loss([sure_of_type], targets) + 1.0
