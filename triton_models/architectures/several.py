"""Several networks of one architecture, trained from different seeds, that answer as one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class MeanOfNetworks(nn.Module):
    """The mean of what ``networks`` answer, each a tensor of the same shape (logits)."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, *inputs: Tensor) -> Tensor:
        first, *others = [network(*inputs) for network in self.networks]
        mean: Tensor = sum(others, first) / len(self.networks)
        return mean
