"""Mutated associations against a receiver: it answers or aborts, serves the others, and leaks nothing.

    python -m tests.integration.fuzz_receive [--count 10000] [--seed N] [--only N] [--kind NAME]

Each association is one of ``mutations.KINDS``. The seed is printed; association N of a seed always has
the same bytes, and ``--only N`` sends it alone. Meanwhile a good sender sends whole series. At the end
everything that was acknowledged must be stored as it was sent, those series complete, and descriptors,
threads and memory flat.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from sqlalchemy import create_engine, select

from node.database import instances, series
from node.receive.process import ALLOCATOR
from tests.integration.mutation import REQUEST, Mutation, uid_numbers
from tests.integration.mutations import KINDS
from tests.integration.raw_dataset import encode, image_elements
from tests.integration.raw_scu import (
    ABORT,
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    RELEASE_RP,
    Answers,
    RawScu,
    checked_answers,
    read_pdus,
    sent_stores,
    store_message,
)
from tests.integration.receiving import dataset_bytes

#: the receiver drops a stalled peer after 5 s; what takes longer than this got neither answer nor abort
PATIENCE_SECONDS = 20.0
LAST_WORDS_SECONDS = 0.03
CHECK_EVERY = 250
#: caches and the allocator have settled after so many; from then on nothing grows
SETTLED_AFTER = 2000
GOOD_SLICES = 12
_SPOOLED = re.compile(r"spool/(series/[0-9a-f]{32}|quarantine)/[0-9a-f]{32}\.dcm")
_OURS = re.compile(
    r"audit(/audit-receive\.log)?|receive\.lock|spool(/incoming|/journal(/\d+)?(/\d{4}\.segment)?)?"
    r"|node\.sqlite(-wal|-shm)?"
)


@dataclass(frozen=True)
class Resources:
    """Of the receiver's process."""

    descriptors: int
    threads: int
    rss_kb: int

    def __str__(self) -> str:
        return f"{self.descriptors} descriptors, {self.threads} threads, {self.rss_kb // 1024} MB"


