"""Bad networks: a TCP proxy in front of each service that delays, throttles, stalls, truncates and resets.

In: connections.  Out: the same bytes, or fewer of them. What happens to a connection is drawn when it comes,
from a seed; ``calm`` ends it all, ``cut`` ends every connection and lets nobody in until ``mend``.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

HOST = "127.0.0.1"
CHUNK_BYTES = 1 << 16
#: what becomes of a connection, and how often of a hundred
FATES = {"clean": 62, "delay": 8, "throttle": 8, "stall": 2, "truncate": 10, "reset": 10}
#: after so many bytes, on average, a truncated or reset connection ends
ENDS_AFTER_BYTES = 60_000.0
STALL_SECONDS = 12.0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s


class _Ends(Exception):
    """The connection's fate has come."""


@dataclass
class _Fate:
    kind: str
    left: float = float("inf")
    delay_seconds: float = 0.0
    bytes_per_second: float = float("inf")

    @classmethod
    def drawn(cls, rng: random.Random) -> _Fate:
        kind = rng.choices(list(FATES), list(FATES.values()))[0]
        match kind:
            case "truncate" | "reset" | "stall":
                return cls(kind, left=rng.expovariate(1 / ENDS_AFTER_BYTES))
            case "delay":
                return cls(kind, delay_seconds=rng.uniform(0.001, 0.05))
            case "throttle":
                return cls(kind, bytes_per_second=rng.uniform(300_000, 3_000_000))
        return cls(kind)


class Proxy:
    """One port that leads to another. Lives in its network's thread."""

    def __init__(self, name: str, rng: random.Random) -> None:
        self.name = name
        self.target = 0  # a port, once it is known
        self.port = 0
        self.is_calm = False
        self.is_cut = False
        self.counts: Counter[str] = Counter()
        self._rng = rng
        self._open: set[asyncio.StreamWriter] = set()

    async def listen(self) -> None:
        server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = server.sockets[0].getsockname()[1]

    async def end_all(self) -> None:
        for writer in list(self._open):
            _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fate = _Fate("clean") if self.is_calm else _Fate.drawn(self._rng)
        self._open.add(writer)
        try:
            if self.is_cut:
                raise ConnectionError
            theirs_in, theirs_out = await asyncio.open_connection(HOST, self.target)
        except OSError:
            _reset(writer)
            self._open.discard(writer)
            return
        for one in (writer, theirs_out):
            one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open.add(theirs_out)
        pumps = [
            asyncio.ensure_future(self._pump(reader, theirs_out, fate)),
            asyncio.ensure_future(self._pump(theirs_in, writer, fate)),
        ]
        try:
            await asyncio.gather(*pumps)
        except (_Ends, OSError) as end:
            self.counts[fate.kind] += isinstance(end, _Ends)
            for one in (writer, theirs_out):
                if fate.kind != "truncate":
                    _reset(one)
        finally:
            for pump in pumps:
                pump.cancel()
            for one in (writer, theirs_out):
                one.close()
                self._open.discard(one)
            if fate.kind in ("delay", "throttle"):
                self.counts[fate.kind] += 1

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fate: _Fate) -> None:
        while data := await reader.read(CHUNK_BYTES):
            fate.left -= len(data)
            if fate.left < 0 and not self.is_calm:
                if fate.kind == "stall":
                    await asyncio.sleep(STALL_SECONDS)
                else:
                    writer.write(data[: int(fate.left)])
                    await writer.drain()
                raise _Ends
            if not self.is_calm:
                await asyncio.sleep(fate.delay_seconds + len(data) / fate.bytes_per_second)
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection so that the peer reads an error, not an end."""
    if not writer.is_closing():
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()


class Network:
    """All proxies, in a thread of their own, until ``stop``."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)
        self._thread.start()
        self.proxies: list[Proxy] = []

    def proxy(self, name: str) -> Proxy:
        """A new one; its ``target`` is to be set."""
        made = Proxy(name, random.Random(f"{self._seed} {name}"))  # noqa: S311
        self._do(made.listen())
        self.proxies.append(made)
        return made

    def cut(self, proxy: Proxy) -> None:
        """Nothing gets through until ``mend``."""
        proxy.is_cut = True
        proxy.counts["cut"] += 1
        self._do(proxy.end_all())

    def mend(self, proxy: Proxy) -> None:
        proxy.is_cut = False

    def calm(self) -> None:
        """From now on nothing happens to anything."""
        for proxy in self.proxies:
            proxy.is_calm, proxy.is_cut = True, False

    @property
    def counts(self) -> dict[str, int]:
        """What was done to connections, over all proxies."""
        return dict(sorted(sum((proxy.counts for proxy in self.proxies), Counter()).items()))

    def stop(self) -> None:
        for proxy in self.proxies:
            self._do(proxy.end_all())
        self._do(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _do(self, work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)
