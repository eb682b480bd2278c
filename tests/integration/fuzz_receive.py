"""Mutated associations against a receiver: it answers or aborts, serves the others, and leaks nothing.

    python -m tests.integration.fuzz_receive [--count 10000] [--seed N]

Each association is a valid one (negotiation, C-STORE and C-ECHO requests, release) with random damage: bytes
changed, removed, repeated or inserted, lengths made absurd, the stream cut anywhere and sent in odd pieces.
Every now and then a good sender must be served. The seed is printed; the same seed sends the same bytes.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pydicom.uid import generate_uid
from sqlalchemy import create_engine, select

from node.database import instances
from node.receive.process import ALLOCATOR
from tests.integration.raw_scu import (
    ECHO_CONTEXT,
    ECHO_REQUEST,
    RawScu,
    association_request,
    pdu,
    pdv,
    store_message,
)
from tests.integration.receiving import ct_slice, encoded

RELEASE = struct.pack(">BBL", 5, 0, 4) + bytes(4)
CHECK_EVERY = 250
#: caches and the allocator have settled after so many; from then on nothing grows
SETTLED_AFTER = 2000


class Fuzzer:
    """One receiver process and what is sent to it."""

    def __init__(self, seed: int, data_dir: Path) -> None:
        self.rng = random.Random(seed)  # noqa: S311 repeatable
        self._data_dir = data_dir
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.receiving", str(data_dir)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
            text=True,
            env=os.environ | ALLOCATOR,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self._request = association_request()
        self._image = encoded(ct_slice("1.2.3", 1))
        self._good = 0

    def run(self, count: int) -> None:
        settled: tuple[int, int] | None = None
        for number in range(count):
            self._send(*self._mutated())
            if number % CHECK_EVERY == CHECK_EVERY - 1:
                self.check()
                if settled is None and number >= min(SETTLED_AFTER, count // 2):
                    settled = self._resources()
                print(
                    f"{number + 1} associations, descriptors and RSS in KB: {self._resources()}", flush=True
                )
        self.check()
        descriptors, rss_kb = self._resources()
        if settled is not None:
            assert descriptors <= settled[0] + 5, "descriptors leak"
            assert rss_kb <= settled[1] + 30_000, "memory leaks"

    def check(self) -> None:
        """A good sender is served, and everything that was kept has its place or its reason."""
        assert self._process.poll() is None, "the receiver ended"
        self._good += 1
        image = ct_slice(generate_uid(entropy_srcs=["good", str(self._good)]), 1)
        with self._associate() as scu:
            scu.socket.sendall(store_message(image.SOPInstanceUID, encoded(image)))
            assert scu.status() == 0x0000
            scu.socket.sendall(RELEASE)
            assert scu.pdu()[0] == 6

    def _associate(self) -> RawScu:
        """Asks again while the receiver is still busy with what was damaged (rejected-transient)."""
        deadline = time.monotonic() + 15.0
        while True:
            try:
                return RawScu(self.port)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def rows(self) -> list[tuple[str, str | None]]:
        engine = create_engine(f"sqlite:///{self._data_dir / 'node.sqlite'}")
        with engine.connect() as connection:
            found = connection.execute(select(instances.c.state, instances.c.reason_code)).all()
        engine.dispose()
        return [(row.state, row.reason_code) for row in found]

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _instance(self, uid: str) -> bytes:
        return encoded(ct_slice("1.2.3", 1, SOPInstanceUID=uid))

    def _mutated(self) -> tuple[bytes, list[bytes]]:
        """The request of one association, and the pieces in which the rest is sent."""
        rng = self.rng
        uid = generate_uid(entropy_srcs=["fuzz", str(rng.random())])
        messages = [
            store_message(uid, self._instance(uid), size=rng.choice((7, 100, 16_000))),
            store_message("1.2.3.4", self._image[: rng.randrange(len(self._image))]),
            pdu(pdv(ECHO_REQUEST, 3, ECHO_CONTEXT)),
        ]
        rng.shuffle(messages)
        # mostly after the negotiation, which would otherwise fail nearly always
        head, body = self._request, b"".join(messages) + RELEASE
        if rng.random() < 0.2:
            head = self._damaged(head)
        else:
            body = self._damaged(body)
        cuts = sorted(rng.randrange(len(body) + 1) for _ in range(rng.randrange(4)))
        return head, [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]

    def _damaged(self, stream: bytes) -> bytes:
        rng, data = self.rng, bytearray(stream)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            at = rng.randrange(len(data) or 1)
            match rng.randrange(6):
                case 0:
                    data[at : at + 1] = bytes([rng.randrange(256)])
                case 1:
                    del data[at : at + rng.choice((1, 4, 100))]
                case 2:
                    data[at:at] = rng.randbytes(rng.choice((1, 6, 300)))
                case 3:
                    data[at:at] = data[at : at + rng.choice((6, 50, 1000))]
                case 4:
                    data[at : at + 4] = struct.pack(">L", rng.choice((0, 1, 2**16, 2**31, 2**32 - 1)))
                case 5:
                    del data[at:]
        return bytes(data)

    def _send(self, request: bytes, pieces: list[bytes]) -> None:
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as peer:
            try:
                peer.sendall(request)
                if request == self._request:
                    peer.recv(65536)  # the answer: what comes before it violates the state machine
                for piece in pieces:
                    peer.sendall(piece)
                peer.shutdown(socket.SHUT_WR)
                while peer.recv(65536):
                    pass
            except (ConnectionError, OSError) as error:
                assert not isinstance(error, TimeoutError), "no answer and no abort"

    def _resources(self) -> tuple[int, int]:
        """Open descriptors and resident KB, once what has ended is gone."""
        time.sleep(1.0)
        folder = Path(f"/proc/{self._process.pid}")
        rows = (folder / "status").read_text().splitlines()
        rss = next(int(row.split()[1]) for row in rows if row.startswith("VmRSS"))
        return sum(1 for _ in (folder / "fd").iterdir()), rss


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="fuzz-receive-") as folder:
        fuzzer = Fuzzer(arguments.seed, Path(folder) / "var")
        try:
            fuzzer.run(arguments.count)
            rows = fuzzer.rows()
        finally:
            fuzzer.stop()
    outcomes = {outcome: rows.count(outcome) for outcome in sorted(set(rows), key=str)}
    print(f"{arguments.count} associations survived; kept: {outcomes}")


if __name__ == "__main__":
    main()
