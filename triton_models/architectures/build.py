"""From a registry entry to its (untrained) network."""

from __future__ import annotations

import importlib

from torch import nn

from triton_models.registry import MAIN, ModelEntry


def build_network(
    entry: ModelEntry, variant: str = MAIN, classes: tuple[str, ...] | None = None
) -> nn.Module:
    """The untrained network of a registry entry.

    variant: one of the entry's.  classes: None for the entry's own; a network that was trained on data with
    other classes has those. Raises KeyError that lists the variants.
    """
    if variant not in entry.variants:
        raise KeyError(f"{entry.name} has no variant {variant!r}; it has {', '.join(entry.variants)}")
    module, name = entry.variants[variant].split(".")
    network = getattr(importlib.import_module(f"triton_models.architectures.{module}"), name)
    built: nn.Module = network(len(classes or entry.classes), entry.network_size)
    return built
