"""The rules' language: parsed once into frozen objects, evaluated into an explanation.

In: the ``when`` mapping of a route and a series' facts. Out: whether it matches, and why (not).

    when:
      all:                                     every one of the list
        - {fact: modality, equals: CT}
        - any: [...]                           at least one of the list
        - not: {fact: image_type, contains: LOCALIZER}

A comparison names one fact of ``node/route/facts.py`` and has exactly one operator:

    equals    text, number or true/false; text without regard to case. A list fact: it has just that value
    in        list of such values: equals one of them
    contains  text: a text fact has it as a part, a list fact as a value; without regard to case
    matches   a pattern or a list of patterns, any of which fits the whole text (a list fact: one value),
              with * for any run of characters and ? for one; without regard to case
    at_least, at_most   number, inclusive
    exists    true or false

A comparison with a missing fact is false, whatever the operator (except ``exists: false``), and says so.
``not`` of it is therefore true: write ``{fact: x, exists: true}`` beside it where that is not meant.
There is no code in rules: no expressions, no regular expressions, nothing that can run long.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from node.errors import ConfigError
from node.route.facts import FACTS, Fact, FactValue, SeriesFacts


@dataclass(frozen=True)
class Explanation:
    """One node of the tree that says why a rule is true or false.

    ``kind``: all, any, not, or compare; the rest is set for compare only. ``free_text``: ``actual`` may hold
    what somebody typed about a patient, so it is shown only where ``show_free_text`` asks for it.
    """

    kind: str
    result: bool
    children: tuple[Explanation, ...] = ()
    fact: str = ""
    actual: str = ""
    wanted: str = ""
    free_text: bool = False

    def why_not(self, *, show_free_text: bool = False) -> str:
        """The shortest sentence that says why this is false; "" if it is true.

        Of an ``all``, the first part that fails; of an ``any``, the part that came nearest.
        """
        if self.result:
            return ""
        if self.kind == "compare":
            return f"{self._is(show_free_text)}, wanted {self.wanted}"
        if self.kind == "not":
            return f"{self.children[0].why_true(show_free_text=show_free_text)}, which is excluded"
        if self.kind == "any" and all(child.kind == "compare" for child in self.children):
            wanted: dict[str, list[str]] = {}  # alternatives for the same fact are said together
            for child in self.children:
                wanted.setdefault(child._is(show_free_text), []).append(child.wanted)
            return "; ".join(f"{fact}, wanted {' or '.join(values)}" for fact, values in wanted.items())
        return self._nearest().why_not(show_free_text=show_free_text)

    def why_true(self, *, show_free_text: bool = False) -> str:
        """A short sentence that says why this is true."""
        parts = dict.fromkeys(leaf._is(show_free_text) for leaf in self._decisive())
        return " and ".join(parts)

    def failing_fact(self) -> str:
        """The fact in the sentence of ``why_not``: a bounded label for metrics."""
        if self.kind == "compare":
            return self.fact
        if self.kind == "not":
            return self.children[0].failing_fact()
        return self._nearest().failing_fact()

    def satisfied_share(self) -> float:
        """How near this came to being true, 0 to 1."""
        if self.kind in ("all", "any") and not self.result:
            shares = [child.satisfied_share() for child in self.children]
            return sum(shares) / len(shares) if self.kind == "all" else max(shares)
        return 1.0 if self.result else 0.0

    def to_json(self, *, show_free_text: bool = False) -> dict[str, Any]:
        """The tree as plain data."""
        if self.kind == "compare":
            actual = self._actual(show_free_text)
            return {"fact": self.fact, "actual": actual, "wanted": self.wanted, "result": self.result}
        children = [child.to_json(show_free_text=show_free_text) for child in self.children]
        return {self.kind: children[0] if self.kind == "not" else children, "result": self.result}

    def _actual(self, show_free_text: bool) -> str:
        if show_free_text or not self.free_text:
            return self.actual
        return "as wanted" if self.result else "something else"

    def _is(self, show_free_text: bool) -> str:
        return f"{self.fact} is {self._actual(show_free_text)}"

    def _nearest(self) -> Explanation:
        if self.kind == "any":
            return max(self.children, key=lambda child: child.satisfied_share())
        return next((child for child in self.children if child.result == self.result), self.children[0])

    def _decisive(self) -> Iterator[Explanation]:
        """The comparisons that made this what it is, true or false."""
        if self.kind == "compare":
            yield self
            return
        decisive = [child for child in self.children if self.kind == "not" or child.result == self.result]
        # one is enough to make an ``any`` true or an ``all`` false
        if (self.kind == "any") == self.result:
            decisive = decisive[:1]
        for child in decisive:
            yield from child._decisive()


@dataclass(frozen=True)
class All:
    children: tuple[Rule, ...]

    def evaluate(self, facts: SeriesFacts) -> Explanation:
        explained = tuple(child.evaluate(facts) for child in self.children)
        return Explanation("all", all(child.result for child in explained), explained)


@dataclass(frozen=True)
class AnyOf:
    children: tuple[Rule, ...]

    def evaluate(self, facts: SeriesFacts) -> Explanation:
        explained = tuple(child.evaluate(facts) for child in self.children)
        return Explanation("any", any(child.result for child in explained), explained)


@dataclass(frozen=True)
class Not:
    child: Rule

    def evaluate(self, facts: SeriesFacts) -> Explanation:
        explained = self.child.evaluate(facts)
        return Explanation("not", not explained.result, (explained,))


@dataclass(frozen=True)
class Compare:
    """``wanted`` is a value for equals, contains, at_least, at_most, exists; a tuple for in and matches."""

    fact: str
    operator: str
    wanted: Any

    def evaluate(self, facts: SeriesFacts) -> Explanation:
        actual = facts[self.fact]
        if self.operator == "exists":
            result = (actual is not None) == self.wanted
        else:
            result = actual is not None and _OPERATORS[self.operator].test(actual, self.wanted)
        return Explanation(
            "compare",
            result,
            fact=self.fact,
            actual=_show(actual),
            wanted=_OPERATORS[self.operator].describe(self.wanted),
            free_text=FACTS[self.fact].free_text and actual is not None,
        )


Rule = All | AnyOf | Not | Compare


@dataclass(frozen=True)
class _Operator:
    fact_types: tuple[str, ...]
    test: Callable[[FactValue, Any], bool]
    describe: Callable[[Any], str]


def _equal(actual: FactValue, wanted: Any) -> bool:
    if isinstance(actual, tuple):
        return len(actual) == 1 and _equal(actual[0], wanted)
    if isinstance(actual, str):
        return isinstance(wanted, str) and actual.casefold() == wanted.casefold()
    return bool(actual == wanted)


def _contains(actual: FactValue, wanted: str) -> bool:
    if isinstance(actual, tuple):
        return any(value.casefold() == wanted.casefold() for value in actual)
    return wanted.casefold() in str(actual).casefold()


def _matches(actual: FactValue, patterns: tuple[str, ...]) -> bool:
    texts = actual if isinstance(actual, tuple) else (str(actual),)
    # fnmatch's own translation has no backtracking beyond one * at a time, so no pattern runs long.
    return any(fnmatchcase(text.casefold(), pattern.casefold()) for pattern in patterns for text in texts)


def _show(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "\\".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _one_of(values: tuple[Any, ...]) -> str:
    shown = ", ".join(_show(value) for value in values)
    return shown if len(values) == 1 else f"one of {shown}"


_TEXT = ("text", "list")
_NUMBER = ("number", "integer")
_OPERATORS: Mapping[str, _Operator] = {
    "equals": _Operator((*_TEXT, *_NUMBER, "boolean"), _equal, _show),
    "in": _Operator(
        (*_TEXT, *_NUMBER), lambda actual, wanted: any(_equal(actual, one) for one in wanted), _one_of
    ),
    "contains": _Operator(_TEXT, _contains, lambda w: f"one with {_show(w)}"),
    "matches": _Operator(_TEXT, _matches, lambda w: "like " + " or ".join(w)),
    "at_least": _Operator(_NUMBER, lambda actual, wanted: float(actual) >= wanted, lambda w: f"at least {w}"),  # type: ignore[arg-type]
    "at_most": _Operator(_NUMBER, lambda actual, wanted: float(actual) <= wanted, lambda w: f"at most {w}"),  # type: ignore[arg-type]
    "exists": _Operator(
        (*_TEXT, *_NUMBER, "boolean"), lambda _a, _w: True, lambda w: "any value" if w else "none"
    ),
}


def parse_rule(raw: Any, where: str) -> Rule:
    """Parse the ``when`` of a route; ``where`` names it in errors, e.g. ``routes[chest].when``.

    Raises ConfigError naming the position, what was found and what is allowed.
    """
    if not isinstance(raw, dict) or not raw:
        raise ConfigError(
            f"{where}: {_kind(raw)} is not a rule; allowed: a mapping with all, any, not or fact"
        )
    if "fact" in raw:
        return _parse_compare(raw, where)
    if len(raw) != 1 or not set(raw) <= {"all", "any", "not"}:
        raise ConfigError(
            f"{where}: has {_names(raw)}; allowed: exactly one of all, any, not, or a fact with one operator"
        )
    key, value = next(iter(raw.items()))
    if key == "not":
        return Not(parse_rule(value, f"{where}.not"))
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{where}.{key}: {_kind(value)}; allowed: a list of one or more rules")
    children = tuple(parse_rule(child, f"{where}.{key}[{i}]") for i, child in enumerate(value))
    return All(children) if key == "all" else AnyOf(children)


def _parse_compare(raw: dict[Any, Any], where: str) -> Compare:
    name = raw["fact"]
    fact = FACTS.get(name) if isinstance(name, str) else None
    if fact is None:
        raise ConfigError(f"{where}.fact: {name!r} is no fact; allowed: {', '.join(sorted(FACTS))}")
    operators = [key for key in raw if key != "fact"]
    if len(operators) != 1 or operators[0] not in _OPERATORS:
        allowed = ", ".join(op for op, spec in _OPERATORS.items() if fact.type in spec.fact_types)
        found = _names(operators) if operators else "no operator"
        raise ConfigError(f"{where}: {fact.name} has {found}; allowed: exactly one of {allowed}")
    operator = str(operators[0])
    if fact.type not in _OPERATORS[operator].fact_types:
        allowed = ", ".join(op for op, spec in _OPERATORS.items() if fact.type in spec.fact_types)
        raise ConfigError(f"{where}.{operator}: not for {fact.name}, a {fact.type}; allowed: {allowed}")
    return Compare(fact.name, operator, _parse_wanted(fact, operator, raw[operator], f"{where}.{operator}"))


def _parse_wanted(fact: Fact, operator: str, value: Any, where: str) -> Any:
    if operator == "exists":
        return _require(isinstance(value, bool), value, where, "true or false")
    if operator in ("at_least", "at_most"):
        return _require(_is_number(value), value, where, "a number")
    if operator == "contains":
        return _require(isinstance(value, str) and bool(value), value, where, "a text")
    if operator == "matches":
        patterns = [value] if isinstance(value, str) else value
        good = isinstance(patterns, list) and patterns and all(isinstance(p, str) and p for p in patterns)
        return tuple(_require(bool(good), patterns, where, "a pattern or a list of patterns, as texts"))
    if operator == "in":
        _require(isinstance(value, list) and bool(value), value, where, "a list of values")
        return tuple(_scalar(fact, one, f"{where}[{i}]") for i, one in enumerate(value))
    return _scalar(fact, value, where)


def _scalar(fact: Fact, value: Any, where: str) -> Any:
    if fact.type in _NUMBER:
        return _require(_is_number(value), value, where, f"a number, as {fact.name} is")
    if fact.type == "boolean":
        return _require(isinstance(value, bool), value, where, f"true or false, as {fact.name} is")
    return _require(isinstance(value, str), value, where, f"a text (in quotes), as {fact.name} is")


def _require(good: bool, value: Any, where: str, allowed: str) -> Any:
    if not good:
        raise ConfigError(f"{where}: {value!r} ({_kind(value)}); allowed: {allowed}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _names(keys: Any) -> str:
    return ", ".join(re.sub(r"[^\w.-]", "?", str(key))[:40] for key in keys) or "nothing"


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number")
