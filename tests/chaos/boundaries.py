"""Every named step boundary of the code (``pipelines.failpoints``), read from the source.

A new step needs no entry: it is found, and a long run that doesn't reach it says so. ``ELSEWHERE`` names what
isn't reached here, with the reason; ``test_boundaries.py`` sees to it that these exist.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: of a pipeline's stage: the process that works, and the node that hears of it
STAGE = ("stage", "heard")
#: stages named after a model that a variable holds
MODEL_STAGES = {"model.spec.name": ("pneumonia_class", "fusion")}

_OPS = "done by the process of a command or a web request, not by a job"
_ASKED = "a peer asks us for Storage Commitment: tests/integration/test_commitment.py kills the receiver"
_RETENTION = "deletes what is counted here at the end: tests/integration/test_retention.py"
_OTHERS = "needs several nodes"

#: name, or its beginning -> why no run reaches it
ELSEWHERE: Mapping[str, str] = {
    "deliver.pauses.": _OPS,
    "database._bring_up_to_date:": "once, before there is anything to lose: tests/unit/node/test_database.py",
    "receive.commitment_ledger.": _ASKED,
    "receive.inquiry.": "no query AE is configured: tests/integration/test_completeness.py",
    "receive.refusals.": "of who is turned away: tests/unit/node/receive/test_refusals.py",
    "receive.reconcile._mark_missing:": "only a disk that loses files: tests/unit/node/receive/test_spool.py",
    "retention.": _RETENTION,
    "run.shadowing.": "no candidate is configured: tests/integration/test_shadow.py",
    "run.operations.begin_again:": "versions, broken workflows: tests/unit/node/run/test_engine.py",
    "run.operations.cancel_job:": _OPS,
    "run.operations.AskedWatch._tell_cancelled:": "nobody cancels: tests/unit/node/run/test_operations.py",
    "run.operations.retry_job:": _OPS,
    "stage.fusion": "the model isn't shipped",
    "heard.fusion": "the model isn't shipped",
    "stage.lesion_probabilities": "no destination wants a FRACTIONAL segmentation",
    "heard.lesion_probabilities": "no destination wants a FRACTIONAL segmentation",
    "web.app.": "the health page's",
}
#: with one node on SQLite
ONE_NODE: Mapping[str, str] = {
    "run.membership.": _OTHERS,
    "hand_on.": _OTHERS,
}


@dataclass
class _Finder(ast.NodeVisitor):
    module: str
    found: set[str] = field(default_factory=set)
    scope: list[str] = field(default_factory=list)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._within(node, node.name)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._within(node, node.name, "<locals>")

    def visit_Call(self, node: ast.Call) -> None:
        called = ast.unparse(node.func)
        argument = node.args[0] if node.args else None
        if called == "failpoint" and isinstance(argument, ast.Constant):
            self.found.add(str(argument.value))
        elif called == "stages" and argument is not None:
            text = ast.unparse(argument)
            names = [str(argument.value)] if isinstance(argument, ast.Constant) else MODEL_STAGES[text]
            self.found.update(f"{kind}.{name}" for name in names for kind in STAGE)
        elif called == "write_transaction":
            function = ".".join(self.scope).removesuffix(".<locals>")
            self.found.update(f"{self.module}.{function}:{when}" for when in ("commit", "committed"))
        self.generic_visit(node)

    def _within(self, node: ast.AST, *names: str) -> None:
        self.scope += names
        self.generic_visit(node)
        del self.scope[-len(names) :]


def modules() -> Iterator[tuple[str, Path]]:
    """Below the package: database, run.steps …"""
    for package in ("node", "pipelines"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT / package).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), path


@cache
def in_code() -> frozenset[str]:
    """All names, as they come when they are reached."""
    found: set[str] = set()
    for module, path in modules():
        finder = _Finder(module)
        finder.visit(ast.parse(path.read_text(encoding="utf-8")))
        found |= finder.found
    return frozenset(found)


def wanted(*, shared: bool) -> set[str]:
    """Those that a run can reach; ``shared``: with several nodes on one database."""
    left_out = (*ELSEWHERE, *(() if shared else ONE_NODE))
    return {name for name in in_code() if not name.startswith(left_out)}


def shares(seed: int) -> dict[bool, set[str]]:
    """Each boundary for one setup, shared or not: half of what both can reach for each."""
    both = sorted(wanted(shared=True) & wanted(shared=False))
    random.Random(seed).shuffle(both)  # noqa: S311
    half = set(both[: len(both) // 2])
    return {False: wanted(shared=False) - set(both) | half, True: wanted(shared=True) - half}
