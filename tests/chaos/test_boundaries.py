"""What is known of the step boundaries is true of the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from pipelines.chest_ct_pneumonia import PIPELINE
from tests.chaos.boundaries import ELSEWHERE, ONE_NODE, ROOT, STAGE, in_code, modules, shares, wanted

#: what calls ``failpoint`` with a name that it makes up
MADE_UP = {("node", "database"), ("node", "run.results"), ("pipelines", "pipeline")}


def calls(path: Path, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
            yield node


def test_every_step_of_a_job_s_workflows_is_one() -> None:
    """A step that DBOS knows ends at a boundary of its own: done, and not yet noted."""
    tree = ast.parse((ROOT / "node/run/engine.py").read_text(encoding="utf-8"))
    steps = {
        item.name
        for item in ast.walk(tree)
        if isinstance(item, ast.FunctionDef)
        and any(ast.unparse(one).startswith("DBOS.step(") for one in item.decorator_list)
    }
    assert steps == {"execute", "deliver"}
    assert {f"{step}.done" for step in steps} <= in_code()


def test_every_stage_of_a_pipeline_is_one() -> None:
    named = {"load", "lungs", "lesions", "candidates", "infection_type", "regions", "inpaint", "results"}
    assert {spec.name for spec in PIPELINE.models} <= named
    assert {f"{kind}.{stage}" for kind in STAGE for stage in named} <= wanted(shared=False)


def test_every_change_of_the_database_is_two() -> None:
    """In each module that changes it."""
    found = in_code()
    for module, path in modules():
        if any(calls(path, "write_transaction")):
            named = [name for name in found if name.startswith(f"{module}.") and ":commit" in name]
            assert len(named) >= 2, module


def test_names_are_literal_but_where_they_are_made_up() -> None:
    made_up = set()
    for module, path in modules():
        package = path.relative_to(ROOT).parts[0]
        if any(not isinstance(call.args[0], ast.Constant) for call in calls(path, "failpoint")):
            made_up.add((package, module))
    assert made_up == MADE_UP


def test_what_is_left_out_exists_and_every_other_is_some_setup_s() -> None:
    found = in_code()
    for prefix in (*ELSEWHERE, *ONE_NODE):
        assert any(name.startswith(prefix) for name in found), f"{prefix} is no boundary any more"
    for seed in (1, 2):
        shared, alone = shares(seed)[True], shares(seed)[False]
        assert shared | alone == wanted(shared=True) | wanted(shared=False)
        assert not shared & alone
        assert shared <= wanted(shared=True) and alone <= wanted(shared=False)
