"""Reasons: worded once, each code that the source can raise, and counted by metrics that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from node.metrics import Metrics
from node.reasons import WORDS, Kind, incomplete, of_delivery, of_job, unmatched, worded
from node.receive.admission import REJECTIONS
from node.receive.metrics import ReceiveMetrics
from node.receive.storage import STATUS_BY_QUARANTINE_CODE

ROOT = Path(__file__).parents[3]
#: codes that no job and no delivery ends or waits with
NOT_OF_JOBS = {
    "configuration",
    "instance_rejected",
    "job_not_found",
    "job_state",
    "listener_start_failed",
    "node_error",
    "nothing_known",
    "out_of_space",
    "pipeline_error",
    "pipeline_failed",
    "query_failed",
    "spool_error",
    "triton_start",
    "web_start_failed",
}


def codes_in(*folders: str) -> set[str]:
    """Of errors: what is given as ``code``, and the classes' own."""
    found = set()
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                value: ast.expr | None = None
                if isinstance(node, ast.keyword | ast.Assign):
                    name = node.arg if isinstance(node, ast.keyword) else ast.unparse(node.targets[0])
                    value = node.value if name == "code" else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    found.add(value.value)
    text = (ROOT / "pipelines/geometry.py").read_text(encoding="utf-8")
    return found | {f"geometry_{code}" for code in re.findall(r'_refused\(\s*"(\w+)"', text)}


def test_every_code_has_words() -> None:
    of_jobs = codes_in("pipelines", "node/run") | codes_in("node/deliver")
    known = WORDS[Kind.ENDED].keys() | WORDS[Kind.DELIVERY].keys()
    assert of_jobs - known <= NOT_OF_JOBS
    assert codes_in("node/deliver") - WORDS[Kind.DELIVERY].keys() - WORDS[Kind.ENDED].keys() <= NOT_OF_JOBS
    assert WORDS[Kind.REJECTED].keys() == REJECTIONS.keys()
    assert WORDS[Kind.QUARANTINED].keys() == STATUS_BY_QUARANTINE_CODE.keys() | {"file_missing"}


@pytest.mark.parametrize("kind", list(Kind))
def test_the_metric_exists_with_that_label(kind: Kind) -> None:
    metric = worded(kind, "some", "").metric
    found = re.fullmatch(r'(\w+)\{(?:outcome="\w+",)?(\w+)="some"\}', metric)
    assert found is not None, metric
    counters = [*vars(Metrics("1")).values(), *vars(ReceiveMetrics()).values()]
    names = {f"{one._name}_total": one._labelnames for one in counters if hasattr(one, "_labelnames")}
    assert found[2] in names[found[1]]


def test_a_sentence_is_words_and_what_is_particular() -> None:
    assert worded(Kind.ENDED, "step_timeout", "9 s.").sentence == "it took too long: 9 s"
    assert worded(Kind.ENDED, "step_timeout", None).sentence == "it took too long"
    assert worded(Kind.ENDED, "of_an_older_version", "it broke").sentence == "it broke"
    unknown = worded(Kind.ENDED, None, None)
    assert (unknown.code, unknown.sentence) == ("unknown", "the reason wasn't recorded")
    assert unmatched("no_routes", ()).sentence == "no route matches: no routes are configured"


def test_what_is_missing_is_told_by_each_who_says_so() -> None:
    record = {"missing_instances": 8, "instances": 16, "expected": 24, "expected_by": "c_find"}
    positions = {"missing_positions": {"count": 8}}
    assert [(why.code, why.sentence) for why in incomplete(record | positions)] == [
        ("c_find", "instances are missing: 16 of 24 came, by c find"),
        ("positions", "instances are missing: 8 slice positions are empty"),
    ]
    assert incomplete({"missing_instances": 0}) == ()


def test_jobs_and_deliveries_have_a_reason_only_when_something_is_wrong() -> None:
    done = {"state": "done", "reason_code": None, "reason": None}
    assert of_job(done) is None and of_job(done | {"state": "running"}) is None
    waits = of_job(done | {"state": "queued", "reason_code": "triton_unavailable"})
    assert waits is not None and waits.kind is Kind.WAITING
    says_why = of_job(done | {"state": "delivering", "reason_code": "no_lungs"})
    assert says_why is not None and says_why.kind is Kind.ENDED
    sent = {"state": "delivered", "reason_code": None, "last_error": None, "destination": "pacs"}
    assert of_delivery(sent) is None
    away = of_delivery(sent | {"state": "pending", "reason_code": "paused", "last_error": "by x"})
    assert away is not None and (away.where, away.sentence) == ("pacs", "the destination is paused: by x")
