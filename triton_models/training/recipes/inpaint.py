"""How ``inpaint`` and its baselines are trained: real slices against the same with masks filled in.

In: windows of normal slices.  The generator's loss is the mean absolute error inside of the masks plus the
adversarial loss of the variant: WGAN-GP (Gulrajani et al. 2017) for the model and PGGAN, cross-entropy for
DCGAN. The critic sees the composition: the input outside of the mask, the generator's inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from triton_models.architectures.inpaint import DCGAN, InpaintGAN, scaled
from triton_models.architectures.pggan import PGGAN
from triton_models.data import normal_slices
from triton_models.data.normal_slices import NormalSlices, Windows, phantom_normals, random_windows
from triton_models.evaluation.image_metrics import kmmd, region
from triton_models.training.recipe import Random, Recipe

BATCH_SIZE = 8
REAL_SHARE = 0.3  # of each batch, where there is real data
PENALTY = 10.0
ADVERSARIAL = 0.02  # beside an absolute error of about 0.05
VALIDATION_WINDOWS = 96

Batch = tuple[Tensor, Tensor]


def composed(network: nn.Module, image: Tensor, mask: Tensor) -> Tensor:
    """image, mask: (n, 1, size, size). What is masked filled in by the network."""
    filled = network(image * (1.0 - mask), mask)
    together: Tensor = image * (1.0 - mask) + filled * mask
    return together


def generator_loss(gan: InpaintGAN, batch: Batch, fake: Tensor) -> Tensor:
    """Mean absolute error inside of the masks, and not fooling the critic."""
    image, mask = batch
    score = gan.critic(fake, mask)
    fooling = functional.softplus(-score).mean() if isinstance(gan, DCGAN) else -score.mean()
    error = ((fake - image).abs() * mask).sum() / mask.sum()
    total: Tensor = error + ADVERSARIAL * fooling
    return total


def critic_loss(gan: InpaintGAN, batch: Batch, fake: Tensor, generator: torch.Generator) -> Tensor:
    """Cross-entropy for DCGAN, else the Wasserstein distance with the gradient penalty."""
    image, mask = batch
    real_score, fake_score = gan.critic(image, mask), gan.critic(fake, mask)
    if isinstance(gan, DCGAN):
        return functional.softplus(-real_score).mean() + functional.softplus(fake_score).mean()
    between = torch.rand((len(image), 1, 1, 1), generator=generator)
    penalty = gradient_penalty(gan.critic, image, fake, mask, between)
    total: Tensor = fake_score.mean() - real_score.mean() + PENALTY * penalty
    return total


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, mask: Tensor, between: Tensor) -> Tensor:
    """Mean squared deviation of the gradient's norm from 1, ``between`` (n, 1, 1, 1) real and fake."""
    mixed = torch.lerp(real, fake, between).requires_grad_()
    (slope,) = torch.autograd.grad(critic(mixed, mask).sum(), mixed, create_graph=True)
    penalty: Tensor = (slope.flatten(1).norm(dim=1) - 1.0).square().mean()
    return penalty


