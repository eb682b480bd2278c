"""Shapes, and the facts that the papers state about the networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from triton_models.architectures.build import build_network
from triton_models.architectures.covseg import COVSegNet, Inception
from triton_models.architectures.vnet2d import ResidualStage, SkipSelfAttention, VNet2D
from triton_models.architectures.windows import windowed
from triton_models.registry import MODELS, ModelEntry
from triton_models.served.base import build_served
from triton_models.served.segmentation import THRESHOLD

SEGMENTATION = [entry for entry in MODELS.values() if entry.kind == "segmentation"]


@pytest.mark.parametrize("entry", SEGMENTATION, ids=lambda entry: entry.name)
def test_a_channel_of_logits_for_each_class(entry: ModelEntry) -> None:
    network = build_network(entry).eval()
    with torch.inference_mode():
        logits = network(torch.zeros(2, 2, entry.network_size, entry.network_size))
    assert logits.shape == (2, len(entry.classes), entry.network_size, entry.network_size)


def _of(network: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kind)]


def test_vnet_has_strided_convolutions_prelu_and_attention_on_each_skip() -> None:
    network = VNet2D(1, 256)
    assert [layer[0].stride for layer in network.down] == [(2, 2)] * 4
    assert not _of(network, nn.MaxPool2d)
    assert _of(network, nn.PReLU)
    assert not _of(network, nn.ReLU)
    assert len(_of(network, SkipSelfAttention)) == len(network.decoder) == 4


def test_residual_stage_adds_its_input() -> None:
    stage = ResidualStage(4, 4, 2).eval()
    for convolution in _of(stage.convolutions, nn.Conv2d):
        nn.init.zeros_(convolution.weight)
    x = torch.rand(1, 4, 8, 8)  # positive, so PReLU is the identity
    assert torch.allclose(stage(x), x, atol=1e-6)


def test_attention_lets_a_far_corner_change_the_gate() -> None:
    torch.manual_seed(0)
    attention = SkipSelfAttention(8, 64).eval()
    x = torch.rand(1, 8, 64, 64)
    far = x.clone()
    far[:, :, -4:, -4:] += 10.0
    assert not torch.allclose(attention(x)[:, :, :4, :4], attention(far)[:, :, :4, :4])


def test_covseg_has_nine_layers_pools_3x3_and_drops_half() -> None:
    network = COVSegNet(2, 256)
    assert len(network.down) + len(network.up) == 9
    assert (network.pool.kernel_size, network.pool.stride) == (3, 2)
    assert network.dropout.p == 0.5
    assert _of(network, nn.ELU)
    assert not _of(network, nn.ReLU)
    assert network.upsample.scale_factor == 2


def test_covseg_inception_has_the_four_branches() -> None:
    block = Inception(8, 16)
    kernels = [branch[0].kernel_size for branch in block.branches]
    assert kernels == [(1, 1), (3, 3), (5, 5), 3]
    assert block(torch.rand(1, 8, 16, 16)).shape == (1, 16, 16, 16)
    with pytest.raises(ValueError, match="multiple of 4"):
        Inception(8, 10)


def test_covseg_merges_4_6_3_7_2_8_1_9() -> None:
    network = COVSegNet(2, 64).eval()
    sizes: dict[str, tuple[int, ...]] = {}

    def remember(name: str):
        return lambda _module, args, _result: sizes.update({name: tuple(args[0].shape[1:])})

    for number, layer in enumerate([*network.down, *reversed(network.up)], start=1):
        layer.register_forward_hook(remember(str(number)))
    outputs = {n: list(network.down)[n - 1][0][0].out_channels for n in (1, 2, 3, 4, 5)}
    network(torch.zeros(1, 2, 64, 64))
    below = outputs[5]
    for left, right in ((4, 6), (3, 7), (2, 8), (1, 9)):
        assert sizes[str(right)][0] == below + outputs[left]
        assert sizes[str(right)][1:] == sizes[str(left)][1:]
        below = outputs[left]


def test_windows_map_hu_to_unit_range() -> None:
    channels = windowed(torch.tensor([-3024.0, -1024.0, -200.0, 0.0, 3000.0]).reshape(1, 1, 1, 5))
    assert channels[0, 0, 0].tolist() == [0.0, 0.0, 1.0, 1.0, 1.0]
    assert channels[0, 1, 0].tolist() == [0.0, 0.0, pytest.approx(1 / 6), 0.5, 1.0]


class _Constant(nn.Module):
    """Logits that are the same everywhere."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor(logits).reshape(1, -1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(x.shape[0], -1, *x.shape[2:])


@pytest.mark.parametrize(
    ("ground", "dense", "label"),
    [
        (-1.0, -2.0, 0),
        (1.0, -1.0, 1),
        (-1.0, 1.0, 2),
        (2.0, 1.0, 1),
        (1.0, 2.0, 2),
        (1.0, 1.0, 2),
        (0.0, -1.0, 1),
    ],
)
def test_lesion_label_is_the_likelier_type_from_the_threshold_on(
    ground: float, dense: float, label: int
) -> None:
    assert THRESHOLD == 0.5
    served = build_served(MODELS["lesions"], _Constant(ground, dense))
    labels, probabilities = served(torch.zeros(1, 20, 30, dtype=torch.int16))
    assert (labels == label).all()
    expected = torch.round(torch.sigmoid(torch.tensor([ground, dense])) * 255)
    assert probabilities[0, :, 3, 4].tolist() == expected.tolist()
