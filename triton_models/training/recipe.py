"""What makes a model's training its own: its networks, its batches, its loss and its validation.

The loop (``training.loop``) owns the rest: progress, schedule, moving average, checkpoints, curve, resuming.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from triton_models.architectures.build import build_network
from triton_models.registry import ModelEntry, named
from triton_models.training.settings import TrainSettings

Batch = TypeVar("Batch")
#: what a step may draw from: numpy's and torch's generators, both saved in the checkpoint
Random = tuple[np.random.Generator, torch.Generator]


class Recipe(ABC, Generic[Batch]):
    """Supervised training with one optimiser; what needs more (a GAN) overrides ``optimisers`` and ``step``.

    steps, learning_rate, weight_decay, average_decay (of the moving average that is validated and exported),
    validate_every (steps), networks (that are trained one after the other and averaged): defaults that a
    recipe changes.
    """

    steps: int = 1500
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    average_decay: float = 0.99
    validate_every: int = 100
    gradient_norm: float = 5.0
    networks: int = 1
    #: whether the steps depend on the part that is left out; if not, cross-validation repeats ``settle`` only
    sees_fold: ClassVar[bool] = True
    #: what of the validation's figures the curve shows, and its axis
    curve: ClassVar[str] = "Dice"

    def __init__(self, entry: ModelEntry, settings: TrainSettings) -> None:
        self.entry = entry
        self.settings = settings

    @property
    def classes(self) -> tuple[str, ...]:
        """What the network's outputs mean; known after ``prepare``. Stored in the checkpoint."""
        return self.entry.classes

    @abstractmethod
    def prepare(self) -> None:
        """Read or make the data; called once, before anything else. Raises FileNotFoundError, ValueError for
        data that can't be used."""

    def network(self) -> nn.Module:
        """All that is trained, untrained."""
        return build_network(self.entry, self.settings.variant, self.classes)

    def optimisers(self, network: nn.Module) -> Sequence[torch.optim.Optimizer]:
        """Their ``lr`` is the peak of the schedule."""
        return [
            torch.optim.AdamW(network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        ]

    @abstractmethod
    def draw(self, random: Random) -> Batch:
        """The next batch, augmented."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: Batch) -> Tensor: ...

    def step(self, network: nn.Module, optimisers: Sequence[torch.optim.Optimizer], random: Random) -> float:
        """One optimiser step; returns the loss."""
        loss = self.loss(network, self.draw(random))
        (optimiser,) = optimisers
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), self.gradient_norm)
        optimiser.step()
        return float(loss.detach())

    def settle(self, network: nn.Module) -> None:
        """Set what isn't trained by steps but computed from the training data, in the averaged network."""

    @abstractmethod
    def validate(self, network: nn.Module) -> Mapping[str, float]:
        """Figures of the averaged network on data that training never sees."""


def recipe_for(entry: ModelEntry, settings: TrainSettings) -> Recipe[object]:
    """The recipe of a registry entry."""
    found: Callable[[ModelEntry, TrainSettings], Recipe[object]] = named(
        "triton_models.training.recipes", entry.recipe
    )
    return found(entry, settings)