@dataclass
class Receiver:
    """A receiver in a process of its own, deep in ``folder`` so that a path that leads out of its data_dir
    still ends where it is seen."""

    folder: Path
    acknowledged: dict[str, bytes] = field(default_factory=dict, repr=False)
    good_series: list[str] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.data_dir = self.folder / "a/b/c/var"
        self.data_dir.parent.mkdir(parents=True)
        self._log = (self.folder / "log").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.receiving", str(self.data_dir)],
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=Path(__file__).parents[2],
            text=True,
            env=os.environ | ALLOCATOR,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def play(self, mutation: Mutation) -> str:
        """Send one association, check what comes back, and remember what was acknowledged.

        Returns how it ended, and with which statuses.
        """
        received, ending = _exchange(self.port, mutation)
        answers = checked_answers(received)
        sent = sent_stores(b"".join(mutation.pieces))
        assert len(answers.stores) <= len(sent), "more answers than requests"
        for (status, uid), dataset in zip(answers.stores, sent, strict=False):
            if status == 0:
                assert self.acknowledged.setdefault(uid, dataset) == dataset, f"{uid} acknowledged twice"
        statuses = [status for status, _ in answers.stores]
        if mutation.statuses is not None:
            assert len(statuses) == len(mutation.statuses), (statuses, ending)
            for status, allowed in zip(statuses, mutation.statuses, strict=True):
                assert status in allowed, f"0x{status:04X} is none of {[hex(s) for s in allowed]}"
        return " ".join([_ending(answers, ending), *sorted({f"0x{status:04X}" for status in statuses})])

    def check(self) -> None:
        """A good sender is served at once."""
        assert self._process.poll() is None, "the receiver ended"
        self.send_good_series(slices=1)

    def send_good_series(self, *, slices: int = GOOD_SLICES) -> None:
        number = len(self.good_series)
        series_uid = f"1.2.826.0.1.3680043.9.9999.1.{number}"
        with RawScu(self.port) as scu:
            for at in range(slices):
                uid = f"{series_uid}.{at}"
                dataset = encode(image_elements(uid, series_uid, pixels=bytes([at]) * 2000))
                scu.socket.sendall(store_message(uid, dataset))
                assert scu.status() == 0x0000
                self.acknowledged[uid] = dataset
            scu.release()
        self.good_series.append(series_uid)

    def resources(self) -> Resources:
        """Once what has ended is gone."""
        time.sleep(1.0)
        folder = Path(f"/proc/{self._process.pid}")
        status = dict(
            line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line
        )
        descriptors = sum(1 for _ in (folder / "fd").iterdir())
        return Resources(descriptors, int(status["Threads"]), int(status["VmRSS"].split()[0]))

    def verify(self) -> Counter[str]:
        """What was acknowledged is stored as it was sent, everything else has its reason, every
        good series is complete, and nothing lies where it doesn't belong. Returns what became of each."""
        self._wait_for_filing()
        engine = create_engine(f"sqlite:///{self.data_dir / 'node.sqlite'}")
        with engine.connect() as connection:
            rows = connection.execute(select(instances)).all()
            completed = {row.series_instance_uid: row for row in connection.execute(select(series))}
        engine.dispose()
        stored = {row.sop_instance_uid: row for row in rows if row.state == "stored"}
        for uid, dataset in self.acknowledged.items():
            assert dataset_bytes(self.data_dir / stored[uid].path) == dataset, f"{uid} isn't what was sent"
        for row in rows:
            assert (row.state == "quarantined") == (row.reason_code is not None) == bool(row.reason)
        for uid in self.good_series:
            assert completed[uid].version == 1, f"{uid} was taken for complete too early"
        self._verify_places({row.path for row in rows})
        return Counter(row.reason_code or row.state for row in rows)

    def _wait_for_filing(self) -> None:
        """Filing lags behind the answer, and judging behind filing."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        engine = create_engine(f"sqlite:///{self.data_dir / 'node.sqlite'}")
        judged = select(series.c.series_instance_uid).where(series.c.state != "open")
        filed = select(instances.c.sop_instance_uid).where(instances.c.state == "stored")
        try:
            while True:
                with engine.connect() as connection:
                    open_series = set(self.good_series) - set(connection.execute(judged).scalars())
                    missing = set(self.acknowledged) - set(connection.execute(filed).scalars())
                if not open_series and not missing:
                    return
                assert time.monotonic() < deadline, (
                    f"{len(open_series)} good series aren't complete, "
                    f"{len(missing)} acknowledged instances aren't stored"
                )
                time.sleep(0.1)
        finally:
            engine.dispose()

    def _verify_places(self, rows: set[str]) -> None:
        inside: set[str] = set()
        for path in self.folder.rglob("*"):
            if self.data_dir in path.parents:
                inside.add(str(path.relative_to(self.data_dir)))
            else:
                assert path == self.folder / "log" or path in (self.data_dir, *self.data_dir.parents), path
        files = {name for name in inside if name.endswith(".dcm")}
        assert all(_SPOOLED.fullmatch(name) for name in files)
        assert files == rows, "files without a row, or rows without a file"
        folders = {str(Path(name).parent) for name in files} | {"spool/series", "spool/quarantine"}
        strange = {name for name in inside - files - folders if not _OURS.fullmatch(name)}
        assert all(name.startswith("spool/incoming/") for name in strange), strange
        assert not Path("/tmp/pwned").exists()
        text = self.log_text()
        assert "Exception in thread" not in text, "a thread died"
        assert "Yamada" not in text and "Hong^Gildong" not in text, "patient names in the log"

    def log_text(self) -> str:
        self._log.flush()
        return (self.folder / "log").read_text(encoding="utf-8")


def _exchange(port: int, mutation: Mutation) -> tuple[bytes, str]:
    """Everything that came back, and whether the connection was closed or reset."""
    received = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            peer.sendall(mutation.request)
            if mutation.waits:
                # what comes before the answer violates the state machine; a torn request may get none
                peer.settimeout(PATIENCE_SECONDS if mutation.request == REQUEST else LAST_WORDS_SECONDS)
                with contextlib.suppress(TimeoutError):
                    received += peer.recv(65536)
                peer.settimeout(PATIENCE_SECONDS)
            for piece in mutation.pieces:
                peer.sendall(piece)
            if _take_last_words(peer, received):
                return bytes(received), "closed"
            peer.shutdown(socket.SHUT_WR)
            while more := peer.recv(65536):
                received += more
        except TimeoutError as error:
            raise AssertionError("neither answered nor aborted nor closed") from error
        except OSError:  # it closed while we were sending
            return bytes(received), "reset"
    return bytes(received), "closed"


def _take_last_words(peer: socket.socket, received: bytearray) -> bool:
    """Whether it says that it is done; False after a moment of silence: it may wait for what won't come."""
    peer.settimeout(LAST_WORDS_SECONDS)
    try:
        while {kind for kind, _ in read_pdus(bytes(received))}.isdisjoint((RELEASE_RP, ABORT, ASSOCIATE_RJ)):
            more = peer.recv(65536)
            if not more:
                return False
            received += more
    except TimeoutError:
        return False
    finally:
        peer.settimeout(PATIENCE_SECONDS)
    return True


