"""Shapes, and the facts that the papers state about the networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import nn

from triton_models.architectures.build import build_network
from triton_models.architectures.covseg import CHANNELS, COVSegNet, Inception, Layer, slice_channels
from triton_models.architectures.vnet2d import ResidualStage, SkipSelfAttention, VNet2D
from triton_models.architectures.windows import windowed
from triton_models.registry import MODELS, ModelEntry
from triton_models.served.base import build_served
from triton_models.served.segmentation import THRESHOLD

Kind = TypeVar("Kind", bound=nn.Module)
SEGMENTATION = [entry for entry in MODELS.values() if entry.kind == "segmentation"]


@pytest.mark.parametrize("entry", SEGMENTATION, ids=lambda entry: entry.name)
def test_a_channel_of_logits_for_each_class(entry: ModelEntry) -> None:
    network = build_network(entry).eval()
    with torch.inference_mode():
        logits = network(torch.zeros(2, 1, entry.network_size, entry.network_size))
    assert logits.shape == (2, len(entry.classes), entry.network_size, entry.network_size)


def _of(network: nn.Module, kind: type[Kind]) -> list[Kind]:
    return [module for module in network.modules() if isinstance(module, kind)]


def _first(layers: nn.Module, kind: type[Kind]) -> Kind:
    first = next(layers.children())
    assert isinstance(first, kind)
    return first


def test_vnet_has_strided_convolutions_prelu_and_attention_on_each_skip() -> None:
    network = VNet2D(1, 256)
    assert [_first(layer, nn.Conv2d).stride for layer in network.down] == [(2, 2)] * 4
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
    block = Inception(16)
    *convolving, pooling = block.branches
    kernels = [_first(branch, nn.Conv2d).kernel_size for branch in convolving]
    assert kernels == [(1, 1), (3, 3), (5, 5)]
    assert _first(pooling, nn.MaxPool2d).kernel_size == 3
    assert block(torch.rand(1, 16, 8, 8)).shape == (1, 16, 8, 8)
    with pytest.raises(ValueError, match="multiple of 4"):
        Inception(10)


def test_covseg_merges_4_6_3_7_2_8_1_9() -> None:
    network = COVSegNet(2, 64).eval()
    sizes: dict[str, tuple[int, ...]] = {}

    def remember(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        return lambda _module, args, _result: sizes.update({name: tuple(args[0].shape[1:])})

    for number, layer in enumerate([*network.down, *reversed(network.up)], start=1):
        layer.register_forward_hook(remember(str(number)))
    down = _of(network.down, Layer)
    outputs = {n: _first(down[n - 1].first, nn.Conv2d).out_channels for n in (1, 2, 3, 4, 5)}
    network(torch.zeros(1, 1, 64, 64))
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


def test_relative_channels_do_not_see_the_window() -> None:
    rng = torch.Generator().manual_seed(0)
    slice_ = torch.where(torch.rand(1, 1, 32, 32, generator=rng) < 0.4, 0.0, -850.0)
    slice_ += torch.randn(slice_.shape, generator=rng) * 40
    slice_[..., 10:14, 10:14] = -500.0
    first, other = slice_channels(slice_), slice_channels(slice_ * 0.8 - 100.0)
    assert first.shape == (1, CHANNELS, 32, 32)
    assert torch.allclose(first[:, 3], other[:, 3], atol=0.02)
    assert not torch.allclose(first[:, 0], other[:, 0], atol=0.1)
    assert first[0, 3, 10:14, 10:14].mean() == pytest.approx(350 / 850, abs=0.05)


def test_padding_and_slices_of_one_density_are_no_trouble() -> None:
    for hu in (-1024.0, -1000.0, 40.0):
        assert torch.isfinite(slice_channels(torch.full((1, 1, 8, 8), hu))).all()
    slice_ = torch.where(torch.arange(32) < 16, -850.0, 0.0).expand(1, 1, 32, 32).clone()
    padded = torch.nn.functional.pad(slice_, (8, 8, 8, 8), value=-1024.0)
    assert torch.allclose(slice_channels(padded)[..., 8:-8, 8:-8], slice_channels(slice_), atol=1e-5)


def test_auxiliary_heads_answer_in_training_only() -> None:
    network = COVSegNet(2, 64)
    shapes = [tuple(logits.shape) for logits in network(torch.zeros(2, 1, 64, 64))]
    assert shapes == [(2, 3, 64, 64), (2, 3, 16, 16), (2, 3, 8, 8)]
    assert network.eval()(torch.zeros(2, 1, 64, 64)).shape == (2, 2, 64, 64)


@pytest.mark.parametrize(
    ("infection", "share", "label"),
    [(-1.0, -2.0, 0), (-1.0, 3.0, 0), (1.0, -1.0, 1), (1.0, 1.0, 2), (1.0, 0.0, 2), (0.1, -0.1, 1)],
)
def test_lesion_label_is_the_likelier_type_where_there_is_a_lesion(
    infection: float, share: float, label: int
) -> None:
    assert THRESHOLD == 0.5
    served = build_served(MODELS["lesions"], _Constant(infection, share))
    labels, probabilities = served(torch.zeros(1, 20, 30, dtype=torch.int16))
    assert (labels == label).all()
    of_lesion, of_dense = torch.sigmoid(torch.tensor([infection, share]))
    expected = torch.round(of_lesion * torch.stack([1 - of_dense, of_dense]) * 255)
    assert probabilities[0, :, 3, 4].tolist() == expected.tolist()


def test_lesions_of_a_mirrored_slice_are_mirrored() -> None:
    torch.manual_seed(0)
    served = build_served(MODELS["lesions"], build_network(MODELS["lesions"])).eval()
    hu = torch.randint(-1000, 200, (2, 96, 80), dtype=torch.int16)
    with torch.inference_mode():
        (labels, probabilities), (mirrored, others) = served(hu), served(hu.flip(-1))
    assert (labels == mirrored.flip(-1)).float().mean() > 0.999
    assert (probabilities.int() - others.flip(-1).int()).abs().max() <= 1
