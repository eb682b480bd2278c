"""The patch classifier: the paper's numbers, and what the distance does."""

from __future__ import annotations

import torch

from triton_models.architectures.build import build_network
from triton_models.architectures.infection_type import FEATURES, FLAT, BasicBlock, LocationAttention
from triton_models.registry import MODELS
from triton_models.served.base import build_served
from triton_models.training.recipes.infection_type import augment_patches

ENTRY = MODELS["infection_type"]


def _patches(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-1024, 200, (count, 64, 64), generator=generator).to(torch.int16)


def test_it_is_a_resnet18_with_256_and_16_features_and_three_layers() -> None:
    network = build_network(ENTRY)
    assert isinstance(network, LocationAttention)
    blocks = [module for module in network.modules() if isinstance(module, BasicBlock)]
    convolutions = 1 + sum(isinstance(m, torch.nn.Conv2d) for b in blocks for m in b.convolutions)
    flat, features = network.extractor[-2], network.features[0]
    assert isinstance(flat, torch.nn.Linear) and isinstance(features, torch.nn.Linear)
    linear = [module for module in network.head if isinstance(module, torch.nn.Linear)]
    assert (len(blocks), convolutions) == (8, 17)
    assert (flat.out_features, features.out_features) == (FLAT, FEATURES) == (256, 16)
    assert (len(linear), linear[0].in_features, linear[-1].out_features) == (3, 17, 3)
    plain = build_network(ENTRY, "plain")
    assert isinstance(plain, LocationAttention)
    first = plain.head[0]
    assert isinstance(first, torch.nn.Linear) and first.in_features == 16


def test_only_location_attention_minds_the_distance() -> None:
    torch.manual_seed(0)
    near, far = torch.zeros(2, 1), torch.full((2, 1), 0.12)
    for variant, minds in (("main", True), ("plain", False)):
        served = build_served(ENTRY, build_network(ENTRY, variant)).eval()
        with torch.inference_mode():
            one, other = served(_patches(2), near), served(_patches(2), far)
        assert torch.allclose(one.sum(dim=1), torch.ones(2), atol=1e-6)
        assert torch.equal(one, other) != minds


def test_hu_beyond_the_range_changes_nothing() -> None:
    served = build_served(ENTRY, build_network(ENTRY)).eval()
    distance = torch.full((1, 1), 0.05)
    low, padding = (torch.full((1, 64, 64), value, dtype=torch.int16) for value in (-1024, -3024))
    with torch.inference_mode():
        assert torch.equal(served(low, distance), served(padding, distance))


def test_augmentation_keeps_shape_and_is_a_function_of_the_generator() -> None:
    hu = _patches(6).float()
    one, same = (augment_patches(hu, torch.Generator().manual_seed(1)) for _ in range(2))
    assert one.shape == hu.shape
    assert torch.equal(one, same)
    assert not torch.equal(one, augment_patches(hu, torch.Generator().manual_seed(2)))
