"""The embedded Triton: NVIDIA's tritonserver binary from the nvidia-pytriton wheel, as a child process.

It serves ``triton_models/repository`` with the Python-based backend in ``triton_models/backend/onnxruntime``,
so the same config.pbtxt and model.onnx run here and in NVIDIA's container. Nothing of pytriton's own
Python is imported: its wheel is the only place where the binary can be had from PyPI.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections import deque
from pathlib import Path
from threading import Thread

import httpx
import structlog

from node import child
from node.errors import TritonStartError
from node.triton_folder import MODELS_DIR, ServerFolder, sweep, wheel_path
from pipelines.triton import InferenceClient

log = structlog.get_logger(__name__)

DEFAULT_REPOSITORY = MODELS_DIR / "repository"
STOP_SECONDS = 10.0
#: how often what we start is tried with other free ports, when another program was faster to take one
PORT_TRIES = 3
#: what the server says at every start on a machine without a GPU; no reason to alarm anyone
NO_GPU = ("pinned_memory_manager", "CudaDriverHelper", "DCGM")
#: what the server says before it ends, when it can't bind a port
_IN_USE = re.compile(r"Socket '[^']*:(\d+)' already in use")


class _PortInUse(TritonStartError):
    """The server ended because another program has this port."""

    def __init__(self, port: int, said: str) -> None:
        super().__init__(
            f"the embedded Triton can't have port {port}, which is in use; its last lines:\n{said}"
        )
        self.port = port


def free_port() -> int:
    """A TCP port that was free a moment ago on the loopback; any outgoing connection may take it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class EmbeddedTriton:
    """Starts, watches and stops one tritonserver on the loopback.

    grpc_port, http_port, metrics_port: 0 picks free ones, and others when they turn out to be taken.
    Use as a context manager or start/stop.
    """

    def __init__(
        self,
        repository: Path | None = None,
        *,
        grpc_port: int = 0,
        http_port: int = 0,
        metrics_port: int = 0,
        start_timeout_seconds: float = 120.0,
    ) -> None:
        self.repository = (repository or DEFAULT_REPOSITORY).resolve()
        self._wanted_ports = {"grpc": grpc_port, "http": http_port, "metrics": metrics_port}
        self._ports = self._wanted_ports
        self._start_timeout = start_timeout_seconds
        self._process: subprocess.Popen[str] | None = None
        self._folder: ServerFolder | None = None
        self._tail: deque[str] = deque(maxlen=40)
        self._backends = 0

    def __enter__(self) -> EmbeddedTriton:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """host:port of the gRPC endpoint."""
        return f"127.0.0.1:{self._ports['grpc']}"

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self._ports['metrics']}/metrics"

    def start(self) -> None:
        """Start the server and return once every model is ready.

        Raises TritonStartError with the server's last lines if it ends or isn't ready in time.
        """
        if not self.repository.is_dir():
            raise TritonStartError(f"the model repository {self.repository} isn't a folder", retryable=False)
        sweep()
        for tries_left in reversed(range(PORT_TRIES)):
            self._ports = {name: port or free_port() for name, port in self._wanted_ports.items()}
            try:
                self._start()
            except _PortInUse as error:
                for name, port in self._wanted_ports.items():
                    if error.port == port:
                        raise TritonStartError(
                            f"Triton's {name} port {port} is in use",
                            hint="end the program that has it, or another Triton that runs already",
                        ) from error
                if not tries_left:
                    raise
                log.warning("triton_port_taken", port=error.port, tries_left=tries_left)
            else:
                return

    def _start(self) -> None:
        self._folder = ServerFolder()
        started = time.monotonic()
        self._process = subprocess.Popen(
            child.command(*self._arguments(self._folder)),
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        listening = Thread(target=self._drain, args=(self._process,), name="triton-log", daemon=True)
        listening.start()
        self._wait_ready(started, listening)
        self._backends = _children(self._process.pid)
        log.info("triton_ready", url=self.url, seconds=round(time.monotonic() - started, 1))

    def alive(self) -> bool:
        """Whether the server runs, with all the backend processes that it had when it became ready.

        One that dies (the kernel may kill it for memory) is never replaced: the server goes on saying that
        it is ready, and every request to the model fails.
        """
        if self._process is None or self._process.poll() is not None:
            return False
        return _children(self._process.pid) >= self._backends

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None  # noqa: S101 - it was started
        return self._process.pid

    def stop(self) -> None:
        """Stop the server; kills it if it doesn't end by itself."""
        if self._process is not None:
            # one without its backends waits for them when asked to end
            self._process.send_signal(signal.SIGTERM if self.alive() else signal.SIGKILL)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
            self._backends = 0
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    def _arguments(self, folder: ServerFolder) -> list[str]:
        ports = self._ports
        return [
            str(folder.server),
            f"--model-repository={self.repository}",
            f"--backend-directory={folder.backends}",
            "--http-address=127.0.0.1",
            "--grpc-address=127.0.0.1",
            "--metrics-address=127.0.0.1",
            f"--grpc-port={ports['grpc']}",
            f"--http-port={ports['http']}",
            f"--metrics-port={ports['metrics']}",
            "--exit-on-error=true",
            "--disable-auto-complete-config",
            f"--backend-config=python,shm-region-prefix-name={folder.shared_memory_prefix}",
            "--log-verbose=0",
        ]

    def _drain(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None  # noqa: S101 - Popen was given PIPE
        for line in process.stdout:
            self._tail.append(line.rstrip())
            if line[:1] in "WE" and line[1:5].isdigit() and not any(text in line for text in NO_GPU):
                log.warning("triton_says", line=line.rstrip()[:500])

    def _binds_all_ports(self) -> bool:
        """Whether it got to its last port: metrics come after gRPC and HTTP."""
        try:
            answer = httpx.get(self.metrics_url, timeout=2.0)
        except httpx.HTTPError:
            return False
        return answer.status_code == httpx.codes.OK

    def _wait_ready(self, started: float, listening: Thread) -> None:
        with InferenceClient(self.url, timeout_seconds=2.0) as client:
            while not (self._binds_all_ports() and client.ready()):
                code = self._process.poll() if self._process is not None else 0
                if code is None and time.monotonic() - started < self._start_timeout:
                    time.sleep(0.1)
                    continue
                why = f"ended with code {code}" if code is not None else "isn't ready in time"
                self.stop()
                listening.join(STOP_SECONDS)  # its last lines say why
                said = "\n".join(self._tail)
                if taken := _IN_USE.search(said):
                    raise _PortInUse(int(taken[1]), said)
                raise TritonStartError(f"the embedded Triton {why}; its last lines:\n{said}")


def _children(parent: int) -> int:
    """How many child processes of a process are running."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent_of_it = path.read_text(errors="replace").rpartition(")")[2].split()[:2]
        except OSError:  # it ended meanwhile
            continue
        count += state != "Z" and int(parent_of_it) == parent
    return count


def _environment() -> dict[str, str]:
    """The server's environment: its bundled libraries, libpython, and this virtual environment's Python."""
    libraries = [
        str(wheel_path("nvidia_pytriton.libs")),
        str(wheel_path("pytriton/tritonserver/lib")),
        str(sysconfig.get_config_var("LIBDIR")),
    ]
    inherited = os.environ.get("LD_LIBRARY_PATH")
    return {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(libraries + ([inherited] if inherited else [])),
        # the stub ignores PYTHONPATH; it takes the site-packages of the first python3 in PATH
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
    }
