"""Keeps Triton within reach: starts the embedded server if none is configured, watches, restarts it."""

from __future__ import annotations

import threading

import structlog

from node.config import TritonConfig
from node.errors import TritonStartError
from node.metrics import Metrics
from node.triton_server import EmbeddedTriton
from pipelines.errors import InferenceUnavailable
from pipelines.triton import InferenceClient

log = structlog.get_logger(__name__)

WATCH_SECONDS = 2.0
RESTART_SECONDS = 5.0


class TritonWatch:
    """Owns the thread that starts and watches Triton.

    The embedded server must be started from a thread that lives as long as the node (see ``node.child``);
    that thread is this one.
    """

    def __init__(self, config: TritonConfig, metrics: Metrics) -> None:
        self._config = config
        self._metrics = metrics
        self._embedded: EmbeddedTriton | None = None
        if config.url is None:
            self._embedded = EmbeddedTriton(
                config.model_repository,
                metrics_port=config.metrics_port,
                start_timeout_seconds=config.start_timeout_seconds,
            )
        self._url = config.urls[0] if config.urls else ""
        self._ready = threading.Event()
        self._failed: TritonStartError | None = None
        self._first_try = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="triton-watch", daemon=True)

    @property
    def url(self) -> str:
        """host:port of the gRPC endpoint to use now: of several servers, the first that was ready."""
        return self._embedded.url if self._embedded is not None else self._url

    def start(self) -> None:
        """Start watching.

        With the embedded server, returns once it was tried: what can pass is tried again (the node receives
        meanwhile, and jobs wait), what can't raises TritonStartError. An external server may come and go.
        """
        self._thread.start()
        if self._embedded is not None:
            self._first_try.wait()
            if self._failed is not None:
                raise self._failed

    def why_not_ready(self) -> str | None:
        """A readiness check: None, or the reason."""
        if self._ready.is_set():
            return None
        return f"Triton at {', '.join(self._config.urls) or self.url} isn't ready"

    def wait_ready(self, seconds: float) -> bool:
        """Whether it is ready within so many seconds; True as well when the node is stopping."""
        return self._ready.wait(seconds) or self._stopping.is_set()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        if self._embedded is not None:
            try:
                self._embedded.start()
            except TritonStartError as error:
                if not error.retryable:
                    self._failed = error
                    return
                log.error("triton_start_failed", reason=str(error))
            finally:
                self._first_try.set()
        while not self._stopping.is_set():
            self._look()
            self._stopping.wait(WATCH_SECONDS)
        if self._embedded is not None:
            self._embedded.stop()

    def _look(self) -> None:
        if self._embedded is not None and not self._embedded.alive():
            if self._ready.is_set():
                log.error("triton_died", hint="its last lines are above; restarting it")
            self._set_ready(False)
            self._embedded.stop()
            try:
                self._embedded.start()
            except TritonStartError as error:
                log.error("triton_restart_failed", reason=str(error))
                self._stopping.wait(RESTART_SECONDS)
                return
        if self._embedded is not None:
            self._set_ready(self._is_ready(self.url))
            return
        ready = next((url for url in self._config.urls if self._is_ready(url)), None)
        if ready is not None and ready != self._url:
            log.warning("triton_changed", url=ready, before=self._url)
            self._url = ready
        self._set_ready(ready is not None)

    def _is_ready(self, url: str) -> bool:
        try:
            with InferenceClient(url, timeout_seconds=WATCH_SECONDS, access=self._config.access()) as client:
                return client.ready()
        except InferenceUnavailable as error:
            log.error("triton_access_failed", reason=str(error), hint=error.hint)
            return False

    def _set_ready(self, ready: bool) -> None:
        if ready != self._ready.is_set():
            log.info("triton_state", url=self.url, ready=ready)
        if ready:
            self._ready.set()
        else:
            self._ready.clear()
        self._metrics.triton_ready.set(1 if ready else 0)
