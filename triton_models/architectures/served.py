"""The graph that is served: Hounsfield units in, labels out, with nothing left for the client to do.

In: HU int16 (n, rows, columns).  Out: uint8 at the same rows and columns. Windowing, resizing to the
network's resolution and back, sigmoid and thresholds are part of the graph (and so of its hash).
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor, nn
from torch.nn import functional

from triton_models.registry import HU_RANGE, ModelEntry

#: (low, high) HU mapped to 0..1: lung window, and soft tissue to tell consolidation from contrast and bone
WINDOWS = ((-1024.0, -200.0), (-300.0, 300.0))
THRESHOLD = 0.5


def build_network(entry: ModelEntry) -> nn.Module:
    """The untrained network of a registry entry."""
    module, name = entry.architecture.split(".")
    network = getattr(importlib.import_module(f"triton_models.architectures.{module}"), name)
    built: nn.Module = network(len(WINDOWS), len(entry.channels), entry.network_size)
    return built


def windowed(hu: Tensor) -> Tensor:
    """(n, 1, rows, columns) HU as float -> (n, len(WINDOWS), rows, columns) in 0..1."""
    return torch.cat([((hu - low) / (high - low)).clamp(0.0, 1.0) for low, high in WINDOWS], dim=1)


class ServedModel(nn.Module):
    """Resizing and windowing around a network; subclasses turn probabilities into their outputs."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network = network
        self.size = size

    def probabilities(self, hu: Tensor) -> Tensor:
        """(n, rows, columns) int16 -> (n, channels, rows, columns) float in 0..1."""
        rows, columns = hu.shape[1], hu.shape[2]
        clipped = hu.to(torch.float32).clamp(float(HU_RANGE[0]), float(HU_RANGE[1])).unsqueeze(1)
        small = functional.interpolate(clipped, size=(self.size, self.size), mode="bilinear")
        logits = self.network(windowed(small))
        return torch.sigmoid(functional.interpolate(logits, size=(rows, columns), mode="bilinear"))


class ServedLungs(ServedModel):
    """LUNGS: 1 where the probability of lung is at least THRESHOLD."""

    def forward(self, hu: Tensor) -> Tensor:
        return (self.probabilities(hu)[:, 0] >= THRESHOLD).to(torch.uint8)


class ServedLesions(ServedModel):
    """LABELS: the likelier of ground glass (1) and consolidation (2) where it reaches THRESHOLD, else 0; a
    tie is consolidation.  PROBABILITIES: round(255 p), channels ground glass, consolidation."""

    def forward(self, hu: Tensor) -> tuple[Tensor, Tensor]:
        probability = self.probabilities(hu)
        ground, dense = probability[:, 0], probability[:, 1]
        consolidation = (dense >= THRESHOLD) & (dense >= ground)
        ground_glass = (ground >= THRESHOLD) & (dense < ground)
        labels = consolidation.to(torch.uint8) * 2 + ground_glass.to(torch.uint8)
        return labels, torch.round(probability * 255.0).to(torch.uint8)


def build_served(entry: ModelEntry, network: nn.Module) -> ServedModel:
    """The served graph of a registry entry around its (trained) network."""
    kinds: dict[str, type[ServedModel]] = {"lungs": ServedLungs, "lesions": ServedLesions}
    return kinds[entry.name](network, entry.network_size)
