"""A database with one routed series and its job, and a pool and destinations that do as they are told."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select, update

from node.config import NodeConfig, parse_config
from node.database import deliveries, instances, jobs, series
from node.deliver.base import Pace, Stored, unhindered
from node.deliver.gate import Gate
from node.errors import DeliveryError
from node.metrics import Metrics
from node.run.results import Services
from node.run.steps import Steps
from node.run.worker_pool import OnProgress, WorkerPool
from pipelines.request import SUMMARY, Request
from tests.unit.node.rows import instance_row, job_row, series_row

JOB = "j1"
SERIES = "1.2.3"
OBJECTS = ("segmentation.dcm", "report.dcm")
SETTINGS = {
    "data_dir": ".",
    "run": {"max_attempts": 3, "retry_seconds": 5, "step_timeout_seconds": 30},
    "triton": {"request_timeout_seconds": 7},
    "destinations": {
        name: {"type": "folder", "path": name, "max_attempts": attempts, "breaker_failures": failures}
        | {"retry_seconds": 2, "max_retry_seconds": 6}
        for name, attempts, failures in (("a", 4, 9), ("b", 9, 3))
    },
}


@dataclass
class ScriptedPool(WorkerPool):
    """Takes the place of ``WorkerPool``. Does the next thing of ``script``: an exception is raised, a
    function is called before the result set is made."""

    script: list[Exception | Callable[[Request], object]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, request: Request, on_progress: OnProgress, **options: Any) -> dict[str, Any]:
        self.requests.append(request)
        self.options = options
        on_progress("lungs", 0, 0)
        act = self.script.pop(0) if self.script else None
        if isinstance(act, Exception):
            raise act
        if act is not None:
            act(request)
        return write_result_set(request.out, request)


@dataclass
class ScriptedDestination:
    """Takes the place of a ``Destination``, likewise. down: what its check raises."""

    name: str
    down: DeliveryError | None = None
    script: list[Exception | Callable[[], object]] = field(default_factory=list)
    delivered: list[list[Path]] = field(default_factory=list)

    def deliver(self, files: Sequence[Path], pace: Pace = unhindered) -> tuple[Stored, ...]:
        act = self.script.pop(0) if self.script else None
        if isinstance(act, Exception):
            raise act
        said = act() if act is not None else None
        self.delivered.append(list(files))
        warning = said if isinstance(said, str) else ""
        return tuple(Stored("1.2", f"1.2.{number}", warning) for number, _ in enumerate(files, 1))

    def check(self) -> None:
        if self.down is not None:
            raise self.down

    def close(self) -> None: ...


def write_result_set(
    folder: Path, request: Request | None = None, *, case_type: str = "ground_glass"
) -> dict[str, Any]:
    """Files and a summary as ``pipelines.process`` leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    encodings = request.encodings if request is not None else ()
    variants = {e: _entries([name.replace(".", f".{e}.") for name in OBJECTS]) for e in encodings}
    rejections = {}
    if request is not None and request.reject and request.predecessor:
        rejections = {e: {"path": f"rejection.{e}.dcm"} for e in ("binary-omit", *encodings)}
    objects = _entries(["no_result.dcm"] if request is not None and request.no_result else OBJECTS)
    others = [entry for entries in variants.values() for entry in entries]
    for entry in [*objects, *others, *rejections.values()]:
        (folder / entry["path"]).write_bytes(b"DICM")
    summary: dict[str, Any] = {
        "results": objects,
        "encodings": ["binary-omit", *encodings],
        "variants": variants,
        "rejections": rejections,
        "findings": [],
        "noisy_or": {"ground_glass": 0.5},
        "case_type": case_type,
        "timings_seconds": {"lungs": 1.5},
    }
    if request is not None and request.no_result:
        summary["no_result"] = {"code": request.no_result.code, "reason": request.no_result.reason}
    (folder / SUMMARY).write_text(json.dumps(summary))
    return summary


def _entries(names: Sequence[str]) -> list[dict[str, str]]:
    return [{"path": name} for name in names]


class Bench:
    """One job ``JOB`` of two instances for the destinations ``a`` and ``b``."""

    def __init__(self, data_dir: Path, engine: Engine) -> None:
        self.data_dir, self.engine = data_dir, engine
        self.pool = ScriptedPool()
        self.destinations = {name: ScriptedDestination(name) for name in "ab"}
        self.configure()
        self.result_dir = data_dir / "results" / JOB

    def configure(self, *, results: dict[str, Any] | None = None, **destinations: dict[str, Any]) -> None:
        """Start again with options of results, and of the destinations by name."""
        folders: dict[str, Any] = SETTINGS["destinations"]  # type: ignore[assignment]
        options = {name: one | destinations.get(name, {}) for name, one in folders.items()}
        settings = SETTINGS | {"results": results or {}, "destinations": options}
        self.config: NodeConfig = parse_config(settings, source="test", base=self.data_dir)
        self.metrics = Metrics("test")
        self.gates = {
            name: Gate(destination, self.config.destinations[name], self.metrics)
            for name, destination in self.destinations.items()
        }
        services = Services(
            self.config, self.engine, self.pool, self.gates, self.metrics, lambda: "triton:8001"
        )
        self.steps = Steps(services)

    def add_series(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(
                insert(series).values(
                    series_row(
                        series_instance_uid=SERIES,
                        instance_count=2,
                        opened_at=1000.0,
                        last_instance_at=1001.0,
                    )
                )
            )
            for number in (1, 2):
                connection.execute(
                    insert(instances).values(
                        instance_row(
                            sop_instance_uid=f"{SERIES}.{number}",
                            series_instance_uid=SERIES,
                            series_version=1,
                            path=f"spool/{number}.dcm",
                        )
                    )
                )

    def add_job(self, job_id: str = JOB, **changes: Any) -> None:
        row = job_row(
            job_id=job_id,
            series_instance_uid=SERIES,
            pipeline="chest",
            destinations=["a", "b"],
            created_at=1002.5,
        )
        with self.engine.begin() as connection:
            connection.execute(insert(jobs).values(row | changes))

    def set_job(self, **values: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(update(jobs).where(jobs.c.job_id == JOB).values(**values))

    def job(self, job_id: str = JOB) -> dict[str, Any]:
        with self.engine.connect() as connection:
            return dict(connection.execute(select(jobs).where(jobs.c.job_id == job_id)).one()._mapping)

    def deliveries(self) -> dict[str, dict[str, Any]]:
        with self.engine.connect() as connection:
            return {row.destination: dict(row._mapping) for row in connection.execute(select(deliveries))}

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"pacsnode_{name}", labels) or 0.0


@pytest.fixture
def bench(tmp_path: Path, engine: Engine) -> Bench:
    bench = Bench(tmp_path, engine)
    bench.add_series()
    bench.add_job()
    return bench
