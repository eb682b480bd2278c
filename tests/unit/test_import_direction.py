"""The layout's rule: who may import whom (docs/architecture.md), read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: package or module prefix -> prefixes that it must never import
FORBIDDEN = {
    "pipelines": ("node", "triton_models"),
    "pipelines.results": ("pipelines.triton", "tritonclient"),
    "triton_models": ("node",),
    "node.receive": ("node.route", "node.run", "node.deliver", "node.web", "pipelines"),
    "node.route": ("node.run", "node.deliver", "node.web", "pipelines"),
    "node.deliver": ("node.receive", "node.route", "node.run", "node.web", "pipelines"),
    "node.run": ("node.route", "node.web"),
}
#: the only module that may know the workflow engine
DBOS_HOME = "node.run.engine"


def modules() -> Iterator[tuple[str, Path]]:
    for package in ("node", "pipelines", "triton_models"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for item in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(item, ast.Import):
            names.update(alias.name for alias in item.names)
        elif isinstance(item, ast.ImportFrom):
            assert item.level == 0, f"{path}: relative imports hide the direction"
            names.add(item.module or "")
            names.update(f"{item.module}.{alias.name}" for alias in item.names)
    return names


def below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


@pytest.mark.parametrize(("module", "path"), sorted(modules()))
def test_imports_follow_the_data_path(module: str, path: Path) -> None:
    names = imported(path)
    for prefix, forbidden in FORBIDDEN.items():
        if below(module, prefix):
            wrong = {name for name in names for other in forbidden if below(name, other)}
            assert not wrong, f"{module} imports {sorted(wrong)}"


@pytest.mark.parametrize(("module", "path"), sorted(modules()))
def test_only_one_module_knows_dbos(module: str, path: Path) -> None:
    if module != DBOS_HOME:
        assert not any(below(name, "dbos") for name in imported(path))


def test_the_registries_need_no_torch() -> None:
    for path in (ROOT / "triton_models" / "registry.py", ROOT / "pipelines" / "registry.py"):
        assert not any(below(name, "torch") for name in imported(path))
