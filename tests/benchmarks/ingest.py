"""How fast we receive, against DCMTK's storescp and Orthanc in the same run.

The same 300 CT slices (512 x 512 x 16 bit, Explicit VR Little Endian) are sent by DCMTK's storescu over one
association and split over four, to each receiver in turn, for several rounds. Every receiver is empty when a
round starts, and is sent one slice of another series before the clock runs. Times are of the senders, from
their start to their end. Ours syncs every instance with its index entry (the journal's record) to disk before
it answers, and makes files and rows of them a moment later; storescp promises no durability.

    python -m tests.benchmarks.ingest [--rounds 5] [--without-orthanc]

Prints a table and writes build/bench/ingest.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from rich.console import Console
from rich.table import Table

from node.triton_server import free_port
from tests.integration.running import Pacs, RunningNode, orthanc_program

STORESCU, STORESCP = "/usr/bin/storescu", "/usr/bin/storescp"
SLICES = 300
ASSOCIATIONS = (1, 4)
ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1", "TCP_BUFFER_LENGTH": "131072"}
OUT = Path("build/bench/ingest.json")

Receiver = Callable[[Path], "contextmanager[int]"]


def make_slices(folder: Path, count: int = SLICES, *, series: str = "series") -> list[Path]:
    """Write ``count`` slices of one CT series."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 4096, (512, 512), dtype=np.uint16)
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
        image.Rows = image.Columns = 512
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit, image.PixelRepresentation = 15, 0
        image.PixelData = np.roll(pixels, number).tobytes()
        paths.append(folder / f"{number:04d}.dcm")
        image.save_as(paths[-1], enforce_file_format=True)
    return paths


def send(port: int, called: str, paths: Sequence[Path], associations: int) -> float:
    """Seconds that the senders take."""
    command = [
        STORESCU,
        "-aet",
        "STORESCU",
        "-aec",
        called,
        "--max-send-pdu",
        "131072",
        "127.0.0.1",
        str(port),
    ]
    shares = [[str(path) for path in paths[i::associations]] for i in range(associations)]
    started = time.perf_counter()
    senders = [subprocess.Popen([*command, *share], env=ENVIRONMENT) for share in shares]
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
def ours(folder: Path, peaks: list[int]) -> Iterator[tuple[int, str]]:
    """The whole node; Triton and the destination are left out, no route matches."""
    sections = {"routes": [], "series": {"quiet_seconds": 600.0, "released_quiet_seconds": 600.0}}
    node = RunningNode(folder, triton_url="127.0.0.1:1", pacs_port=1, **sections).start()
    try:
        yield node.port, "PACSNODE"
        assert node.process is not None
        children = Path(f"/proc/{node.process.pid}/task").glob("*/children")
        pids = [pid for listed in children for pid in listed.read_text().split()]
        (receiver,) = [p for p in pids if "node.receive" in Path(f"/proc/{p}/cmdline").read_text()]
        status = Path(f"/proc/{receiver}/status").read_text()
        peaks.append(next(int(row.split()[1]) * 1024 for row in status.splitlines() if "VmHWM" in row))
    finally:
        node.stop()


def measure(
    work: Path, paths: Sequence[Path], warm_up: Sequence[Path], rounds: int, names: Sequence[str]
) -> dict[str, object]:
    receivers = {"ours": ours, "dcmtk": dcmtk, "orthanc": orthanc}
    seconds = {(name, n): [] for name in names for n in ASSOCIATIONS}
    peaks: list[int] = []
    total_bytes = sum(path.stat().st_size for path in paths)
    for number in range(rounds):
        for associations in ASSOCIATIONS:
            for name in names:
                folder = work / f"{name}-{number}-{associations}"
                with receivers[name](folder, peaks) as (port, called):
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-orthanc", action="store_true")
    arguments = parser.parse_args()
    names = ["ours", "dcmtk"] + ([] if arguments.without_orthanc else ["orthanc"])
    with tempfile.TemporaryDirectory(prefix="bench-ingest-", dir=".") as name:
        work = Path(name)
        slices, warm_up = make_slices(work / "slices"), make_slices(work / "warm-up", 1, series="warm-up")
        result = measure(work, slices, warm_up, arguments.rounds, names)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    table = Table("figure", "value")
    for key, value in result.items():
        if key != "seconds":
            table.add_row(key, json.dumps(value))
    Console().print(table)


if __name__ == "__main__":
    main()
