"""What an embedded Triton needs on disk and in /dev/shm, and how it goes when its node was killed.

In: nvidia-pytriton's wheel, ``triton_models/backend``.  Out: a folder of temporary files, locked as long as
its node lives, with an executable server and its backends. 22 MB; ``kill -9`` leaves it, the memory that the
server shared with its backends, and backends that computed just then: they wait for ever. ``sweep`` takes
those away whose lock nobody has.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import stat
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import structlog

import triton_models
from node.errors import TritonStartError

log = structlog.get_logger(__name__)

MODELS_DIR = Path(triton_models.__file__).parent
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where shm_open puts it (Linux)
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
        self._lock = _locked(self.path)
        self.shared_memory_prefix = _shared_memory_prefix(self.path)
        try:
            self.server, self.backends = _assemble(self.path)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """With the programs that still run in it, and the memory they shared."""
        _remove(self.path)
        os.close(self._lock)


def sweep() -> None:
    """Remove the folders of servers whose node was killed, as ``ServerFolder.remove`` would have done."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            state = folder.lstat()
            if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid():
                continue
            # made without a lock by an earlier version, or being made: not ours to judge
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # its node lives; or this file system can't lock
            continue
        else:
            _remove(folder)
            log.info("triton_folder_swept", folder=str(folder))
        finally:
            os.close(handle)


def _locked(folder: Path) -> int:
    """A handle that holds the folder's lock, which appears under its name only when it is held."""
    made = folder / f"{LOCK}.new"
    handle = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    made.rename(folder / LOCK)
    return handle


def _shared_memory_prefix(folder: Path) -> str:
    return f"pacsnode-{folder.name.removeprefix(PREFIX)}-"


def _remove(folder: Path) -> None:
    _kill_programs_below(folder)
    for left in SHARED_MEMORY.glob(f"{_shared_memory_prefix(folder)}*"):
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
