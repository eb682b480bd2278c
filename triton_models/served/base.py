"""The graph that is served around a network: raw input in, answers out, nothing left for the client to do.

Windowing, resizing, sigmoid and thresholds are part of the graph (and so of its hash).
"""

from __future__ import annotations

import importlib

from torch import nn

from triton_models.registry import ModelEntry


class Served(nn.Module):
    """A network with what is around it.

    ``forward`` takes the entry's inputs in their order, batch axis first, and returns its outputs: a tensor,
    or a tuple of several.
    """

    def __init__(self, network: nn.Module, entry: ModelEntry) -> None:
        super().__init__()
        self.network = network
        self.size = entry.network_size


def build_served(entry: ModelEntry, network: nn.Module) -> Served:
    """The served graph of a registry entry around its (trained) network."""
    module, name = entry.served.split(".")
    served = getattr(importlib.import_module(f"triton_models.served.{module}"), name)
    built: Served = served(network, entry)
    return built
