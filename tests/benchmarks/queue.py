"""Handing jobs over with a backlog, and looking at what is done: ``make bench-queue``.

In: a database with queued and with finished jobs, as ten days and a bad night leave it.  Out, in
build/bench/queue.json: how long a node's start hands its backlog over; how long a job takes from being
enqueued, or from a place that became free, to its first step; how long lists, pages and a scrape take, and
how many SQL statements each needs.

Router, engine, steps, web server and command line are the node's own, on SQLite. The pipeline is a summary
that is written down, results go to a folder.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import yaml
from sqlalchemy import Engine, event, insert, select

from node.audit import AuditTrail
from node.audit_message import Source
from node.config import LogConfig, NodeConfig, parse_config
from node.database import deliveries, jobs, open_database, series
from node.deliver import make_gates
from node.log import configure_logging
from node.metrics import Metrics
from node.route.router import Router
from node.run import operations
from node.run.boundary import Next
from node.run.engine import JobEngine, Limits
from node.run.results import Services
from node.run.steps import Steps
from node.run.worker_pool import OnProgress
from node.web.app import WebServer, create_app
from node.web.sources import Sources
from pipelines.registry import PIPELINES
from pipelines.request import SUMMARY, Request
from tests.integration.receiving import wait_for
from tests.unit.node.rows import job_row, series_row

PIPELINE, APART = "chest_ct_pneumonia", "chest_ct_triage"
JOBS_A_DAY = 10_000
SECONDS_BETWEEN = 86_400 / JOBS_A_DAY
AT_ONCE = 5_000
WAIT_SECONDS = 600.0
STAGES = ("check", "load", "lungs", "lesions", "candidates", "regions", "inpaint", "results")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backlog", type=int, default=10_000, help="jobs that are queued")
    parser.add_argument("--finished", type=int, default=100_000, help="jobs that are done")
    parser.add_argument("--rounds", type=int, default=100, help="of each measurement")
    parser.add_argument("--out", type=Path, default=Path("build/bench/queue.json"))
    arguments = parser.parse_args()
    configure_logging(LogConfig(level="error"))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        found = measure(Path(folder), arguments.backlog, arguments.finished, arguments.rounds)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=2)
    arguments.out.write_text(text)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
    os._exit(0)  # the job that holds the queue still does


class Written:
    """Takes the place of ``WorkerPool``: a pipeline that takes some milliseconds."""

    def run(self, request: Request, _on_progress: OnProgress, **_options: Any) -> dict[str, Any]:
        time.sleep(random.uniform(0.0, 0.1))  # noqa: S311 - not at the pace of the queue
        summary: dict[str, Any] = {"results": [], "findings": [], "noisy_or": {}, "case_type": ""}
        summary["timings_seconds"] = {}
        (request.out / SUMMARY).write_text(json.dumps(summary))
        return summary


class Timed(Steps):
    """Notes when each job's step begins and ends; a job ``hold…`` ends when it may ``go``."""

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self.begun: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.go = threading.Event()

    def execute(
        self, job_id: str, generation: int, attempt: int, failures: int, epoch: int | None = None
    ) -> Next:
        self.begun[job_id] = time.perf_counter()
        if job_id.startswith("hold"):
            self.go.wait()
        try:
            return super().execute(job_id, generation, attempt, failures, epoch)
        finally:
            self.ended[job_id] = time.perf_counter()


@dataclass
class Bench:
    """A node without its receiver."""

    config: NodeConfig
    engine: Engine
    steps: Timed
    job_engine: JobEngine
    router: Router
    statements: list[str]

    def add(self, job_id: str, pipeline: str = PIPELINE, priority: int = 100) -> None:
        """A job of a series of its own, not yet enqueued."""
        with self.engine.begin() as connection:
            connection.execute(insert(series).values(series_row(series_instance_uid=f"1.9.{job_id}")))
            row = job_row(
                job_id=job_id,
                series_instance_uid=f"1.9.{job_id}",
                pipeline=pipeline,
                priority=priority,
                destinations=["folder"],
                created_at=time.time(),
            )
            connection.execute(insert(jobs).values(row))

    def begun(self, job_id: str) -> float:
        wait_for(lambda: job_id in self.steps.begun, seconds=WAIT_SECONDS, what=f"{job_id} to begin")
        return self.steps.begun[job_id]

    @contextmanager
    def counted(self) -> Iterator[list[str]]:
        """The SQL statements of the node's database meanwhile."""
        before = len(self.statements)
        found: list[str] = []
        yield found
        found += self.statements[before:]


