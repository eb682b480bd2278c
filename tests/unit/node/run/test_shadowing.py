"""Candidates beside jobs: when they run, what becomes of them, and that nothing of them is ever delivered."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select, update
from sqlalchemy.exc import OperationalError

from node.config import NodeConfig, RouteConfig, parse_config
from node.database import jobs, shadows
from node.errors import ConfigError, DeliveryError, WorkerCrashed
from node.postgres import SessionLock
from node.retention import Retention
from node.run import operations, shadowing
from node.run.results import Services
from node.run.shadowing import Means, ShadowWatch, check_candidates
from node.run.steps import Steps
from node.run.worker_pool import NODE_STOPPING, OnProgress, PipelineFailed
from pipelines.request import SUMMARY, Request, Shadow
from tests.integration.receiving import wait_for
from tests.unit.node.rows import job_row
from tests.unit.node.run.conftest import JOB, OBJECTS, Bench, write_result_set

AGREEMENT = {
    "dice": {"Left lung": 0.97, "Region": 0.5},
    "case_type": {"live": "a", "candidate": "b", "equal": False},
    "noisy_or": {"ground_glass": {"live": 0.5, "candidate": 0.25, "difference": -0.25}},
}
NEXT = {"pipeline": "chest", "models": {"lungs": {"name": "lungs_next", "version": "3"}}}


@dataclass
class ScriptedShadowPool:
    """Takes the place of a candidate's ``WorkerPool``; with ``hold``, a run lasts until it is stopped."""

    failure: Exception | None = None
    hold: bool = False
    requests: list[Request] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self, request: Request, _on_progress: OnProgress, **_options: Any) -> dict[str, Any]:
        self.requests.append(request)
        if self.failure is not None:
            raise self.failure
        if self.hold:
            assert self.stopped.wait(30)
            raise WorkerCrashed("the node is stopping", code=NODE_STOPPING)
        summary = write_result_set(request.out, case_type="b") | {"agreement": AGREEMENT}
        (request.out / SUMMARY).write_text(json.dumps(summary))
        return summary

    def stop(self) -> None:
        self.stopped.set()


class Shadowed:
    """The bench's job with candidates beside it."""

    def __init__(self, bench: Bench, **candidates: dict[str, Any]) -> None:
        self.bench, self.engine = bench, bench.engine
        self.configure(**(candidates or {"next": NEXT}))
        self.pools: list[ScriptedShadowPool] = []
        self.pool: dict[str, Any] = {}
        self.ready = True

    def configure(self, **candidates: dict[str, Any]) -> None:
        raw = self.bench.config.model_dump(mode="json", exclude_none=True) | {"shadow": candidates}
        self.config: NodeConfig = parse_config(raw, source="test", base=self.bench.data_dir)
        bench = self.bench
        bench.steps = Steps(
            Services(self.config, self.engine, bench.pool, bench.gates, bench.metrics, lambda: "triton:8001")
        )

    def watch(self, config: NodeConfig | None = None) -> ShadowWatch:
        def make_pool() -> ScriptedShadowPool:
            self.pools.append(ScriptedShadowPool(**self.pool))
            return self.pools[-1]

        means = Means(
            self.engine,
            self.bench.metrics.shadow,
            lambda: "triton:8001",
            lambda _seconds: self.ready,
            make_pool,  # type: ignore[arg-type]
        )
        return ShadowWatch(config or self.config, means)

    def run_job(self) -> None:
        """The live job, to its end."""
        self.bench.steps.execute(JOB, 0, 1, 0)
        for name in "ab":
            self.bench.steps.deliver(JOB, name, 0, 1)

    def rows(self) -> list[dict[str, Any]]:
        with self.engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(select(shadows))]

    def row(self) -> dict[str, Any]:
        (row,) = self.rows()
        return row

    def folder(self) -> Path:
        return self.bench.data_dir / "shadows" / JOB / "next"

    def metric(self, name: str, **labels: str) -> float:
        return self.bench.metric(f"shadow_{name}", candidate="next", **labels)


@pytest.fixture
def shadowed(bench: Bench) -> Shadowed:
    return Shadowed(bench)


