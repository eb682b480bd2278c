"""How fast we receive, against DCMTK's storescp and Orthanc in the same run.

The same 300 CT slices (512 x 512 x 16 bit, Explicit VR Little Endian) are sent by DCMTK's storescu over one
association and split over four, to each receiver in turn, for several rounds. Every receiver is empty when a
round starts, and is sent one slice of another series before the clock runs. Times are of the senders, from
their start to their end. Ours syncs every instance with its index entry (the journal's record) to disk before
it answers, and makes files and rows of them a moment later; storescp promises no durability.

Small PDUs: the same over one association with PDUs of 4 and 16 KiB, against storescp.
Default sender: the same from a storescu that nobody has tuned: Nagle's algorithm, its own PDUs and buffers.
Slow senders: 20 others trickle one slice each at 20 KB/s while the 300 slices are sent over one association;
how much longer these take than alone.
Growth: 50,000 small slices, 1,000 an association; the time of the last five thousand over that of the first.
Memory: the receiver's processes at their peak, after 600 slices over 50 associations at once.

    python -m tests.benchmarks.ingest [--rounds 5] [--without-orthanc]
        [--only speed|small-pdus|default-sender|slow|growth|memory]

Prints a table and writes build/bench/ingest.json; with --only, its figures are added to those there.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from node.triton_server import free_port
from tests.benchmarks.taking import Measure, take
from tests.integration.raw_scu import association_request, store_message
from tests.integration.receiving import CALLING
from tests.integration.running import CALLING as SCU_AE_TITLE
from tests.integration.running import Pacs, RunningNode, orthanc_program
from tests.processes import children, kilobytes, peak_kilobytes, read

STORESCU, STORESCP = "/usr/bin/storescu", "/usr/bin/storescp"
SLICES = 300
ASSOCIATIONS = (1, 4)
SMALL_PDUS = (4096, 16384)
SLOW_SENDERS = 20
GROWTH_INSTANCES = 50_000
MEASURES = ("speed", "small-pdus", "default-sender", "slow", "growth", "memory")
MEMORY_ASSOCIATIONS, MEMORY_INSTANCES = 50, 600
TUNED = {"TCP_NODELAY": "1", "TCP_BUFFER_LENGTH": "131072"}
ENVIRONMENT = {**os.environ, **TUNED}


def make_slices(
    folder: Path, count: int = SLICES, *, series: str = "series", pixels: bytes | None = None
) -> list[Path]:
    """Write ``count`` square slices of one CT series. pixels: of each; otherwise 512 x 512 that differ."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 4096, (512, 512), dtype=np.uint16)
    study, series_uid = (
        generate_uid(entropy_srcs=["bench study"]),
        generate_uid(entropy_srcs=["bench", series]),
    )
    paths = []
    for number in range(count):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = CTImageStorage
        image.SOPInstanceUID = generate_uid(entropy_srcs=["bench", series, str(number)])
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series_uid
        image.Modality, image.PatientID, image.PatientName = "CT", "BENCH", "Bench^Ingest"
        image.StudyDate, image.StudyTime, image.AccessionNumber = "20260101", "120000", "1"
        image.InstanceNumber, image.ImagePositionPatient = number + 1, [0, 0, float(number)]
        image.Rows = image.Columns = 512 if pixels is None else math.isqrt(len(pixels) // 2)
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit, image.PixelRepresentation = 15, 0
        image.PixelData = np.roll(noise, number).tobytes() if pixels is None else pixels
        paths.append(folder / f"{number:04d}.dcm")
        image.save_as(paths[-1], enforce_file_format=True)
    return paths


def send(
    port: int, called: str, paths: Sequence[Path], associations: int, *, pdu_bytes: int | None = 131072
) -> float:
    """Seconds that the senders take. pdu_bytes: None for a sender that nobody has tuned."""
    tuned = [] if pdu_bytes is None else ["--max-send-pdu", str(pdu_bytes)]
    environment = {**os.environ, **({} if pdu_bytes is None else TUNED)}
    command = [STORESCU, "-aet", "STORESCU", "-aec", called, *tuned, "127.0.0.1", str(port)]
    shares = [[str(path) for path in paths[i::associations]] for i in range(associations)]
    started = time.perf_counter()
    senders = [subprocess.Popen([*command, *share], env=environment) for share in shares]
    codes = [sender.wait() for sender in senders]
    seconds = time.perf_counter() - started
    if any(codes):
        raise RuntimeError(f"storescu to {called} ended with {codes}")
    return seconds


@contextmanager
def dcmtk(folder: Path, _peaks: list[int]) -> Iterator[tuple[int, str]]:
    port = free_port()
    folder.mkdir()
    command = [STORESCP, "--fork", "--max-pdu", "131072", "-aet", "DCMTK", "-od", str(folder), str(port)]
    with subprocess.Popen(command, env=ENVIRONMENT) as process:
        time.sleep(0.5)
        yield port, "DCMTK"
        process.terminate()


@contextmanager
def orthanc(folder: Path, _peaks: list[int]) -> Iterator[tuple[int, str]]:
    folder.mkdir()
    archive = Pacs(orthanc_program(), folder)
    yield archive.port, "ARCHIVE"
    archive.stop()


@contextmanager
def ours(folder: Path, peaks: list[int], **receive: object) -> Iterator[tuple[int, str]]:
    """The whole node; Triton and the destination are left out, no route matches. receive: its options."""
    sections: dict[str, Any] = {
        "routes": [],
        "series": {"quiet_seconds": 600.0, "released_quiet_seconds": 600.0},
        "receive": {"allowed_calling_ae_titles": [SCU_AE_TITLE], "free_disk_floor_bytes": 0, **receive},
    }
    node = RunningNode(folder, triton_url="127.0.0.1:1", pacs_port=1, **sections).start()
    try:
        yield node.port, "PACSNODE"
        assert node.process is not None
        (receiver,) = [pid for pid in children(node.process.pid) if "node.receive" in read(pid, "cmdline")]
        peaks.append(peak_bytes(receiver))
    finally:
        node.stop()


RECEIVERS: dict[str, Callable[[Path, list[int]], AbstractContextManager[tuple[int, str]]]] = {
    "ours": ours,
    "dcmtk": dcmtk,
    "orthanc": orthanc,
}


def peak_bytes(receiver: int) -> int:
    """The receiver's peak resident memory, and what each of its movers had beyond what it shares with it."""
    total = peak_kilobytes(receiver)
    for mover in children(receiver):
        memory = read(mover, "smaps_rollup")
        shared = kilobytes(memory, "Shared_Clean") + kilobytes(memory, "Shared_Dirty")
        total += peak_kilobytes(mover) - shared
    return total * 1024


def measure_speed(work: Path, rounds: int, names: Sequence[str]) -> dict[str, object]:
    paths, warm_up = make_slices(work / "slices"), make_slices(work / "warm-up", 1, series="warm-up")
    seconds: dict[tuple[str, int], list[float]] = {(name, n): [] for name in names for n in ASSOCIATIONS}
    peaks: list[int] = []
    total_bytes = sum(path.stat().st_size for path in paths)
    for number in range(rounds):
        for associations in ASSOCIATIONS:
            for name in names:
                folder = work / f"{name}-{number}-{associations}"
                with RECEIVERS[name](folder, peaks) as (port, called):
                    send(port, called, warm_up, 1)
                    seconds[name, associations].append(send(port, called, paths, associations))
                shutil.rmtree(folder)
                print(
                    f"round {number + 1}, {associations} association(s), {name}: "
                    f"{seconds[name, associations][-1]:.3f} s",
                    flush=True,
                )
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    result: dict[str, object] = {
        f"ratio_vs_{name}": {str(n): round(medians[name, n] / medians["ours", n], 3) for n in ASSOCIATIONS}
        for name in names
        if name != "ours"
    }
    fastest = min(medians["ours", n] for n in ASSOCIATIONS)
    return result | {
        "listener_peak_rss_bytes": max(peaks),
        "instances_per_second": round(len(paths) / fastest, 1),
        "megabytes_per_second": round(total_bytes / fastest / 1e6, 1),
        "fsync": True,
        "rounds": rounds,
        "seconds": {f"{name}-{n}": [round(s, 4) for s in seconds[name, n]] for name, n in seconds},
    }


def measure_small_pdus(work: Path, rounds: int) -> dict[str, object]:
    """Seconds of storescp over ours, by PDU size."""
    ratios = {}
    for pdu_bytes in SMALL_PDUS:
        medians = _medians(work / str(pdu_bytes), rounds, ("ours", "dcmtk"), pdu_bytes=pdu_bytes)
        ratios[str(pdu_bytes)] = round(medians["dcmtk"] / medians["ours"], 3)
    return {"ratio_vs_dcmtk_by_pdu_bytes": ratios}


def measure_default_sender(work: Path, rounds: int, names: Sequence[str]) -> dict[str, object]:
    """Seconds of the others over ours."""
    medians = _medians(work / "default", rounds, names, pdu_bytes=None)
    return {
        f"default_sender_ratio_vs_{name}": round(medians[name] / medians["ours"], 3)
        for name in names
        if name != "ours"
    }


def _medians(work: Path, rounds: int, names: Sequence[str], *, pdu_bytes: int | None) -> dict[str, float]:
    """Seconds over one association by receiver, rounds alternating. pdu_bytes: of ``send``."""
    paths, warm_up = make_slices(work / "slices"), make_slices(work / "warm-up", 1, series="warm-up")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            folder = work / f"{name}-{number}"
            with RECEIVERS[name](folder, []) as (port, called):
                send(port, called, warm_up, 1)
                seconds[name].append(send(port, called, paths, 1, pdu_bytes=pdu_bytes))
            shutil.rmtree(folder)
            print(f"PDUs of {pdu_bytes or 'its own'}, {name}: {seconds[name][-1]:.3f} s", flush=True)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure_slow(work: Path, rounds: int) -> dict[str, object]:
    """Seconds beside slow senders over seconds alone."""
    seconds: dict[str, list[float]] = {"alone": [], "beside": []}
    for number in range(rounds):
        for how, values in seconds.items():
            paths = make_slices(work / f"{how}-{number}", series=f"{how}-{number}")
            trickled = make_slices(work / f"slow-{how}-{number}", 1, series=f"slow-{how}-{number}")[0]
            with ours(work / f"node-{how}-{number}", []) as (port, called), ExitStack() as stack:
                if how == "beside":
                    for _ in range(SLOW_SENDERS):
                        stack.enter_context(trickle(port, trickled))
                    time.sleep(1.0)
                values.append(send(port, called, paths, 1))
                print(f"{how}: {values[-1]:.3f} s", flush=True)
            shutil.rmtree(work / f"node-{how}-{number}")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"slowdown_by_20_slow_senders": round(medians["beside"] / medians["alone"], 3)}


