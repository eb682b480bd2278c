"""Filling in: composition, the critics, and how PGGAN grows."""

from __future__ import annotations

import pytest
import torch

from triton_models.architectures.build import build_network
from triton_models.architectures.inpaint import DCGAN, HU_HIGH, HU_LOW, InpaintGAN, scaled, unscaled
from triton_models.architectures.pggan import FINEST, PGGAN, level_at
from triton_models.evaluation import generation
from triton_models.registry import MODELS
from triton_models.served.base import build_served
from triton_models.training.recipes.inpaint import composed, critic_loss, generator_loss, gradient_penalty

ENTRY = MODELS["inpaint"]
variants = pytest.mark.parametrize("variant", ENTRY.variants)


def _batch(count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.rand((count, 1, 128, 128), generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros_like(image)
    mask[:, :, 40:80, 30:90] = 1
    return image, mask


@variants
def test_outside_of_the_mask_the_input_stays_as_it_is(variant: str) -> None:
    served = build_served(ENTRY, build_network(ENTRY, variant)).eval()
    hu = torch.randint(-3024, 3071, (3, 128, 128), dtype=torch.int16)
    mask = torch.zeros(3, 128, 128, dtype=torch.uint8)
    mask[0, 10:40, 20:60], mask[1, 0, 0] = 1, 255
    with torch.inference_mode():
        filled = served(hu, mask)
    assert filled.dtype == torch.int16
    assert torch.equal(filled[mask == 0], hu[mask == 0])
    assert torch.equal(filled[2], hu[2])
    assert filled[mask > 0].min() >= HU_LOW
    assert filled[mask > 0].max() <= HU_HIGH


@variants
def test_what_is_masked_is_not_seen(variant: str) -> None:
    served = build_served(ENTRY, build_network(ENTRY, variant)).eval()
    hu = torch.randint(-1000, 200, (1, 128, 128), dtype=torch.int16)
    mask = torch.zeros(1, 128, 128, dtype=torch.uint8)
    mask[0, 50:90, 50:90] = 1
    lesion = torch.where(mask > 0, 40, hu).to(torch.int16)
    with torch.inference_mode():
        assert torch.equal(served(hu, mask), served(lesion, mask))


def test_hu_are_scaled_there_and_back() -> None:
    hu = torch.tensor([-3000.0, HU_LOW, -850.0, HU_HIGH, 2000.0])
    assert unscaled(scaled(hu)).tolist() == pytest.approx(
        [HU_LOW, HU_LOW, -850.0, HU_HIGH, HU_HIGH], abs=1e-3
    )


@variants
def test_losses_reach_their_own_network_only(variant: str) -> None:
    gan = build_network(ENTRY, variant).train()
    assert isinstance(gan, InpaintGAN)
    image, mask = _batch()
    fake = composed(gan, image, mask)
    torch.autograd.backward(critic_loss(gan, (image, mask), fake.detach(), torch.Generator().manual_seed(0)))
    assert all(p.grad is None for p in gan.generator.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in gan.critic.parameters())
    torch.autograd.backward(generator_loss(gan, (image, mask), fake))
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in gan.generator.parameters())


def test_gradient_penalty_of_a_known_critic() -> None:
    class Critic(torch.nn.Module):
        def forward(self, image: torch.Tensor, _mask: torch.Tensor) -> torch.Tensor:
            return 3.0 * image[:, 0, 0, 0]  # a gradient of norm 3 everywhere

    image, mask = _batch()
    penalty = gradient_penalty(Critic(), image, -image, mask, torch.full((2, 1, 1, 1), 0.5))
    assert float(penalty) == pytest.approx(4.0)


def test_the_critic_of_wgan_gp_has_no_batch_normalisation_and_dcgan_has() -> None:
    def normalised(part: torch.nn.Module) -> bool:
        return any(isinstance(m, torch.nn.BatchNorm2d) for m in part.modules())

    assert not normalised(build_network(ENTRY))
    dcgan = build_network(ENTRY, "dcgan")
    assert isinstance(dcgan, DCGAN)
    assert normalised(dcgan.critic)
    assert normalised(dcgan.generator)


def test_levels_are_faded_in_one_after_another() -> None:
    assert level_at(0.0) == (0, 1.0)
    assert level_at(0.3) == (0, 1.0)
    for through, expected in ((1 / 3, 0.0), (5 / 12, 0.5)):
        level, share = level_at(through)
        assert level == 1 and share == pytest.approx(expected)
    assert level_at(0.6) == (1, 1.0)
    assert level_at(1.0) == (FINEST, 1.0)


def test_pggan_grows_without_a_jump() -> None:
    torch.manual_seed(0)
    gan = build_network(ENTRY, "pggan")
    assert isinstance(gan, PGGAN)
    image, mask = _batch()
    gan.train()
    with torch.no_grad():
        gan.grow(1 / 3 - 1e-4)
        before = gan(image, mask)
        gan.grow(2e-4)
        after = gan(image, mask)
        gan.grow(1.0)
        full = gan(image, mask)
    assert (before - after).abs().max() < 0.01
    assert before.unfold(2, 4, 4).std(dim=-1).max() < 1e-6  # a quarter of the resolution
    assert full.unfold(2, 4, 4).std(dim=-1).max() > 1e-4
    assert torch.equal(full, gan.eval()(image, mask))


def test_evaluation_scales_as_the_network_does() -> None:
    assert (generation.HU_LOW, generation.HU_HIGH) == (HU_LOW, HU_HIGH)