def test_a_candidate_runs_on_what_the_job_ran_on_and_is_never_delivered(shadowed: Shadowed) -> None:
    bench = shadowed.bench
    assert shadowed.watch().look() == 0 and shadowed.rows() == []
    shadowed.run_job()
    assert (bench.job()["state"], shadowed.row()["state"]) == ("done", "waiting")
    assert shadowed.watch().look() == 1
    row = shadowed.row()
    assert (row["state"], row["reason_code"], row["agreement"]) == ("done", None, AGREEMENT)
    assert row["result_dir"] == f"shadows/{JOB}/next" and (shadowed.folder() / SUMMARY).is_file()
    (live,) = bench.pool.requests
    ((candidate,),) = [pool.requests for pool in shadowed.pools]
    assert (candidate.paths, candidate.pipeline) == (live.paths, "chest")
    assert candidate.shadow == Shadow(bench.result_dir, {"lungs": ("lungs_next", "3")})
    assert candidate.out.is_relative_to(bench.data_dir / "shadows")
    assert shadowed.pools[0].stopped.is_set(), "its process would keep its memory"
    assert shadowed.metric("runs_total", outcome="done") == 1
    assert shadowed.metric("dice_ratio_sum", segment="Region") == 0.5
    assert shadowed.metric("case_types_total", outcome="different") == 1
    assert shadowed.metric("noisy_or_difference_ratio_sum", type="ground_glass") == 0.25
    operations.retry_job(shadowed.engine, JOB)  # delivers the live results once more
    assert operations.begin_again(shadowed.engine, JOB) is False
    with shadowed.engine.begin() as connection:
        connection.execute(update(jobs).values(state="queued", generation=1))
    bench.steps.execute(JOB, 1, 1, 0)
    for name in "ab":
        bench.steps.deliver(JOB, name, 1, 1)
    assert shadowed.watch().look() == 0 and len(shadowed.rows()) == 1
    live_files = [bench.result_dir / name for name in OBJECTS]
    for destination in bench.destinations.values():
        assert destination.delivered == [live_files, live_files]
    assert set(bench.deliveries()) == {"a", "b"}


@pytest.mark.parametrize("state", ["queued", "retry", "running"])
def test_it_waits_for_every_job(shadowed: Shadowed, state: str) -> None:
    shadowed.run_job()
    shadowed.bench.add_job("j2", state=state, pipeline="other")
    assert shadowed.watch().look() == 0 and shadowed.pools == []
    with shadowed.engine.begin() as connection:
        connection.execute(update(jobs).where(jobs.c.job_id == "j2").values(state="delivering"))
    assert shadowed.watch().look() == 1


def test_it_waits_for_triton(shadowed: Shadowed) -> None:
    shadowed.run_job()
    shadowed.ready = False
    assert shadowed.watch().look() == 0 and shadowed.pools == []


def test_it_gives_way_to_a_job_that_comes(shadowed: Shadowed) -> None:
    shadowed.run_job()
    shadowed.pool = {"hold": True}
    watch = shadowed.watch()
    thread = threading.Thread(target=watch.look)
    thread.start()
    wait_for(lambda: shadowed.pools and shadowed.pools[0].requests, what="the candidate to run")
    shadowed.bench.add_job("j2", pipeline="other")
    thread.join(30)
    assert not thread.is_alive()
    row = shadowed.row()
    assert (row["state"], row["attempts"]) == ("waiting", 0), "giving way is no failure"
    assert shadowed.metric("runs_total", outcome="interrupted") == 1
    assert not list((shadowed.bench.data_dir / "shadows" / JOB).iterdir())
    with shadowed.engine.begin() as connection:
        connection.execute(update(jobs).where(jobs.c.job_id == "j2").values(state="failed"))
    shadowed.pool = {}
    assert watch.look() == 1 and shadowed.row()["state"] == "done"


