"""A healthy destination beside a dead and a slow one, against the same alone: ``make bench-destinations``.

In: result sets that are there already, jobs for one or for three destinations.  Out: how long each took to be
delivered to the healthy one, in build/bench/destinations.json.

The healthy one is DCMTK's storescp; the slow one a storescp that sleeps a second after every instance; at the
dead one's address nobody listens. Jobs come at the same pace in both parts, which follow each other in one
process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, func, insert, select

from node.audit import AuditTrail
from node.audit_message import Source
from node.config import LogConfig, NodeConfig, parse_config
from node.database import deliveries, jobs, open_database, series
from node.deliver import conditions, make_gates
from node.log import configure_logging
from node.metrics import Metrics
from node.run.engine import JobEngine, Limits
from node.run.results import Services
from node.run.steps import Steps
from node.triton_server import free_port
from pipelines.request import SUMMARY
from tests.integration.receiving import wait_for
from tests.unit.node.deliver.conftest import write_object
from tests.unit.node.rows import job_row, series_row

STORESCP = "/usr/bin/storescp"  # pynetdicom installs a script of the same name
OBJECTS = 4
PACE_SECONDS = 0.25
DELIVER_SECONDS = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=40, help="in each of the two parts")
    parser.add_argument("--out", type=Path, default=Path("build/bench/destinations.json"))
    arguments = parser.parse_args()
    configure_logging(LogConfig(level="error"))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        found = measure(Path(folder), arguments.jobs)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=2))
    for name, value in found.items():
        sys.stdout.write(f"{name:>32}  {value}\n")
    sys.stdout.flush()
    os._exit(0)  # what is sent to the slow one still holds threads


def measure(folder: Path, count: int) -> dict[str, Any]:
    """Both parts, in one run."""
    with storescp(folder / "healthy") as healthy, storescp(folder / "slow", "--sleep-after", "1") as slow:
        config = configuration(folder / "var", healthy=healthy, slow=slow, dead=free_port())
        config.data_dir.mkdir()
        engine = open_database(config.data_dir)
        metrics = Metrics("bench")
        audit = AuditTrail(config.audit, config.data_dir, Source("BENCH", "node"), metrics.audit)
        gates = make_gates(config, engine, audit, metrics)
        steps = Steps(Services(config, engine, None, gates, metrics, lambda: ""))  # type: ignore[arg-type]
        at_once = {name: gate.options.concurrency for name, gate in gates.items()}
        job_engine = JobEngine(config.data_dir, steps, Limits(2), destinations=at_once)
        job_engine.start()
        alone = part(engine, job_engine, config.data_dir, "alone", ["healthy"], count)
        beside = part(engine, job_engine, config.data_dir, "beside", ["healthy", "slow", "dead"], count)
        left = waiting(engine)
        circuits = {each.name: each.state for each in conditions(gates)}
        job_engine.stop()
        engine.dispose()
    medians = statistics.median(alone), statistics.median(beside)
    return {
        "jobs": count,
        "alone_seconds_median": round(medians[0], 4),
        "beside_seconds_median": round(medians[1], 4),
        "ratio": round(medians[1] / medians[0], 3),
        "alone_seconds_max": round(max(alone), 4),
        "beside_seconds_max": round(max(beside), 4),
        "slow_waiting_at_the_end": left.get("slow", 0),
        "dead_waiting_at_the_end": left.get("dead", 0),
        "circuits": circuits,
    }


@contextmanager
def storescp(folder: Path, *options: str) -> Iterator[int]:
    """One that keeps nothing; yields its port."""
    folder.mkdir()
    port = free_port()
    command = [STORESCP, "--fork", "--ignore", *options, "-od", str(folder), str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            yield port
        finally:
            process.kill()


def configuration(data_dir: Path, **ports: int) -> NodeConfig:
    peers = {
        name: {"type": "cstore", "ae_title": "STORESCP", "host": "127.0.0.1", "port": port}
        | {"retry_seconds": 0.5, "max_retry_seconds": 5.0, "timeout_seconds": 30.0}
        for name, port in ports.items()
    }
    return parse_config({"data_dir": str(data_dir), "destinations": peers}, source="bench", base=data_dir)


def part(  # noqa: PLR0917
    engine: Engine, job_engine: JobEngine, data_dir: Path, name: str, to: Sequence[str], count: int
) -> list[float]:
    """Seconds from each job's start until it was delivered to the healthy destination."""
    template = data_dir / f"template-{name}"
    template.mkdir()
    files = [write_object(template, number) for number in range(OBJECTS)]
    summary = {
        "results": [{"path": file.name} for file in files],
        "findings": [],
        "noisy_or": {},
        "case_type": "",
        "timings_seconds": {},
    }
    (template / SUMMARY).write_text(json.dumps(summary))
    for number in range(count):
        job_id = f"{name}{number}"
        shutil.copytree(template, data_dir / "results" / job_id)
        with engine.begin() as connection:
            uid = f"1.2.{number}.{len(name)}"
            connection.execute(insert(series).values(series_row(series_instance_uid=uid)))
            row = job_row(job_id=job_id, series_instance_uid=uid, destinations=list(to))
            connection.execute(insert(jobs).values(row | {"created_at": time.time()}))
    for number in range(count):
        job_engine.enqueue(f"{name}{number}", 100, 0, "p")
        time.sleep(PACE_SECONDS)
    wait_for(lambda: len(delivered(engine, name)) == count, seconds=DELIVER_SECONDS, what="deliveries")
    return delivered(engine, name)


def delivered(engine: Engine, part_name: str) -> list[float]:
    query = (
        select(deliveries.c.updated_at - jobs.c.started_at)
        .join(jobs, jobs.c.job_id == deliveries.c.job_id)
        .where(
            deliveries.c.destination == "healthy",
            deliveries.c.state == "delivered",
            jobs.c.job_id.startswith(part_name),
        )
    )
    with engine.connect() as connection:
        return [float(row[0]) for row in connection.execute(query)]


def waiting(engine: Engine) -> dict[str, int]:
    query = select(deliveries.c.destination, func.count()).where(deliveries.c.state == "pending")
    with engine.connect() as connection:
        return {row[0]: row[1] for row in connection.execute(query.group_by(deliveries.c.destination))}


if __name__ == "__main__":
    main()
