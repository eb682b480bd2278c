"""What an embedded Triton needs on disk and in /dev/shm, and how it goes when its node was killed.

In: nvidia-pytriton's wheel, ``triton_models/backend``.  Out: a folder of temporary files, locked as long as
its node lives, with an executable server and its backends. 22 MB; ``kill -9`` leaves it, the memory that the
server shared with its backends, and backends that computed just then: they wait for ever. ``sweep`` takes
those away whose lock nobody has.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import sys
import tempfile
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path

import structlog

import triton_models
from node.errors import TritonStartError
from node.files import lock
from pipelines import shared_memory

log = structlog.get_logger(__name__)

MODELS_DIR = Path(triton_models.__file__).parent
PREFIX = "pacsnode-triton-"
LOCK = "lock"


def wheel_path(relative: str) -> Path:
    """A file or folder of nvidia-pytriton's wheel. Raises TritonStartError when that isn't installed."""
    try:
        distribution = metadata.distribution("nvidia-pytriton")
    except metadata.PackageNotFoundError:
        raise TritonStartError(
            "the package nvidia-pytriton, which carries tritonserver, isn't installed",
            hint="pip install nvidia-pytriton, or set triton.url to an external server",
            retryable=False,
        ) from None
    return Path(str(distribution.locate_file(relative)))


class ServerFolder:
    """One server's folder, made and locked.

    server: the executable.  backends: their folder.  shared_memory_prefix: of the names in /dev/shm that the
    server is to use. Raises TritonStartError when the wheel isn't there or doesn't know this Python.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._held = ExitStack()
        _lock(self.path, self._held)
        self.shared_memory_prefix = _shared_memory_prefix(self.path)
        try:
            self.server, self.backends = _assemble(self.path)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """With the programs that still run in it, and the memory they shared."""
        with self._held:
            _remove(self.path)


def sweep() -> None:
    """Remove the folders of servers whose node was killed, as ``ServerFolder.remove`` would have done."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            state = folder.lstat()
            if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid():
                continue
            # made without a lock by an earlier version, or being made: not ours to judge
            if not stat.S_ISREG((folder / LOCK).lstat().st_mode):
                continue
        except OSError:
            continue
        with ExitStack() as stack:
            try:
                lock(folder / LOCK, stack)
            except OSError:  # its node lives; or this file system can't lock
                continue
            _remove(folder)
            log.info("triton_folder_swept", folder=str(folder))


def _lock(folder: Path, stack: ExitStack) -> None:
    """Hold the folder's lock, which appears under its name only when it is held."""
    made = folder / f"{LOCK}.new"
    lock(made, stack)
    made.rename(folder / LOCK)


def _shared_memory_prefix(folder: Path) -> str:
    return f"pacsnode-{folder.name.removeprefix(PREFIX)}-"


def _remove(folder: Path) -> None:
    _kill_programs_below(folder)
    for left in shared_memory.FOLDER.glob(f"{_shared_memory_prefix(folder)}*"):
        left.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _kill_programs_below(folder: Path) -> None:
    """Backends whose server was killed while they computed: they wait for ever, and keep their memory."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            program = path.read_bytes().partition(b"\0")[0].decode(errors="replace")
            if program.startswith(f"{folder}/"):
                os.kill(int(path.parent.name), signal.SIGKILL)
        except OSError:  # it ended meanwhile
            continue


def _assemble(folder: Path) -> tuple[Path, Path]:
    """Lay out an executable server and a backend folder: the wheel's files aren't executable, may be
    read-only, and lack the stub of this Python beside the Python backend."""
    wheel = wheel_path("pytriton/tritonserver")
    server = folder / "tritonserver"
    shutil.copyfile(wheel / "bin" / "tritonserver", server)
    server.chmod(0o755)
    backends = folder / "backends"
    shutil.copytree(wheel / "backends" / "python", backends / "python")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel_path(f"pytriton/tritonserver/python_backend_stubs/{python}/triton_python_backend_stub")
    if not stub.is_file():
        raise TritonStartError(f"nvidia-pytriton has no backend stub for Python {python}", retryable=False)
    target = backends / "python" / stub.name
    shutil.copyfile(stub, target)
    target.chmod(0o755)
    shutil.copytree(MODELS_DIR / "backend" / "onnxruntime", backends / "onnxruntime")
    return server, backends
