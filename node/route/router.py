"""Routing: a complete series version becomes jobs, or the recorded reason why not.

In: (series, version) from the tracker, the configured routes. Out: rows in ``jobs``, the ``decision`` in
``series``, both in one transaction; then ``enqueue`` is called for each job. Routing again changes nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import ColumnElement, Engine, select, update

from node.config import RouteConfig
from node.database import insert_if_new, jobs, series, write_transaction
from node.metrics import Metrics
from node.reasons import Reason, unmatched
from node.receive.series import instance_paths
from node.route.facts import SeriesFacts, series_facts
from node.route.rules import Explanation, Rule, parse_rule

log = structlog.get_logger("node.route")

#: of (job id, generation), the ids of those that were enqueued before
Known = Callable[[Sequence[tuple[str, int]]], Collection[str]]


@dataclass(frozen=True)
class Route:
    """A configured route with its rule parsed."""

    config: RouteConfig
    rule: Rule


@dataclass(frozen=True)
class RouteVerdict:
    """Whether one route matches one series."""

    route: RouteConfig
    explanation: Explanation

    @property
    def matches(self) -> bool:
        return self.explanation.result

    def why(self, *, show_free_text: bool = False) -> str:
        """Why it matches, or why it doesn't, as a sentence."""
        explain = self.explanation.why_true if self.matches else self.explanation.why_not
        return explain(show_free_text=show_free_text)

    def to_json(self, *, show_free_text: bool = False) -> dict[str, Any]:
        return {
            "route": self.route.name,
            "pipeline": self.route.pipeline,
            "matches": self.matches,
            "why": self.why(show_free_text=show_free_text),
            "explanation": self.explanation.to_json(show_free_text=show_free_text),
        }


@dataclass(frozen=True)
class Decision:
    """What the router says about one series version."""

    facts: SeriesFacts
    verdicts: tuple[RouteVerdict, ...]

    @property
    def matched(self) -> tuple[RouteConfig, ...]:
        return tuple(verdict.route for verdict in self.verdicts if verdict.matches)

    @property
    def reason_code(self) -> str:
        """``none`` if a route matched; else no_routes, unreadable, or the nearest route's failing fact."""
        if self.matched:
            return "none"
        if not self.verdicts:
            return "no_routes"
        if self.facts["sop_class_uid"] is None and self.facts["unreadable_count"]:
            return "unreadable"
        nearest = max(self.verdicts, key=lambda verdict: verdict.explanation.satisfied_share())
        return nearest.explanation.failing_fact()

    @property
    def reason(self) -> Reason | None:
        """Why there is no result; None if a route matched."""
        if self.matched:
            return None
        routes = [{"route": verdict.route.name, "why": verdict.why()} for verdict in self.verdicts]
        return unmatched(self.reason_code, routes)

    def to_json(self) -> dict[str, Any]:
        """What is stored with the series; free text is left out."""
        return {
            "matched": [route.name for route in self.matched],
            "reason_code": self.reason_code,
            "routes": [verdict.to_json() for verdict in self.verdicts],
            "facts": self.facts.storable(),
        }


def compile_routes(routes: Sequence[RouteConfig]) -> tuple[Route, ...]:
    """Parse every route's rule. Raises ConfigError naming route, position and what is allowed."""
    return tuple(Route(config, parse_rule(config.when, f"routes[{config.name}].when")) for config in routes)


def decide(facts: SeriesFacts, routes: Sequence[Route]) -> Decision:
    """Hold the facts against every route."""
    return Decision(facts, tuple(RouteVerdict(route.config, route.rule.evaluate(facts)) for route in routes))


