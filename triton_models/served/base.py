"""The graph that is served around a network: raw input in, answers out, nothing left for the client to do.

Windowing, resizing, sigmoid and thresholds are part of the graph (and so of its hash).
"""

from __future__ import annotations

from torch import nn

from triton_models.registry import ModelEntry, named


class Served(nn.Module):
    """A network with what is around it.

    ``forward`` takes the entry's inputs in their order, batch axis first, and returns its outputs: a tensor,
    or a tuple of several.
    """

    def __init__(self, network: nn.Module, entry: ModelEntry) -> None:
        super().__init__()
        self.network = network
        self.size = entry.network_size
        self.sizes = entry.sizes


def build_served(entry: ModelEntry, network: nn.Module) -> Served:
    """The served graph of a registry entry around its (trained) network."""
    built: Served = named("triton_models.served", entry.served)(network, entry)
    return built