@contextmanager
def trickle(port: int, path: Path) -> Iterator[None]:
    """Send a slice at 20 KB/s, as long as it lasts."""
    stop = threading.Event()
    content = path.read_bytes()
    message = store_message(generate_uid(), content[content.index(b"\x08\x00\x16\x00") :])

    request = association_request().replace(CALLING.ljust(16).encode(), b"STORESCU".ljust(16))

    def run() -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(request)
            connection.recv(65536)
            for start in range(0, len(message), 2000):
                if stop.wait(0.1):
                    return
                connection.sendall(message[start : start + 2000])

    thread = threading.Thread(target=run)
    thread.start()
    yield
    stop.set()
    thread.join()


def measure_growth(work: Path) -> dict[str, object]:
    """The cost of an instance late over early, in a spool that fills with series of 1,000 slices."""
    rng = np.random.default_rng(1)
    seconds = []
    peaks: list[int] = []
    with ours(work / "node", peaks) as (port, called):
        for batch in range(GROWTH_INSTANCES // 1000):
            folder = work / "batch"
            paths = make_slices(folder, 1000, series=f"growth-{batch}", pixels=rng.bytes(64 * 64 * 2))
            seconds.append(send(port, called, paths, 1))
            shutil.rmtree(folder)
            print(f"{(batch + 1) * 1000} instances: {seconds[-1]:.3f} s for 1,000", flush=True)
    return {
        "cost_at_50000_over_1000": round(statistics.median(seconds[-5:]) / statistics.median(seconds[:5]), 3),
        "growth_listener_peak_rss_bytes": max(peaks),
    }


def measure_memory(work: Path) -> dict[str, object]:
    """The peak with many associations at once."""
    paths = make_slices(work / "slices", MEMORY_INSTANCES)
    peaks: list[int] = []
    limit = {"max_associations_per_peer": MEMORY_ASSOCIATIONS + 10}
    with ours(work / "node", peaks, **limit) as (port, called):
        send(port, called, paths, MEMORY_ASSOCIATIONS)
    return {f"peak_rss_bytes_{MEMORY_ASSOCIATIONS}_associations": peaks[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-orthanc", action="store_true")
    parser.add_argument("--only", choices=MEASURES)
    arguments = parser.parse_args()
    names = ["ours", "dcmtk"] + ([] if arguments.without_orthanc else ["orthanc"])
    measures: dict[str, Measure] = {
        "speed": lambda work: measure_speed(work, arguments.rounds, names),
        "small-pdus": lambda work: measure_small_pdus(work, arguments.rounds),
        "default-sender": lambda work: measure_default_sender(work, arguments.rounds, names),
        "slow": lambda work: measure_slow(work, arguments.rounds),
        "growth": measure_growth,
        "memory": measure_memory,
    }
    take("ingest", measures, arguments.only, untold=("seconds",))


if __name__ == "__main__":
    main()
