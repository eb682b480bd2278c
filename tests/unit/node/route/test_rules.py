"""The rules' language: semantics of every operator, missing facts, errors, explanations."""

from __future__ import annotations

import time
from typing import Any

import pytest

from node.errors import ConfigError
from node.route.facts import FACTS, FactValue, SeriesFacts
from node.route.rules import Explanation, parse_rule


def facts(**values: FactValue | None) -> SeriesFacts:
    return SeriesFacts("1.2.3", dict.fromkeys(FACTS) | values)


CT = facts(
    modality="CT",
    image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
    body_part_examined="CHEST",
    series_description="Thorax 5.0 B40f",
    slice_thickness_mm=5.0,
    instance_count=60,
    contrast_agent=False,
)


def explain(rule: Any, of: SeriesFacts = CT) -> Explanation:
    return parse_rule(rule, "when").evaluate(of)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"fact": "modality", "equals": "ct"}, True),
        ({"fact": "modality", "equals": "MR"}, False),
        ({"fact": "instance_count", "equals": 60}, True),
        ({"fact": "slice_thickness_mm", "equals": 5}, True),
        ({"fact": "contrast_agent", "equals": False}, True),
        ({"fact": "image_type", "equals": "AXIAL"}, False),
        ({"fact": "body_part_examined", "in": ["LUNG", "chest"]}, True),
        ({"fact": "image_type", "contains": "axial"}, True),
        ({"fact": "image_type", "contains": "AXI"}, False),
        ({"fact": "series_description", "contains": "thor"}, True),
        ({"fact": "series_description", "matches": "thorax*"}, True),
        ({"fact": "series_description", "matches": "thorax"}, False),
        ({"fact": "series_description", "matches": ["*head*", "*b?0f"]}, True),
        ({"fact": "image_type", "matches": "ax*"}, True),
        ({"fact": "slice_thickness_mm", "at_least": 5}, True),
        ({"fact": "slice_thickness_mm", "at_most": 4.9}, False),
        ({"fact": "protocol_name", "exists": False}, True),
        ({"fact": "modality", "exists": True}, True),
        ({"all": [{"fact": "modality", "equals": "CT"}, {"fact": "modality", "equals": "MR"}]}, False),
        ({"any": [{"fact": "modality", "equals": "CT"}, {"fact": "modality", "equals": "MR"}]}, True),
        ({"not": {"fact": "modality", "equals": "MR"}}, True),
    ],
)
def test_operators(rule: dict[str, Any], expected: bool) -> None:
    assert explain(rule).result is expected


@pytest.mark.parametrize(
    "comparison",
    [{"equals": "x"}, {"in": ["x"]}, {"contains": "x"}, {"matches": "*"}, {"exists": True}],
)
def test_a_missing_fact_makes_a_comparison_false_and_says_so(comparison: dict[str, Any]) -> None:
    rule = {"fact": "protocol_name", **comparison}
    explanation = explain(rule)
    assert not explanation.result
    assert "protocol_name is missing" in explanation.why_not()
    assert explain({"not": rule}).result


def test_why_not_is_one_short_sentence() -> None:
    rule = {
        "all": [
            {"fact": "modality", "equals": "CT"},
            {
                "any": [
                    {"fact": "body_part_examined", "in": ["HEAD", "NECK"]},
                    {
                        "all": [
                            {"fact": "body_part_examined", "exists": False},
                            {"fact": "series_description", "matches": "*head*"},
                        ]
                    },
                ]
            },
            {"fact": "instance_count", "at_least": 100},
        ]
    }
    explanation = explain(rule)
    assert explanation.why_not() == "body_part_examined is CHEST, wanted one of HEAD, NECK"
    assert explanation.failing_fact() == "body_part_examined"


def test_alternatives_for_one_fact_are_said_together() -> None:
    rule = {"any": [{"fact": "modality", "equals": "MR"}, {"fact": "modality", "equals": "PT"}]}
    assert explain(rule).why_not() == "modality is CT, wanted MR or PT"


def test_why_not_of_an_exclusion() -> None:
    rule = {"not": {"fact": "image_type", "contains": "AXIAL"}}
    assert explain(rule).why_not() == "image_type is ORIGINAL\\PRIMARY\\AXIAL, which is excluded"
    assert explain(rule).failing_fact() == "image_type"


def test_free_text_is_shown_only_on_request() -> None:
    explanation = explain({"fact": "series_description", "matches": "*head*"})
    assert explanation.why_not() == "series_description is something else, wanted like *head*"
    assert "Thorax" not in str(explanation.to_json())
    assert "Thorax 5.0 B40f" in explanation.why_not(show_free_text=True)
    assert "Thorax 5.0 B40f" in str(explanation.to_json(show_free_text=True))


def test_the_tree_says_the_result_of_every_part() -> None:
    tree = explain({"all": [{"fact": "modality", "equals": "CT"}, {"not": {"fact": "rows", "exists": True}}]})
    assert tree.to_json() == {
        "all": [
            {"fact": "modality", "actual": "CT", "wanted": "CT", "result": True},
            {
                "not": {"fact": "rows", "actual": "missing", "wanted": "any value", "result": False},
                "result": True,
            },
        ],
        "result": True,
    }


def test_no_pattern_runs_long() -> None:
    started = time.perf_counter()
    explain({"fact": "series_description", "matches": "*a" * 60 + "b"}, facts(series_description="a" * 5000))
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    ("rule", "mentions"),
    [
        ([], ["when: a list", "allowed: a mapping"]),
        ({}, ["when", "all, any, not"]),
        ({"all": []}, ["when.all", "one or more"]),
        ({"all": [{"fact": "modality", "equals": "CT"}], "any": []}, ["all, any", "exactly one"]),
        ({"or": []}, ["or", "all, any, not"]),
        ({"fact": "modalty", "equals": "CT"}, ["when.fact", "'modalty'", "modality"]),
        ({"fact": "modality"}, ["no operator", "equals"]),
        ({"fact": "modality", "equals": "CT", "in": ["CT"]}, ["equals, in", "exactly one"]),
        ({"fact": "modality", "regex": ".*"}, ["regex", "matches"]),
        ({"fact": "modality", "equals": 3}, ["when.equals", "3", "a text"]),
        ({"fact": "instance_count", "equals": "60"}, ["a number"]),
        ({"fact": "instance_count", "matches": "6*"}, ["matches", "integer", "at_least"]),
        ({"fact": "modality", "at_least": 3}, ["at_least", "text"]),
        ({"fact": "rows", "at_least": True}, ["a number"]),
        ({"fact": "rows", "at_least": float("nan")}, ["a number"]),
        ({"fact": "modality", "in": "CT"}, ["when.in", "a list"]),
        ({"fact": "modality", "in": ["CT", 5]}, ["when.in[1]", "5"]),
        ({"fact": "modality", "exists": "yes"}, ["true or false"]),
        ({"fact": "modality", "matches": []}, ["pattern"]),
        ({"all": [{"any": [{"not": {"fact": "x", "equals": 1}}]}]}, ["when.all[0].any[0].not.fact"]),
    ],
)
def test_errors_name_the_position_and_what_is_allowed(rule: Any, mentions: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_rule(rule, "when")
    for text in mentions:
        assert text in str(raised.value)