def job_id(series_instance_uid: str, version: int, pipeline: str) -> str:
    """The same series version and pipeline always give the same job."""
    text = f"{series_instance_uid}\n{version}\n{pipeline}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Router:
    """Routes complete series versions."""

    def __init__(
        self,
        engine: Engine,
        data_dir: Path,
        routes: Sequence[Route],
        enqueue: Callable[[str], object],
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``enqueue(job_id)`` is called after the job's row is committed; it must bear being called again."""
        self._engine = engine
        self._data_dir = data_dir
        self._routes = tuple(routes)
        self._enqueue = enqueue
        self._metrics = metrics
        self._clock = clock

    def use(self, routes: Sequence[Route]) -> None:
        """Hold series that come from now on against these."""
        self._routes = tuple(routes)

    @property
    def routes(self) -> tuple[Route, ...]:
        """Those in use."""
        return self._routes

    def route(self, series_instance_uid: str, version: int) -> Decision | None:
        """Decide, record and enqueue; None if the version was routed before. Fit for ``on_complete``."""
        key = (series.c.series_instance_uid == series_instance_uid, series.c.version == version)
        with self._engine.connect() as connection:
            row = connection.execute(select(series).where(*key)).one()
            paths = instance_paths(connection, self._data_dir, series_instance_uid, version)
        if row.state == "routed":  # perhaps by a call that ended before it could enqueue
            self._enqueue_waiting(
                jobs.c.series_instance_uid == series_instance_uid, jobs.c.series_version == version
            )
            return None
        facts = series_facts(series_instance_uid, paths, calling_ae_title=row.calling_ae_title)
        decision = decide(facts, self._routes)
        now = self._clock()
        new_jobs = _jobs(decision.matched, row.study_instance_uid, series_instance_uid, version, now)
        with write_transaction(self._engine) as connection:
            for values in new_jobs:
                insert_if_new(connection, jobs, values)
            routed = {"decision": decision.to_json(), "reason_code": decision.reason_code}
            connection.execute(update(series).where(*key).values(state="routed", **routed))
        self._report(decision, version, [values["job_id"] for values in new_jobs])
        for values in new_jobs:
            self._enqueue(values["job_id"])
        return decision

    def enqueue_waiting(self, known: Known = lambda _jobs: ()) -> int:
        """Enqueue the jobs in state queued, for start-up: a crash may have come before ``enqueue``.

        known: those that needn't be, so that a long backlog is no long start. Returns how many were enqueued.
        """
        return self._enqueue_waiting(known=known)

    def _enqueue_waiting(self, *which: ColumnElement[bool], known: Known = lambda _jobs: ()) -> int:
        query = select(jobs.c.job_id, jobs.c.generation).where(jobs.c.state == "queued", *which)
        with self._engine.connect() as connection:
            waiting = {
                row.job_id: row.generation for row in connection.execute(query.order_by(jobs.c.created_at))
            }
        there = set(known(list(waiting.items())))
        lacking = [job_id for job_id in waiting if job_id not in there]
        for job_id in lacking:
            self._enqueue(job_id)
        return len(lacking)

    def _report(self, decision: Decision, version: int, job_ids: list[str]) -> None:
        outcome = "matched" if decision.matched else "unmatched"
        self._metrics.routing.labels(outcome=outcome, reason=decision.reason_code).inc()
        why = decision.reason
        if why is None:
            log.info(
                "series_routed",
                series_instance_uid=decision.facts.series_instance_uid,
                version=version,
                routes=[route.name for route in decision.matched],
                jobs=job_ids,
            )
        else:
            log.warning(
                "series_unmatched",
                series_instance_uid=decision.facts.series_instance_uid,
                version=version,
                code=why.code,
                reason=why.sentence,
                reasons={verdict.route.name: verdict.why() for verdict in decision.verdicts},
            )


def _jobs(
    matched: Sequence[RouteConfig],
    study_instance_uid: str,
    series_instance_uid: str,
    version: int,
    now: float,
) -> list[dict[str, Any]]:
    """One row a pipeline: routes to the same pipeline share it, with all their destinations."""
    rows: dict[str, dict[str, Any]] = {}
    for route in matched:
        row = rows.setdefault(
            route.pipeline,
            {
                "job_id": job_id(series_instance_uid, version, route.pipeline),
                "series_instance_uid": series_instance_uid,
                "series_version": version,
                "study_instance_uid": study_instance_uid,
                "pipeline": route.pipeline,
                "route": route.name,
                "destinations": [],
                "priority": route.priority,
                "state": "queued",
                "generation": 0,
                "created_at": now,
            },
        )
        row["destinations"] += [name for name in route.destinations if name not in row["destinations"]]
        row["priority"] = min(row["priority"], route.priority)
    return list(rows.values())