def _ending(answers: Answers, ending: str) -> str:
    for kind, name in ((ASSOCIATE_RJ, "rejected"), (ABORT, "aborted"), (RELEASE_RP, "released")):
        if kind in answers.kinds:
            return name
    return ending if ASSOCIATE_AC in answers.kinds else f"{ending} unanswered"


def mutation_of(seed: int, number: int, kind: str | None = None) -> tuple[str, Mutation]:
    """Association ``number`` of a seed."""
    rng = Random(f"{seed} {number}")  # noqa: S311 repeatable
    uid_numbers.seed(f"{seed} {number}")
    name = rng.choice(sorted(KINDS))
    return kind or name, KINDS[kind or name](rng)


@dataclass
class Fuzzer:
    """A seed's associations, sent to one receiver beside a good sender."""

    receiver: Receiver
    seed: int
    kind: str | None = None
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)

    def run(self, count: int, report: Callable[[str], object] = lambda _: None) -> None:
        stop = threading.Event()
        failures: list[BaseException] = []
        beside = threading.Thread(target=self._send_good_series, args=(stop, failures), name="good sender")
        beside.start()
        settled: Resources | None = None
        try:
            for number in range(count):
                self.send(number)
                if number % CHECK_EVERY == CHECK_EVERY - 1:
                    assert not failures, f"the good sender: {failures[0]!r}"
                    if settled is None and number >= min(SETTLED_AFTER, count // 2):
                        settled = self.receiver.resources()
                    report(f"{number + 1} associations, {self.receiver.resources()}")
        finally:
            stop.set()
            beside.join()
        assert not failures, f"the good sender: {failures[0]!r}"
        self.receiver.check()
        ended = self.receiver.resources()
        if settled is not None:
            assert ended.descriptors <= settled.descriptors + 5, "descriptors leak"
            assert ended.threads <= settled.threads + 2, "threads leak"
            assert ended.rss_kb <= settled.rss_kb + 30_000, "memory leaks"

    def send(self, number: int) -> None:
        kind, mutation = mutation_of(self.seed, number, self.kind)
        try:
            outcome = self.receiver.play(mutation)
        except AssertionError as error:
            raise AssertionError(f"seed {self.seed}, association {number}, {kind}: {error}") from error
        self.outcomes.setdefault(kind, Counter())[outcome] += 1

    def _send_good_series(self, stop: threading.Event, failures: list[BaseException]) -> None:
        while not stop.wait(0.2):
            try:
                self.receiver.send_good_series()
            except BaseException as error:  # a thread's boundary: the fuzzer's thread reports it
                failures.append(error)
                return


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--only", type=int, metavar="N", help="send association N alone")
    parser.add_argument("--kind", choices=sorted(KINDS), help="associations of this kind only")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-receive-") as folder:
        receiver = Receiver(Path(folder) / "receiver")
        fuzzer = Fuzzer(receiver, arguments.seed, arguments.kind)
        try:
            if arguments.only is not None:
                fuzzer.send(arguments.only)
            else:
                fuzzer.run(arguments.count, lambda line: print(line, flush=True))
            kept = receiver.verify()
        finally:
            receiver.stop()
    for kind, outcomes in sorted(fuzzer.outcomes.items()):
        print(f"{kind}: {', '.join(f'{count} {outcome}' for outcome, count in outcomes.most_common())}")
    print(f"acknowledged and stored as sent: {len(receiver.acknowledged)}; good series: all of", end=" ")
    print(f"{len(receiver.good_series)} complete; kept: {dict(kept)}")
    total = sum(sum(outcomes.values()) for outcomes in fuzzer.outcomes.values())
    print(f"{total} associations survived in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
