"""How much there is right now, and for how long it has waited: read from the database at every scrape.

In: the database, whichever node wrote it.  Out: gauges. Kept by hand, they would drift over a crash.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from sqlalchemy import Column, Connection, Engine, Table, func, literal, select, union_all

from node.database import deliveries, jobs, series
from node.metrics import Metrics
from node.run.delivering import UNSETTLED
from node.web.studies import JOB_STATES

#: the first is the one that most end in
_SERIES_STATES = ("routed", "open", "complete")
_JOB_STATES = ("done", *(state for state in JOB_STATES if state != "done"))
#: what is waited for -> in which states, and since when
_WAITS: dict[str, tuple[Column[float], tuple[str, ...]]] = {
    "completeness": (series.c.last_instance_at, ("open",)),
    "routing": (series.c.last_instance_at, ("complete",)),
    "run": (jobs.c.created_at, ("queued", "retry", "running")),
    "delivery": (jobs.c.created_at, ("delivering",)),
}


def measure(engine: Engine, metrics: Metrics, destinations: Collection[str]) -> None:
    """Set all gauges. destinations: those that are configured, shown as 0 where nothing waits for them."""
    with engine.connect() as connection:
        for table, gauge, states in (
            (series, metrics.series, _SERIES_STATES),
            (jobs, metrics.jobs, _JOB_STATES),
        ):
            for name, count in _count_states(connection, table, states).items():
                gauge.labels(state=name).set(count)
    measure_ages(engine, metrics)
    metrics.deliveries_waiting.clear()  # of destinations that are no more
    for destination, count in (dict.fromkeys(destinations, 0) | count_waiting(engine)).items():
        metrics.deliveries_waiting.labels(destination=destination).set(count)


def measure_ages(engine: Engine, metrics: Metrics) -> None:
    """How long the oldest ones wait."""
    with engine.connect() as connection:
        for what, (since, states) in _WAITS.items():
            metrics.spool_age_seconds.labels(waiting_for=what).set(_oldest(connection, since, states))


def count_waiting(engine: Engine) -> dict[str, int]:
    """Deliveries that aren't settled, by destination; those of jobs that were cancelled don't count."""
    query = (
        select(deliveries.c.destination, func.count())
        .join(jobs, jobs.c.job_id == deliveries.c.job_id)
        .where(jobs.c.state == "delivering", deliveries.c.state.in_(UNSETTLED))
        .group_by(deliveries.c.destination)
    )
    with engine.connect() as connection:
        return {row[0]: row[1] for row in connection.execute(query)}


def _oldest(connection: Connection, since: Column[float], states: Sequence[str]) -> float:
    """Seconds; 0 where there is none."""
    first = (select(func.min(since)).where(since.table.c.state == state) for state in states)
    times = [row[0] for row in connection.execute(union_all(*first)) if row[0] is not None]
    return max(0.0, time.time() - min(times)) if times else 0.0


def _count_states(connection: Connection, table: Table, states: Sequence[str]) -> dict[str, int]:
    """How many rows are in each state. In the first one is the rest: to count all rows is much faster than to
    tell them apart."""
    most, *others = states
    each = select(table.c.state, func.count()).where(table.c.state.in_(others)).group_by(table.c.state)
    every = select(literal(most), func.count()).select_from(table)
    counts = dict.fromkeys(states, 0)
    counts |= {row[0]: row[1] for row in connection.execute(union_all(every, each))}
    counts[most] -= sum(counts[name] for name in others)
    return counts
