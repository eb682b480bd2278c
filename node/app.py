"""The node: what starts and stops, in order; nothing else."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack
from pathlib import Path

import structlog
from sqlalchemy import select

from node import __version__
from node.audit import AuditTrail
from node.audit_message import Source
from node.config import NodeConfig
from node.database import jobs, open_database
from node.deliver import make_deliverer
from node.errors import ConfigError
from node.files import lock
from node.metrics import Metrics
from node.receive.process import ReceiverProcess
from node.route.router import Route, Router, compile_routes
from node.run.engine import JobEngine
from node.run.operations import RetryWatch
from node.run.steps import Services, Steps
from node.run.worker_pool import WorkerPool
from node.tls import check_tls
from node.triton_watch import TritonWatch
from node.web.app import WebServer, create_app
from pipelines.registry import PIPELINES

log = structlog.get_logger(__name__)


def routes_of(config: NodeConfig) -> tuple[Route, ...]:
    """The configured routes, parsed. Raises ConfigError for a bad rule or an unknown pipeline."""
    for route in config.routes:
        if route.pipeline not in PIPELINES:
            raise ConfigError(
                f"routes[{route.name}].pipeline: {route.pipeline!r} isn't known; "
                f"allowed are {', '.join(sorted(PIPELINES))}"
            )
    return compile_routes(config.routes)


def serve(config: NodeConfig) -> None:
    """Run the node until SIGTERM or SIGINT. Blocks; call from the main thread."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with ExitStack() as stack:
        _start(config, stack)
        log.info("node_ready", version=__version__, data_dir=str(config.data_dir))
        stopping.wait()
        log.info("node_stopping")
    log.info("node_stopped")


def _start(config: NodeConfig, stack: ExitStack) -> None:
    """Start every service; ``stack`` stops them in reverse."""
    routes = routes_of(config)
    for warning in check_tls(config):
        log.warning("tls_warning", reason=warning)
    config.data_dir.mkdir(parents=True, exist_ok=True)
    _lock(config.data_dir, stack)
    engine = open_database(config.data_dir)
    stack.callback(engine.dispose)
    metrics = Metrics(__version__)
    metrics.watch_disk(config.data_dir)
    audit = AuditTrail(
        config.audit,
        config.data_dir / "audit",
        Source(config.receive.ae_title, "node", config.audit.enterprise_site_id),
        metrics.audit_messages,
    )
    audit.start()
    stack.callback(audit.stop)

    triton = TritonWatch(config.triton, metrics)
    triton.start()
    stack.callback(triton.stop)

    pool = WorkerPool(config.run.workers)
    stack.callback(pool.stop)
    deliverers = {
        name: make_deliverer(
            name, destination, calling_ae_title=config.receive.ae_title, audit=audit, metrics=metrics
        )
        for name, destination in config.destinations.items()
    }
    steps = Steps(Services(config, engine, pool, deliverers, metrics, lambda: triton.url))
    job_engine = JobEngine(
        config.data_dir, steps, workers=config.run.workers, destinations=tuple(config.destinations)
    )
    job_engine.start()
    stack.callback(job_engine.stop)

    def enqueue(job_id: str) -> None:
        with engine.connect() as connection:
            job = connection.execute(select(jobs).where(jobs.c.job_id == job_id)).one()
        job_engine.enqueue(job_id, job.priority, job.generation)

    router = Router(engine, config.data_dir, routes, enqueue, metrics)
    router.enqueue_waiting()
    retry_watch = RetryWatch(engine, enqueue)
    retry_watch.start()
    stack.callback(retry_watch.stop)

    receiver = ReceiverProcess(config, router.route)
    stack.callback(receiver.stop)
    receiver.start()

    checks = {
        "listener": receiver.why_not_ready,
        "triton": triton.why_not_ready,
    }
    web = WebServer(config.web, create_app(engine, metrics, checks, receiver.metrics))
    web.start()
    stack.callback(web.stop)

    pool.start()  # last: workers warm up, and would take the processor from what answers peers


def _lock(data_dir: Path, stack: ExitStack) -> None:
    """One node a data_dir."""
    try:
        lock(data_dir / "lock", stack)
    except OSError:
        raise ConfigError(
            f"data_dir: {data_dir} is in use by another node", hint="stop it, or choose another data_dir"
        ) from None
