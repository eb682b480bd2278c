"""The routes that the node ships with, for configurations that have none of their own.

In: the destinations to send to. Out: ``RouteConfig`` objects from ``default_routes.yaml``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

import yaml

from node.config import RouteConfig


def default_routes(destinations: Sequence[str]) -> tuple[RouteConfig, ...]:
    """The shipped routes, sending to these destinations (names from the configuration) instead of its own."""
    raw = yaml.safe_load(files("node.route").joinpath("default_routes.yaml").read_text(encoding="utf-8"))
    return tuple(RouteConfig.model_validate({**route, "destinations": tuple(destinations)}) for route in raw)
