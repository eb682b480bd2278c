"""From a registry entry to its (untrained) network."""

from __future__ import annotations

from torch import nn

from triton_models.registry import MAIN, ModelEntry, named


def build_network(
    entry: ModelEntry, variant: str = MAIN, classes: tuple[str, ...] | None = None
) -> nn.Module:
    """The untrained network of a registry entry.

    variant: one of the entry's.  classes: None for the entry's own; a network that was trained on data with
    other classes has those. Raises KeyError that lists the variants.
    """
    if variant not in entry.variants:
        raise KeyError(f"{entry.name} has no variant {variant!r}; it has {', '.join(entry.variants)}")
    network = named("triton_models.architectures", entry.variants[variant])
    built: nn.Module = network(len(classes or entry.classes), entry.network_size)
    return built
