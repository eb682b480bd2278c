"""Memory that this process and a Triton on the same host both map: tensors pass without messages.

A region is made as a file of /dev/shm, which the server maps when the region is registered (Triton's system
shared memory extension), and is unlinked at once: nothing is left there however this process ends. What the
server has mapped for a client that was killed is given back by the next client. Where the server can't have
the file (another host, a container with a /dev/shm of its own, another user's), nothing is lent, and
tensors go in messages.
"""

from __future__ import annotations

import ipaddress
import itertools
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

FOLDER = Path("/dev/shm")  # noqa: S108 - where shm_open puts it (Linux)
PREFIX = "pacsnode-tensors-"
#: what Triton says of a region that it doesn't give back yet
IN_USE = "currently in use"
#: for so long a region may be in use after the answer: the server lets go of a request a moment later
LETTING_GO_SECONDS = 1.0
#: tensors of a region begin at multiples of so many bytes, a cache line's
ALIGNMENT = 64

_numbers = itertools.count()
#: regions that clients of this process use; what else a server has of this process, it refused to give back
_in_use: set[str] = set()


@dataclass
class Region:
    """name: as the server knows it.  memory: uint8 (bytes,), mapped by both sides."""

    name: str
    memory: NDArray[np.uint8]
    _taken: int = field(default=0, init=False)

    def take(self, size: int) -> int:
        """Offset of so many bytes that aren't taken yet."""
        offset = self._taken
        self._taken += padded(size)
        return offset

    def array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        return np.ndarray(shape, dtype, buffer=self.memory.data, offset=offset)

    def clear(self) -> None:
        self._taken = 0


def padded(size: int) -> int:
    """What a tensor of ``size`` bytes takes of a region."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class SharedMemory:
    """The regions that one client shares with one server: one for each request under way, used again."""

    def __init__(self, client: grpcclient.InferenceServerClient, url: str, *, timeout_seconds: float) -> None:
        self._client = client
        self._timeout = timeout_seconds
        self._offered = _is_loopback(url)
        self._swept = False
        self._idle: list[Region] = []
        self._registered: list[str] = []

    @contextmanager
    def lend(self, size: int) -> Iterator[Region | None]:
        """A region of at least ``size`` bytes for one request; None where the server can't share memory.

        After a failure the region isn't lent again: the server may be writing to it still.
        """
        region = self._region(size)
        yield region
        if region is not None:
            region.clear()
            self._idle.append(region)

    def close(self) -> None:
        self._idle.clear()
        while self._registered:
            self._give_back(self._registered.pop(), patience_seconds=LETTING_GO_SECONDS)

    def _region(self, size: int) -> Region | None:
        try:
            region = self._idle.pop()
        except IndexError:
            pass
        else:
            if len(region.memory) >= size:
                return region
            self._registered.remove(region.name)
            self._give_back(region.name, patience_seconds=LETTING_GO_SECONDS)
        if not self._offered:
            return None
        try:
            return self._create(size)
        except (OSError, InferenceServerException):  # no space, or the server doesn't see our files
            self._offered = False
            return None

    def _create(self, size: int) -> Region:
        if not self._swept:
            self._swept = True
            self._sweep()
        size = max(size, ALIGNMENT)  # nothing can't be mapped
        name = f"{PREFIX}{_namespace()}-{os.getpid()}-{next(_numbers)}"
        path = FOLDER / name
        _in_use.add(name)  # before there is a file: another client of this process may sweep now
        try:
            memory = self._map(path, size)
        except BaseException:
            _in_use.discard(name)
            raise
        self._registered.append(name)
        return Region(name, memory)

    def _map(self, path: Path, size: int) -> NDArray[np.uint8]:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            os.posix_fallocate(handle, 0, size)  # or a full /dev/shm would kill whoever writes (SIGBUS)
            memory = np.frombuffer(mmap.mmap(handle, size), np.uint8)
            self._client.register_system_shared_memory(
                path.name, f"/{path.name}", size, client_timeout=self._timeout
            )
        finally:
            os.close(handle)
            path.unlink()
        return memory

    def _give_back(self, name: str, *, patience_seconds: float = 0.0) -> None:
        """Refused while a request uses it (one that took too long): then the client that sweeps does it."""
        _in_use.discard(name)
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                self._client.unregister_system_shared_memory(name, client_timeout=self._timeout)
            except InferenceServerException as error:
                if IN_USE not in str(error.message()) or time.monotonic() >= deadline:
                    return
                time.sleep(0.01)
            else:
                return

    def _sweep(self) -> None:
        """Give back what clients of this host had that were killed."""
        for left in FOLDER.glob(f"{PREFIX}*"):  # killed between making and registering it
            if _orphaned(left.name):
                left.unlink(missing_ok=True)
        status = self._client.get_system_shared_memory_status(as_json=True, client_timeout=self._timeout)
        for name in status.get("regions", {}):
            if _orphaned(name):
                self._give_back(name)


def _is_loopback(url: str) -> bool:
    host = url.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _namespace() -> int:
    """Process ids mean something within a namespace only (containers of a pod have several)."""
    return Path("/proc/self/ns/pid").stat().st_ino


def _orphaned(name: str) -> bool:
    """Whether a region is of a process of this namespace that is gone, or of this one and no longer used."""
    namespace, _, rest = name.removeprefix(PREFIX).partition("-")
    process = rest.partition("-")[0]
    if not name.startswith(PREFIX) or namespace != str(_namespace()) or not process.isdigit():
        return False
    if int(process) == os.getpid():
        return name not in _in_use
    return not Path("/proc", process).exists()
