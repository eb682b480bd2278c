"""The node: what starts and stops, in order; nothing else."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Collection
from contextlib import ExitStack

import structlog
from sqlalchemy import select

from node import __version__
from node.audit import AuditTrail
from node.audit_message import Source
from node.checks import model_states
from node.config import NodeConfig, Role
from node.database import jobs, open_database
from node.deliver import check_commitment, make_gates
from node.errors import ConfigError
from node.files import lock
from node.metrics import Metrics
from node.postgres import postgres_engine
from node.receive.handing import Handing
from node.receive.process import ReceiverProcess
from node.reload import Gates, Reloading
from node.retention import Retention
from node.route.router import Route, Router, compile_routes
from node.run.committing import CommitmentWatch
from node.run.engine import WORKFLOW_VERSION, JobEngine, Limits, Sharing
from node.run.forgetting import ForgetWatch
from node.run.left import LeftWatch
from node.run.membership import Membership, Takeover
from node.run.operations import AskedWatch, begin_again
from node.run.results import Services
from node.run.shadowing import Means, ShadowWatch, check_candidates
from node.run.steps import Steps
from node.run.worker_pool import WorkerPool
from node.stopping import wait_until
from node.tls import check_tls
from node.triton_watch import TritonWatch
from node.web.app import Check, WebServer, create_app
from node.web.sources import Models, Sources
from pipelines.registry import PIPELINES

log = structlog.get_logger(__name__)

#: the page of models waits so long for each
MODELS_SECONDS = 5.0


def routes_of(config: NodeConfig) -> tuple[Route, ...]:
    """The configured routes, parsed. Raises ConfigError for a bad rule or an unknown pipeline."""
    for route in config.routes:
        if route.pipeline not in PIPELINES:
            raise ConfigError(
                f"routes[{route.name}].pipeline: {route.pipeline!r} isn't known; "
                f"allowed are {', '.join(sorted(PIPELINES))}"
            )
    return compile_routes(config.routes)


def serve(config: NodeConfig, role: Role = "all", read: Callable[[], NodeConfig] | None = None) -> None:
    """Run the node until SIGTERM or SIGINT. Blocks; call from the main thread.

    read: the configuration again, for SIGHUP and the button; left out, it stays as it is.
    """
    if role != "all" and not config.shared:
        raise ConfigError(
            f"run --role {role}: nodes of different roles share PostgreSQL, and database.url isn't set",
            hint="set database.url, or run everything in one node (--role all)",
        )
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop_starting)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to change
    with ExitStack() as stack:
        node = Node(config, role, stack, read or (lambda: config))
        try:
            node.start()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: stopping.set())
        except _StoppedEarly:
            log.info("node_stopping", hint="it was told to before it had started")
            return
        signal.signal(signal.SIGHUP, lambda *_: node.reload_soon())
        log.info("node_ready", version=__version__, data_dir=str(config.data_dir), role=role)
        wait_until(stopping)
        log.info("node_stopping")
    log.info("node_stopped")


class _StoppedEarly(BaseException):
    """Told to stop while starting, which may wait for others: a database, a first receiver."""


def _stop_starting(*_: object) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    raise _StoppedEarly


class Node:
    """What one process is made of, by its role: a listener receives, judges, routes and enqueues; a worker
    runs jobs and delivers; ``all`` does both."""

    def __init__(
        self, config: NodeConfig, role: Role, stack: ExitStack, read: Callable[[], NodeConfig]
    ) -> None:
        self._config = config
        self._read = read
        self._role = role
        self._stack = stack
        self._checks: dict[str, Check] = {}
        self._gates = Gates({})
        self._models: Callable[[], Models] = Models
        self._handing: Handing | None = None
        self._retention: Retention | None = None
        self._pool: WorkerPool | None = None
        self._triton: TritonWatch | None = None
        self._more_metrics: Callable[[], bytes] = lambda: b""

    def start(self) -> None:
        """Start everything, in order; ``stack`` stops it in reverse order."""
        config, stack = self._config, self._stack
        routes = routes_of(config)
        check_candidates(config)
        for warning in check_tls(config):
            log.warning("tls_warning", reason=warning)
        for warning in check_commitment(config):
            log.warning("commitment_warning", reason=warning)
        config.own_dir.mkdir(parents=True, exist_ok=True)
        _lock(config, stack)
        self._engine = engine = open_database(
            config.data_dir, config.database, application_name=f"pacsnode {config.node_id}"
        )
        stack.callback(engine.dispose)
        self._metrics = metrics = Metrics(__version__)
        metrics.watch_disk(config.data_dir)
        self._audit = AuditTrail(
            config.audit,
            config.own_dir / "audit",
            Source(config.receive.ae_title, "node", config.audit.enterprise_site_id),
            metrics.audit,
        )
        self._audit.start()
        stack.callback(self._audit.stop)
        if self._role == "listener":
            metrics.registry.unregister(metrics.triton_ready)  # it uses none: 0 would call someone
        self._membership = self._join() if config.shared else None
        self._jobs = self._job_engine(self._steps() if self._role != "listener" else None)
        self._router = router = Router(engine, config.data_dir, routes, self._enqueue, metrics)
        router.enqueue_waiting(self._jobs.enqueued)
        if self._role != "listener":
            self._look_after_jobs(router)
        if self._role != "worker":
            self._receive(router)
        self._reloading = Reloading(config, self._read, self._use, metrics)
        uploads = config.own_dir / "uploads"
        shutil.rmtree(uploads, ignore_errors=True)  # what was on its way when the last process ended
        sources = Sources(
            gates=lambda: self._gates,
            routes=lambda: router.routes,
            models=self._models,
            data_dir=config.data_dir,
            uploads=uploads,
            free_disk_floor_bytes=config.receive.free_disk_floor_bytes,
            handing=self._handing,
            reloading=self._reloading,
            accessed=self._audit.accessed,
            uid_root=config.results.uid_root,
        )
        pages = create_app(
            engine,
            metrics,
            self._checks,
            self._more_metrics,
            sources=sources,
            config=config.web,
            audited=self._audit.authenticated,
        )
        web = WebServer(config.web, pages)
        web.start()
        stack.callback(web.stop)
        stack.callback(sources.stopping.set)
        if self._pool is not None:
            self._pool.start()  # last: workers warm up, and would take the processor from what answers peers

    def reload_soon(self) -> None:
        """Read the configuration again, in a thread: a signal's handler must not wait."""
        threading.Thread(target=self._reloading.reload, args=("SIGHUP",), name="reload", daemon=True).start()

    def _use(self, config: NodeConfig) -> None:
        """Have its routes and destinations in use. Raises ConfigError before anything has changed."""
        routes = routes_of(config)
        check_tls(config)
        if self._role != "listener":
            gates = make_gates(config, self._engine, self._audit, self._metrics, kept=self._gates)
            self._jobs.deliver_to({name: gate.options.concurrency for name, gate in gates.items()})
            self._gates.replace(gates)
        if self._retention is not None:
            self._retention.use(config.routes)
        self._router.use(routes)

    def _join(self) -> Membership:
        version = None if self._role == "listener" else WORKFLOW_VERSION
        membership = Membership(self._engine, self._config.node_id, self._role, version)
        membership.start()
        self._stack.callback(membership.stop)
        return membership

    def _steps(self) -> Steps:
        """What jobs need: Triton, processes for pipelines, destinations."""
        config, stack, metrics = self._config, self._stack, self._metrics
        self._triton = triton = TritonWatch(config.triton, metrics)
        triton.start()
        stack.callback(triton.stop)
        self._checks["triton"] = triton.why_not_ready
        self._pool = pool = WorkerPool(config.run.workers)
        stack.callback(pool.stop)
        self._gates.replace(make_gates(config, self._engine, self._audit, metrics))
        self._models = lambda: self._ask_models(triton)
        return Steps(
            Services(
                config,
                self._engine,
                pool,
                self._gates,
                metrics,
                lambda: triton.url,
                triton.wait_ready,
                self._membership,
            )
        )

    def _ask_models(self, triton: TritonWatch) -> Models:
        pipelines = {route.config.pipeline for route in self._router.routes}
        if why := triton.why_not_ready():
            return Models(triton.url, (), why)
        access = self._config.triton.access()
        states = model_states(pipelines, triton.url, access, timeout_seconds=MODELS_SECONDS)
        return Models(triton.url, states, "The configured routes use no models.")

    def _job_engine(self, steps: Steps | None) -> JobEngine:
        config = self._config
        sharing = None
        if config.shared:
            database = postgres_engine(
                config.database, application_name=f"pacsnode {config.node_id} workflows"
            )
            self._stack.callback(database.dispose)
            sharing = Sharing(database, config.node_id, runs=steps is not None)
        limits = Limits(config.run.workers, config.run.concurrency)
        at_once = {name: gate.options.concurrency for name, gate in self._gates.items()}
        jobs_engine = JobEngine(config.data_dir, steps, limits, destinations=at_once, sharing=sharing)
        jobs_engine.start()
        self._stack.callback(jobs_engine.stop)
        return jobs_engine

    def _enqueue(self, job_id: str) -> None:
        with self._engine.connect() as connection:
            job = connection.execute(select(jobs).where(jobs.c.job_id == job_id)).one()
        self._jobs.enqueue(job_id, job.priority, job.generation, job.pipeline)

    def _look_after_jobs(self, router: Router) -> None:
        """Jobs of another workflow version, of nodes that are gone, and those that ops ask for again."""
        if self._config.shared:
            takeover = Takeover(
                self._engine,
                self._config.node_id,
                self._jobs.hand_on,
                has_work=self._jobs.has_work,
                on_versions=self._begin_again,
                on_gone=router.enqueue_waiting,
            )
            takeover.start()
            self._stack.callback(takeover.stop)
        else:
            self._begin_again(())
        left_watch = LeftWatch(self._jobs, self._mend)
        left_watch.start()
        self._stack.callback(left_watch.stop)
        asked_watch = AskedWatch(self._engine, self._enqueue, self._count_cancelled)
        asked_watch.start()
        self._stack.callback(asked_watch.stop)
        self._retention = retention = Retention(self._config, self._engine, self._metrics)
        retention.start()
        self._stack.callback(retention.stop)
        commitment_watch = CommitmentWatch(self._engine, self._jobs.enqueue_turn)
        commitment_watch.start()
        self._stack.callback(commitment_watch.stop)
        forget_watch = ForgetWatch(self._jobs.forget)
        forget_watch.start()
        self._stack.callback(forget_watch.stop)
        if self._config.shadow and (triton := self._triton) is not None:
            means = Means(self._engine, self._metrics.shadow, lambda: triton.url, triton.wait_ready)
            shadow_watch = ShadowWatch(self._config, means)
            shadow_watch.start()
            self._stack.callback(shadow_watch.stop)

    def _count_cancelled(self, pipeline: str, code: str) -> None:
        self._metrics.jobs_finished.labels(pipeline=pipeline, state="cancelled", code=code).inc()

    def _mend(self, job_id: str, generation: int) -> None:
        if begin_again(self._engine, job_id, generation):
            log.error("job_begins_again", job_id=job_id, hint="its workflow couldn't be continued")
        with self._engine.connect() as connection:  # whoever let it begin again may have ended right then
            state = connection.execute(select(jobs.c.state).where(jobs.c.job_id == job_id)).scalar_one()
        if state == "queued":
            self._enqueue(job_id)

    def _begin_again(self, alive: Collection[str]) -> None:
        for job_id in self._jobs.abandon_old(alive):
            if begin_again(self._engine, job_id):
                self._enqueue(job_id)

    def _receive(self, router: Router) -> None:
        receiver = ReceiverProcess(self._config, router.route)
        self._stack.callback(receiver.stop)
        receiver.start()
        self._checks["listener"] = receiver.why_not_ready
        self._more_metrics = receiver.metrics
        self._handing = Handing(receiver)


def _lock(config: NodeConfig, stack: ExitStack) -> None:
    """One node a data_dir, or of those that share one, one of an id."""
    try:
        lock(config.own_dir / "lock", stack)
    except OSError:
        where = f"data_dir: {config.data_dir}"
        if config.shared:
            where = f"node_id: {config.node_id!r}, on {where},"
        raise ConfigError(
            f"{where} is in use by another node", hint="stop it, or choose another data_dir or node_id"
        ) from None