def test_it_gives_way_when_nobody_knows_of_jobs(shadowed: Shadowed, monkeypatch: pytest.MonkeyPatch) -> None:
    shadowed.run_job()
    shadowed.pool = {"hold": True}
    watch = shadowed.watch()
    asked = 0

    def jobs_wait() -> bool:
        nonlocal asked
        asked += 1
        if asked == 2:  # the database is away while the candidate runs
            raise OperationalError("SELECT", {}, Exception("restarted"))
        return asked > 2

    monkeypatch.setattr(watch, "_jobs_wait", jobs_wait)
    assert watch.look() == 0
    assert (shadowed.row()["state"], shadowed.pools[0].stopped.is_set()) == ("waiting", True)


def test_a_node_that_stops_doesnt_wait_for_it(shadowed: Shadowed) -> None:
    shadowed.run_job()
    shadowed.pool = {"hold": True}
    watch = shadowed.watch()
    watch.start()
    wait_for(lambda: shadowed.pools and shadowed.pools[0].requests, what="the candidate to run")
    started = time.monotonic()
    watch.stop()
    assert time.monotonic() - started < 20
    assert shadowed.row()["state"] == "waiting"


def test_what_fails_for_good_is_recorded_and_touches_no_job(shadowed: Shadowed) -> None:
    shadowed.run_job()
    before = shadowed.bench.job()
    shadowed.pool = {"failure": PipelineFailed("lungs_next isn't served", code="model_mismatch")}
    assert shadowed.watch().look() == 1
    row = shadowed.row()
    assert (row["state"], row["reason_code"]) == ("failed", "model_mismatch")
    assert row["reason"] == "lungs_next isn't served"
    assert shadowed.bench.job() == before
    assert shadowed.watch().look() == 0


def test_what_may_pass_is_tried_so_many_times(shadowed: Shadowed) -> None:
    shadowed.run_job()
    shadowed.pool = {"failure": PipelineFailed("timed out", code="inference_interrupted", retryable=True)}
    looks = [shadowed.watch().look() for _ in range(4)]
    assert looks == [0, 0, 1, 0]
    assert (shadowed.row()["state"], shadowed.row()["attempts"]) == ("failed", 3)
    assert len(shadowed.pools) == 3


def test_a_job_that_failed_has_no_candidate(shadowed: Shadowed) -> None:
    refused = DeliveryError("refused", code="c_store_failed", retryable=False)
    shadowed.bench.destinations["a"].script = [refused]
    shadowed.run_job()
    assert shadowed.bench.job()["state"] == "failed" and shadowed.rows() == []


def test_of_another_pipeline_and_by_share(shadowed: Shadowed) -> None:
    shadowed.configure(
        other=NEXT | {"pipeline": "triage"}, instead={"pipeline": "chest", "candidate_pipeline": "chest2"}
    )
    shadowed.run_job()
    assert [row["candidate"] for row in shadowed.rows()] == ["instead"]
    assert shadowed.watch().look() == 1
    assert shadowed.pools[0].requests[0].pipeline == "chest2"
    drawn = [shadowing._drawn(f"{number:032x}", "next") for number in range(1000)]
    assert 150 < sum(share < 0.2 for share in drawn) < 250
    assert drawn == [shadowing._drawn(f"{number:032x}", "next") for number in range(1000)]


def test_one_that_isnt_configured_any_more_waits(shadowed: Shadowed) -> None:
    shadowed.run_job()
    shadowed.configure(other=NEXT)
    assert shadowed.watch().look() == 0 and shadowed.row()["state"] == "waiting"


def test_killed_between_its_set_and_its_row(shadowed: Shadowed, monkeypatch: pytest.MonkeyPatch) -> None:
    shadowed.run_job()
    watch = shadowed.watch()
    with monkeypatch.context() as patch:
        patch.setattr(watch, "_end", _killed)
        with pytest.raises(_KilledError):
            watch.look()
    assert shadowed.row()["state"] == "waiting"
    assert shadowed.watch().look() == 1
    assert (shadowed.row()["state"], len(shadowed.pools)) == ("done", 1), "what is made isn't made again"


class _KilledError(BaseException):
    pass


def _killed(*_: object, **__: object) -> None:
    raise _KilledError


