"""The shipped alerts for impatient tests: every duration is divided, and nothing else is touched.

In: ``deploy/prometheus/alerts.yml``.  Out: the same rules, their ``for``, range selectors and offsets by
``short``.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ALERTS = Path(__file__).parents[2] / "deploy/prometheus/alerts.yml"
#: six hours are fifteen seconds
DIVISOR = 1440
#: in a window there have to be several scrapes, one a second
SHORTEST_WINDOW_SECONDS = 5.0

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = r"(\d+)([smhd])"
#: a range selector, or an offset
_WINDOW = re.compile(rf"(\[|\boffset\s+){_DURATION}\b")


def short(seconds: float, *, at_least: float = 0.0) -> str:
    """The duration for Prometheus."""
    return f"{round(1000 * max(seconds / DIVISOR, at_least))}ms"


def shortened(text: str) -> str:
    """All rules of a file."""
    rules = yaml.safe_load(text)
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["expr"] = shorter(rule["expr"])
            if "for" in rule:
                found = re.fullmatch(_DURATION, rule["for"])
                assert found is not None, rule["for"]
                rule["for"] = short(_seconds(found[1], found[2]))
    return str(yaml.safe_dump(rules, sort_keys=False, width=10_000))


def shorter(expression: str) -> str:
    """One expression."""

    def window(found: re.Match[str]) -> str:
        return found[1] + short(_seconds(found[2], found[3]), at_least=SHORTEST_WINDOW_SECONDS)

    return _WINDOW.sub(window, expression)


def _seconds(number: str, unit: str) -> float:
    return int(number) * _UNITS[unit]