class InpaintRecipe(Recipe[Batch]):
    """Windows and masks; two optimisers."""

    steps = 1500
    learning_rate = 4e-4
    average_decay = 0.99
    validate_every = 100
    curve: ClassVar[str] = "error in masks, KMMD × 1000"

    _pools: list[tuple[NormalSlices, float]]
    _validation: Windows

    def prepare(self) -> None:
        phantoms = phantom_normals(normal_slices.TRAIN_SEEDS, self.settings.cache)
        self._pools = [(phantoms, 1.0)]
        if self.settings.data:
            self._pools = [(phantoms, 1.0 - REAL_SHARE), (_real(self.settings.data), REAL_SHARE)]
        held_out = phantom_normals(normal_slices.VALIDATION_SEEDS, self.settings.cache)
        self._validation, _ = random_windows(held_out, VALIDATION_WINDOWS, np.random.default_rng(0))

    def optimisers(self, network: nn.Module) -> Sequence[torch.optim.Optimizer]:
        gan = _gan(network)
        return [
            torch.optim.Adam(part.parameters(), lr=self.learning_rate, betas=(0.5, 0.9))
            for part in (gan.generator, gan.critic)
        ]

    def draw(self, random: Random) -> Batch:
        rng, _ = random
        shares = rng.multinomial(BATCH_SIZE, [share for _, share in self._pools])
        parts = [
            random_windows(pool, int(count), rng)[0]
            for (pool, _), count in zip(self._pools, shares, strict=True)
            if count
        ]
        image = scaled(torch.from_numpy(np.concatenate([part.hu for part in parts])).float())
        mask = torch.from_numpy(np.concatenate([part.mask for part in parts])).float()
        flip = torch.from_numpy(rng.random(len(image)) < 0.5)[:, None, None]
        image, mask = (torch.where(flip, one.flip(-1), one).unsqueeze(1) for one in (image, mask))
        return image, mask

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The generator's."""
        gan = _gan(network)
        return generator_loss(gan, batch, composed(gan, *batch))

    def step(self, network: nn.Module, optimisers: Sequence[torch.optim.Optimizer], random: Random) -> float:
        """The critic's step, then the generator's, of one batch: a CPU has no time for more."""
        gan = _gan(network)
        for_generator, for_critic = optimisers
        batch = self.draw(random)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.settings.bf16):
            fake = composed(gan, *batch)
        fake = fake.float()
        for_critic.zero_grad()
        critic_loss(gan, batch, fake.detach(), random[1]).backward()  # type: ignore[no-untyped-call]
        for_critic.step()
        loss = generator_loss(gan, batch, fake)
        for_generator.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(gan.generator.parameters(), self.gradient_norm)
        for_generator.step()
        if isinstance(gan, PGGAN):
            gan.grow(1.0 / (self.settings.steps or self.steps))
        return float(loss.detach())

    def validate(self, network: nn.Module) -> Mapping[str, float]:
        """Mean absolute error inside of the masks (of HU_HIGH - HU_LOW), KMMD of windows and of regions."""
        hu = torch.from_numpy(self._validation.hu).float().unsqueeze(1)
        image, mask = scaled(hu), torch.from_numpy(self._validation.mask).float().unsqueeze(1)
        with torch.inference_mode():
            parts = [slice(start, start + 16) for start in range(0, len(image), 16)]
            filled = torch.cat([composed(network, image[part], mask[part]) for part in parts])
        error = float(((filled - image).abs() * mask).sum() / mask.sum()) / 2.0
        real, fake = ((one[:, 0].numpy() + 1.0) / 2.0 for one in (image, filled))
        regions = [
            np.stack([region(plane, m) for plane, m in zip(planes, self._validation.mask, strict=True)])
            for planes in (real, fake)
        ]
        return {
            "absolute_error": error,
            "kmmd_x1000": 1000.0 * kmmd(real, fake),
            "kmmd_region_x1000": 1000.0 * kmmd(regions[0], regions[1]),
        }


def _gan(network: nn.Module) -> InpaintGAN:
    if not isinstance(network, InpaintGAN):
        raise TypeError(f"{type(network).__name__} has no generator and critic")
    return network


def _real(folders: Sequence[Path]) -> NormalSlices:
    """Normal slices of real series. Raises as ``load_real``, ValueError for none."""
    # SimpleITK's level set takes seconds; phantoms alone don't need it
    from triton_models.data.real import DISEASED, load_real  # noqa: PLC0415

    parts = []
    for one in load_real(list(folders)):
        normal = (one.lesions == 0).all(axis=(1, 2))
        square = one.series.hu.shape[1] == one.series.hu.shape[2] == 512
        if one.series.series_instance_uid not in DISEASED and square and normal.any():
            hu = np.maximum(one.series.hu[normal], -1024).astype(np.int16)
            parts.append(NormalSlices.with_lungs(hu, one.lungs[normal] == 1, one.series.series_instance_uid))
    if not parts:
        raise ValueError("no normal slices of 512 x 512 pixels in --data")
    return NormalSlices.concatenate(parts)
