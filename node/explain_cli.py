"""``pacsnode explain``: prints what ``route.explain`` and ``node.explain`` find."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from node import explain
from node.app import routes_of
from node.config import NodeConfig, load_config
from node.errors import NodeError
from node.route.defaults import default_routes
from node.route.explain import PathExplanation, explain_text
from node.route.explain import explain as explain_routes
from node.route.router import compile_routes


def explain_path(path: Path, config: Path | None, *, as_json: bool) -> None:
    """Which routes match; with a configuration also what the node knows of it, if there is a node."""
    loaded = load_config(config) if config is not None else None
    routes = routes_of(loaded) if loaded is not None else compile_routes(default_routes(["pacs"]))
    explanation = explain_routes(path, routes)
    known = _known_of(explanation, loaded) if loaded is not None else explain.Known()
    if as_json:
        _print_json(explanation.to_json() | {"node": known.to_json() if known else None})
        return
    print(explain_text(explanation), end="")
    if known:
        print(f"\nwhat became of it here:\n{explain.known_text(known)}", end="")


def explain_known(what: str, config: NodeConfig, *, as_json: bool) -> None:
    """What became of something; of nothing in particular: what was turned away. Raises NodeError."""
    engine = explain.open_existing(config)
    if engine is None:
        raise explain.NothingKnown(f"data_dir: {config.data_dir}: no node has run there")
    known = explain.find(engine, config.data_dir, what) if what else explain.all_refused(engine)
    if as_json:
        _print_json(known.to_json())
    else:
        print(explain.known_text(known), end="")


def _known_of(explanation: PathExplanation, config: NodeConfig) -> explain.Known:
    try:
        engine = explain.open_existing(config)
        if engine is None:
            return explain.Known()
        uids = [decision.facts.series_instance_uid for decision in explanation.series]
        return explain.find_files(engine, config.data_dir, uids, explanation.files)
    except NodeError as error:  # what the routes say is worth having without
        print(f"what became of it here can't be told: {error}", file=sys.stderr)
        return explain.Known()


def _print_json(data: dict[str, Any]) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False))