def measure(data_dir: Path, backlog: int, finished: int, rounds: int) -> dict[str, Any]:
    folder = {"type": "folder", "path": str(data_dir / "delivered")}
    raw = {"data_dir": str(data_dir), "web": {"port": 0}, "destinations": {"folder": folder}}
    config = parse_config(raw, source="bench", base=data_dir)
    engine = open_database(data_dir)
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *a: statements.append(str(a[2])))
    began = time.perf_counter()
    seed(engine, finished, backlog)
    sys.stderr.write(f"seeded in {time.perf_counter() - began:.0f} s\n")
    metrics = Metrics("bench")
    audit = AuditTrail(config.audit, data_dir, Source("BENCH", "node"), metrics.audit)
    gates = make_gates(config, engine, audit, metrics)
    steps = Timed(Services(config, engine, Written(), gates, metrics, lambda: ""))  # type: ignore[arg-type]
    job_engine = JobEngine(data_dir, steps, Limits(1, {APART: 1}), destinations={"folder": 2})
    job_engine.start()

    def enqueue(job_id: str) -> None:
        with engine.connect() as connection:
            job = connection.execute(select(jobs).where(jobs.c.job_id == job_id)).one()
        job_engine.enqueue(job_id, job.priority, job.generation, job.pipeline)

    router = Router(engine, data_dir, (), enqueue, metrics)
    bench = Bench(config, engine, steps, job_engine, router, statements)
    found: dict[str, Any] = {
        "processors": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "backlog": backlog,
        "finished": finished,
    }
    bench.add("hold0", priority=1)  # keeps the backlog where it is
    enqueue("hold0")
    bench.begun("hold0")
    found["start"] = measure_start(bench)
    found["handover"] = measure_handover(bench, enqueue, rounds)
    multiply_workflows(data_dir / "workflows.sqlite", finished)
    found["handover_after_finished"] = measure_handover(bench, enqueue, rounds, "late")
    use_labels(metrics, finished)
    app = create_app(engine, metrics, {}, sources=Sources(gates=lambda: gates, data_dir=data_dir))
    web = WebServer(config.web, app)
    web.start()
    found["web"] = measure_web(bench, f"http://127.0.0.1:{web.port}", max(5, rounds // 5), finished)
    found["command_line"] = measure_command_line(data_dir, engine)
    web.stop()
    return found


def seed(engine: Engine, finished: int, backlog: int) -> None:
    """Jobs of one day after the other: the backlog came last."""
    now = time.time()
    verdict = {"route": "chest", "pipeline": PIPELINE, "matches": True, "why": "modality is CT " * 8}
    decision = {
        "matched": ["chest"],
        "routes": [verdict],
        "facts": {f"fact_{n}": "value" * 4 for n in range(30)},
    }
    for start in range(0, finished + backlog, AT_ONCE):
        several = range(start, min(start + AT_ONCE, finished + backlog))
        rows: dict[Any, list[dict[str, Any]]] = {series: [], jobs: [], deliveries: []}
        for number in several:
            uids = {"series_instance_uid": f"1.2.3.{number}", "study_instance_uid": f"1.2.{number // 2}"}
            came = now - (finished + backlog - number) * SECONDS_BETWEEN
            times = {"opened_at": came, "last_instance_at": came, "completed_at": came}
            evidence = {"rule": "association_release", "complete": None, "instances": 300}
            rows[series].append(series_row(**uids, **times, decision=decision, evidence=evidence))
            job_id, done = f"{number:032x}", number < finished
            job = job_row(**uids, job_id=job_id, created_at=came, state="done" if done else "queued")
            end = {"started_at": came + 1, "finished_at": came + 20, "result_dir": f"results/{job_id}"}
            rows[jobs].append({**job, **({key: value if done else None for key, value in end.items()})})
            if done:
                delivery = {"job_id": job_id, "destination": "folder", "state": "delivered", "attempts": 1}
                rows[deliveries].append(delivery | {"updated_at": came + 20, "begun_at": came + 19})
        with engine.begin() as connection:
            for table, values in rows.items():
                if values:
                    connection.execute(insert(table), values)


def measure_start(bench: Bench) -> dict[str, Any]:
    """What a node's start enqueues: all of the backlog where the engine knows none of it, at the next start
    nothing; and what that would take if each were enqueued again, which does nothing."""
    found = {}
    known = bench.job_engine.enqueued
    for name, ask in (("first", known), ("next", known), ("next_without_asking", lambda _jobs: ())):
        began = time.perf_counter()
        with bench.counted() as statements:
            enqueued = bench.router.enqueue_waiting(ask)
        found[name] = {
            "enqueued": enqueued,
            "seconds": round(time.perf_counter() - began, 2),
            "statements": len(statements),
        }
    return found


def measure_handover(
    bench: Bench, enqueue: Callable[[str], None], rounds: int, name: str = "soon"
) -> dict[str, Any]:
    """Milliseconds until the first step: from being enqueued, where a place is free (a pipeline of its own
    queue); and, of a more urgent job, from the end of the job that holds the only place."""
    apart = []
    for number in range(rounds):
        job_id = f"apart{name}{number}"
        bench.add(job_id, APART)
        began = time.perf_counter()
        enqueue(job_id)
        apart.append(bench.begun(job_id) - began)
        time.sleep(random.uniform(0.1, 0.2))  # noqa: S311 - at any moment between two looks
    bench.steps.go.set()
    hold = next(job_id for job_id in bench.steps.begun if job_id not in bench.steps.ended)
    freed = []
    urgent = [f"urgent{name}{number}" for number in range(rounds)]
    for job_id in urgent:
        bench.add(job_id, priority=1)
        enqueue(job_id)
    bench.begun(urgent[-1])
    order = sorted(bench.steps.begun, key=bench.steps.begun.__getitem__)
    for before, after in pairwise(order):
        if (
            after.startswith(f"urgent{name}")
            and before in bench.steps.ended
            and not before.startswith("apart")
        ):
            freed.append(bench.steps.begun[after] - bench.steps.ended[before])
    bench.steps.go.clear()
    bench.add(f"hold{name}", priority=1)
    enqueue(f"hold{name}")
    bench.begun(f"hold{name}")
    overtaken = sum(1 for job_id in order[order.index(hold) :] if job_id.isalnum() and len(job_id) == 32)
    return {
        "enqueued_to_first_step_ms": milliseconds(apart),
        "place_free_to_first_step_ms": milliseconds(freed),
        "jobs_of_the_backlog_that_ran_before_urgent_ones": overtaken,
    }


def multiply_workflows(path: Path, finished: int) -> None:
    """As many ended workflows as so many jobs leave, each of them a copy of one that ran here."""
    with closing(sqlite3.connect(path, timeout=60.0)) as connection:
        for table, key in (
            ("workflow_status", "workflow_uuid"),
            ("workflow_input", "workflow_uuid"),
            ("workflow_output", "workflow_uuid"),
            ("operation_outputs", "workflow_uuid"),
        ):
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            others = ", ".join(f'"{column}"' for column in columns if column != key)
            for kind in ("run", "deliver"):
                done = connection.execute(
                    "SELECT workflow_uuid FROM workflow_status WHERE status = 'SUCCESS' "
                    "AND workflow_uuid LIKE ? LIMIT 1",
                    (f"{kind}-%",),
                ).fetchone()
                connection.execute(
                    f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {finished}) "  # noqa: S608
                    f'INSERT INTO {table} ("{key}", {others}) '
                    f"SELECT '{kind}-copy' || i || '-0-1', {others} FROM n, {table} WHERE {key} = ?",
                    done,
                )
        connection.commit()


def use_labels(metrics: Metrics, finished: int) -> None:
    """Count and measure what so many jobs are counted and measured by."""
    for pipeline in PIPELINES:
        for state, code in (("done", "none"), ("failed", "series_refused"), ("failed", "delivery_failed")):
            metrics.jobs_finished.labels(pipeline=pipeline, state=state, code=code).inc(finished)
        metrics.queue_wait_seconds.labels(pipeline).observe(5.0)
        metrics.turnaround_seconds.labels(pipeline).observe(30.0)
        for stage in STAGES:
            metrics.stage_seconds.labels(pipeline=pipeline, stage=stage).observe(3.0)


def measure_web(bench: Bench, url: str, rounds: int, finished: int) -> dict[str, Any]:
    """Each page as it is asked for over HTTP."""
    pages = {
        "metrics": "/metrics",
        "jobs_100": "/api/jobs",
        "jobs_1000": "/api/jobs?limit=1000",
        "job": f"/api/jobs/{finished // 2:032x}",
        "series_100": "/api/series",
        "series_1000": "/api/series?limit=1000",
        "study": f"/studies/1.2.{finished // 4}",
        "ops_page": "/",
        "ready": "/readyz",
    }
    found = {}
    with httpx.Client(base_url=url, timeout=60.0) as client:
        for name, path in pages.items():
            seconds = []
            for _ in range(rounds):
                began = time.perf_counter()
                with bench.counted() as statements:
                    answer = client.get(path)
                seconds.append(time.perf_counter() - began)
                answer.raise_for_status()
            found[name] = {
                **milliseconds(seconds),
                "bytes": len(answer.content),
                "statements": len([one for one in statements if one.startswith("SELECT")]),
            }
    return found


def measure_command_line(data_dir: Path, engine: Engine) -> Mapping[str, Any]:
    """The whole process, and what of it isn't starting: loading what the command line is made of."""
    config = data_dir / "node.yaml"
    config.write_text(yaml.safe_dump({"data_dir": str(data_dir)}))
    program = [sys.executable, "-m", "node"]
    seconds: dict[str, list[float]] = {"help": [], "jobs_list": [], "jobs_show": [], "query": []}
    for _ in range(5):
        for name, arguments in (
            ("help", ["--help"]),
            ("jobs_list", ["jobs", "list", "--config", str(config)]),
            ("jobs_show", ["jobs", "show", f"{7:032x}", "--config", str(config)]),
        ):
            began = time.perf_counter()
            subprocess.run([*program, *arguments], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - began)
        began = time.perf_counter()
        operations.list_jobs(engine, limit=50)
        seconds["query"].append(time.perf_counter() - began)
    return {name: milliseconds(each) for name, each in seconds.items()}


def milliseconds(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "least": round(1000 * ordered[0], 1),  # what a busy machine adds least to
        "median": round(1000 * statistics.median(ordered), 1),
        "p95": round(1000 * ordered[int(0.95 * (len(ordered) - 1))], 1),
    }


if __name__ == "__main__":
    main()