def test_purged_with_its_series_and_skipped_after(shadowed: Shadowed) -> None:
    shadowed.configure(next=NEXT, late=NEXT)
    shadowed.run_job()
    watch = shadowed.watch()
    with shadowed.engine.begin() as connection:
        connection.execute(update(shadows).where(shadows.c.candidate == "late").values(state="later"))
    assert watch.look() == 1
    route = RouteConfig(name="r", pipeline="p", when={}, destinations=("x",), retention_seconds=0)
    config = NodeConfig.model_construct(data_dir=shadowed.bench.data_dir, routes=(route,))
    assert Retention(config, shadowed.engine, shadowed.bench.metrics).look() == 1
    assert not (shadowed.bench.data_dir / "shadows" / JOB).exists()
    with shadowed.engine.begin() as connection:
        connection.execute(update(shadows).where(shadows.c.candidate == "late").values(state="waiting"))
    assert watch.look() == 1
    by_name = {row["candidate"]: row for row in shadowed.rows()}
    assert (by_name["next"]["result_dir"], by_name["next"]["agreement"]) == (None, AGREEMENT)
    assert (by_name["late"]["state"], by_name["late"]["reason_code"]) == ("skipped", "input_gone")


def test_one_node_at_a_time(shadowed: Shadowed) -> None:
    if shadowed.engine.dialect.name != "postgresql":
        pytest.skip("SQLite is of one node")
    shadowed.run_job()
    url = shadowed.engine.url.set(password=None).set(drivername="postgresql").render_as_string()
    shared = shadowed.config.model_copy(
        update={"database": shadowed.config.database.model_copy(update={"url": url})}
    )
    other = SessionLock(shadowed.engine, shadowing.FOLDER)
    assert other.hold()
    watch = shadowed.watch(shared)
    assert watch.look() == 0
    other.release()
    assert watch.look() == 1
    assert not other.hold(), "it is ours while we live"
    watch._ours.release()  # type: ignore[union-attr]
    assert other.hold()
    other.release()


def test_what_ops_see(shadowed: Shadowed) -> None:
    shadowed.run_job()
    shadowed.watch().look()
    (shown,) = operations.show_job(shadowed.engine, JOB)["shadows"]
    assert (shown["candidate"], shown["agreement"]) == ("next", AGREEMENT)
    add_done(shadowed.engine, "j2", dice=0.99, equal=True, difference=0.75)
    (found,) = operations.shadow_summary(shadowed.engine)
    assert (found["candidate"], found["runs"], found["compared"]) == ("next", {"done": 2}, 2)
    assert found["equal_case_types"] == 0.5
    assert found["dice"]["Left lung"] == {"median": pytest.approx(0.98), "least": 0.97}
    assert found["noisy_or"]["ground_glass"] == {"median": 0.5, "largest": 0.75}
    (newest,) = operations.shadow_summary(shadowed.engine, limit=1)
    assert newest["equal_case_types"] == 1.0


def add_done(engine: Engine, job_id: str, *, dice: float, equal: bool, difference: float) -> None:
    agreement = {
        "dice": {"Left lung": dice},
        "case_type": {"live": "a", "candidate": "a", "equal": equal},
        "noisy_or": {"ground_glass": {"live": 0.0, "candidate": difference, "difference": difference}},
    }
    row = {"job_id": job_id, "candidate": "next", "state": "done", "created_at": 1.0}
    with engine.begin() as connection:
        connection.execute(insert(jobs).values(job_row(job_id=job_id, state="done")))
        values = row | {"finished_at": time.time() + 60, "agreement": agreement}
        connection.execute(insert(shadows).values(values))


def test_a_pipeline_that_isnt_known_is_named() -> None:
    raw = {"shadow": {"next": NEXT | {"pipeline": "chest_ct_pneumonia", "candidate_pipeline": "kidneys"}}}
    config = parse_config(raw, source="test", base=Path("/srv"))
    with pytest.raises(ConfigError, match=r"shadow.next.candidate_pipeline: 'kidneys' isn't known; allowed"):
        check_candidates(config)


def test_a_candidate_that_is_what_is_live() -> None:
    raw = {"shadow": {"next": {"pipeline": "chest", "candidate_pipeline": "chest"}}}
    with pytest.raises(ConfigError, match=r"shadow.next: .*must have models, or another pipeline"):
        parse_config(raw, source="test", base=Path("/srv"))
