"""How long a study takes, from its last C-STORE response to its last result in the archive.

A whole node with its embedded Triton, an Orthanc to deliver to, DCMTK's storescu to send. The clock starts
when storescu ends and stops when Orthanc holds the last object; the quiet time that the node is configured to
wait for more instances is subtracted. Beside it, in the same run: ONNX Runtime alone, over the tensors that
the pipeline sent to Triton, in one process with the same number of threads.

    python -m tests.benchmarks.study [--rounds 5] [--series FOLDER] [--only overhead|seventy|growth|two]

FOLDER holds one axial CT series; 70, 300 and 600 slices are resampled from it. Prints a table and writes
build/bench/study.json; with --only, its figures are added to those there.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from scipy import ndimage

from pipelines.chest_ct_pneumonia import PIPELINE
from pipelines.load import dicom_files, load_series
from pipelines.pipeline import Stages
from pipelines.triton import Arrays, ModelSpec, Progress, ServedModel, put_into
from pipelines.volume import ModelIdentity, Volume
from tests.benchmarks.taking import Measure, take
from tests.integration.running import Pacs, RunningNode, orthanc_program, storescu
from tests.processes import children, cpu_seconds, peak_kilobytes, read
from triton_models.registry import MODELS

SERIES = Path("../shared/data/chest_ct/lidc0001_ge_deflated")
BACKEND = Path("triton_models/backend/onnxruntime/model.py")
QUIET_SECONDS = 0.3
#: what a command line of the node's processes holds -> its name; first that is there
_PROCESSES = {"triton": "triton", "pipelines.worker": "worker", "node.receive": "receiver"}
LONGEST_SECONDS = 600.0


def make_series(volume: Volume, slices: int, folder: Path, *, name: str) -> Path:
    """Write ``volume``, resampled along its slices to ``slices`` of them, under UIDs that ``name`` makes."""
    folder.mkdir(parents=True)
    header = volume.sources[0]
    hu = volume.hu
    if slices != len(hu):
        hu = ndimage.zoom(hu.astype(np.float32), (slices / len(hu), 1, 1), order=1, grid_mode=False)
    step = volume.affine[:3, 0] * (len(volume.hu) - 1) / max(slices - 1, 1)
    study, series = (generate_uid(entropy_srcs=[name, level]) for level in ("study", "series"))
    for number, plane in enumerate(np.clip(np.rint(hu), -1024, 3071).astype(np.int16)):
        image = header.copy()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPInstanceUID = generate_uid(entropy_srcs=[name, str(number)])
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
        image.InstanceNumber = number + 1
        image.ImagePositionPatient = [f"{x:.6g}" for x in volume.affine[:3, 3] + number * step]
        image.PixelRepresentation, image.BitsAllocated, image.BitsStored, image.HighBit = 1, 16, 16, 15
        image.RescaleSlope, image.RescaleIntercept = 1, 0
        for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit", "SpacingBetweenSlices"):
            image.pop(keyword, None)
        image.add_new("PixelData", "OW", plane.tobytes())
        image.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)
    return folder


def embedded_backend() -> ModuleType:
    """The embedded Triton's backend: its sessions are what is compared with. Triton's stub alone has the
    module that it imports to talk to the server, which isn't needed here."""
    sys.modules.setdefault("triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    spec = spec_from_file_location("onnxruntime_backend", BACKEND)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Bare:
    """ONNX Runtime in this process, instead of Triton; keeps what it is asked, so that it can be timed."""

    def __init__(self) -> None:
        backend = embedded_backend()
        threads = backend.thread_count({}, os.environ)
        self._sessions = {
            spec.name: backend.open_session(MODELS[spec.name].onnx_path, threads, "CPU")
            for spec in PIPELINE.models
        }
        self.asked: list[tuple[ServedModel, Arrays]] = []

    def check(self, spec: ModelSpec) -> ServedModel:
        return ServedModel(spec, ModelIdentity(spec.name, spec.version, ""), MODELS[spec.name].max_batch_size)

    def run(
        self,
        model: ServedModel,
        inputs: Arrays,
        *,
        progress: Progress | None = None,
        out: Arrays | None = None,
    ) -> dict[str, NDArray[Any]]:
        self.asked.append((model, inputs))
        return put_into(out, self._answer(model, inputs))

    def _answer(self, model: ServedModel, inputs: Arrays) -> dict[str, NDArray[Any]]:
        names = [tensor.name for tensor in model.spec.outputs]
        count, batch = len(next(iter(inputs.values()))), model.max_batch_size
        answers = [
            self._sessions[model.spec.name].run(names, {k: v[i : i + batch] for k, v in inputs.items()})
            for i in range(0, count, batch)
        ]
        return {name: np.concatenate([a[n] for a in answers]) for n, name in enumerate(names)}

    def again(self) -> tuple[float, float]:
        """Wall and CPU seconds for all that was asked."""
        started, used = time.perf_counter(), time.process_time()
        for model, inputs in self.asked:
            self._answer(model, inputs)
        return time.perf_counter() - started, time.process_time() - used

    @property
    def bytes_asked(self) -> int:
        return sum(array.nbytes for _, inputs in self.asked for array in inputs.values())


def bare_for(volume: Volume) -> Bare:
    bare = Bare()
    PIPELINE.analyse(volume, bare, {spec.name: bare.check(spec) for spec in PIPELINE.models}, Stages())
    return bare


@dataclass(frozen=True)
class Study:
    """How one was: wall seconds as a whole and by stage, CPU seconds by process."""

    seconds: float
    by_stage: Mapping[str, float]
    cpu_by_process: Mapping[str, float]


class Site:
    """A node and its archive."""

    def __init__(self, node: RunningNode, pacs: Pacs) -> None:
        self.node, self.pacs = node, pacs

    def study(self, *folders: Path) -> Study:
        """Send series, one after another; the time from the first one's last C-STORE response until all
        results are in the archive, the last one's stages, and the CPU time from before the first one's
        first C-STORE."""
        before, held = len(self.node.events("delivered")), self.pacs.count()
        used = self._cpu_seconds()
        responded = []
        for folder in folders:
            sent = storescu(self.node.port, folder)
            assert sent.returncode == 0, sent.stderr[-1000:]
            responded.append(time.perf_counter())
        started = responded[0]
        while len(delivered := self.node.events("delivered")) < before + len(folders):
            if time.perf_counter() - started > LONGEST_SECONDS:
                raise SystemExit(f"no result after {LONGEST_SECONDS:.0f} s: {self.node.jobs()}")
            time.sleep(0.02)
        seconds = time.perf_counter() - started - QUIET_SECONDS
        assert self.pacs.count() == held + sum(one["objects"] for one in delivered[before:])
        ran = self.node.events("job_ran")[-1]
        cpu = {name: round(value - used.get(name, 0.0), 2) for name, value in self._cpu_seconds().items()}
        return Study(seconds, ran["timings_seconds"], cpu)

    def _cpu_seconds(self) -> dict[str, float]:
        """CPU seconds so far of the archive and of the node's processes, by what they are."""
        assert self.node.process is not None
        found = {"orthanc": cpu_seconds(self.pacs.pid), "node": cpu_seconds(self.node.process.pid)}
        for pid in children(self.node.process.pid, deep=True):
            command = read(pid, "cmdline")
            name = next((name for part, name in _PROCESSES.items() if part in command), "node")
            found[name] = found.get(name, 0.0) + cpu_seconds(pid)
        return found

    def worker_peak_bytes(self) -> int:
        """The largest worker at its peak: all its processes' peaks together, though they may have been at
        different times."""
        assert self.node.process is not None
        workers = [
            pid
            for pid in children(self.node.process.pid, deep=True)
            if "pipelines.worker" in read(pid, "cmdline")
        ]
        return 1024 * max(
            sum(peak_kilobytes(each) for each in (pid, *children(pid, deep=True))) for pid in workers
        )


@contextmanager
def site(work: Path, *, workers: int = 1) -> Iterator[Site]:
    (work / "pacs").mkdir(parents=True)
    pacs = Pacs(orthanc_program(), work / "pacs")
    series = {"quiet_seconds": 30.0, "released_quiet_seconds": QUIET_SECONDS}
    node = RunningNode(
        work / "node", triton_url=None, pacs_port=pacs.port, series=series, run={"workers": workers}
    )
    try:
        yield Site(node.start(), pacs)
    finally:
        node.stop()
        pacs.stop()


def measure_overhead(work: Path, volume: Volume, rounds: int) -> dict[str, object]:
    """The node's time over that of ONNX Runtime alone, rounds alternating."""
    bare = bare_for(volume)
    seconds: dict[str, list[float]] = {"study": [], "bare": []}
    studies: list[Study] = []
    cpu: list[dict[str, float]] = []
    with site(work / "site") as running:
        for number in range(rounds + 1):
            folder = make_series(volume, len(volume.hu), work / f"series-{number}", name=f"overhead {number}")
            study = running.study(folder)
            alone, alone_cpu = bare.again()
            print(
                f"round {number}: study {study.seconds:.2f} s, ONNX Runtime alone {alone:.2f} s; CPU seconds "
                f"{dict(study.cpu_by_process)}, {alone_cpu:.2f}",
                flush=True,
            )
            if number:  # the first warms up
                seconds["study"].append(study.seconds)
                seconds["bare"].append(alone)
                cpu.append({**study.cpu_by_process, "bare": alone_cpu})
                studies.append(study)
            else:
                first = study.seconds
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "overhead_ratio": round(medians["study"] / medians["bare"], 3),
        "seconds_per_stage": {
            name: round(statistics.median(s.by_stage[name] for s in studies), 3)
            for name in studies[0].by_stage
        },
        "cpu_seconds": {name: round(statistics.median(c.get(name, 0.0) for c in cpu), 2) for name in cpu[0]},
        "first_study_seconds": round(first, 3),
        "bytes_to_triton": bare.bytes_asked,
        "overhead_seconds": {name: [round(s, 3) for s in values] for name, values in seconds.items()},
    }


def measure_seventy(work: Path, volume: Volume, rounds: int) -> dict[str, object]:
    return {"seconds_70_slices": _median(work, volume, 70, rounds)[0]}


def measure_growth(work: Path, volume: Volume, rounds: int) -> dict[str, object]:
    few, _ = _median(work / "few", volume, 300, rounds)
    many, peak = _median(work / "many", volume, 600, rounds)
    return {"growth_600_over_300": round(many / few, 3), "peak_rss_bytes": peak}


def measure_two(work: Path, volume: Volume, rounds: int) -> dict[str, object]:
    """Two series at once by two workers, against the same two by one worker: each site idles beside the
    other. Both take all cores nearly all of the time, so a machine that changes its pace by a few percent
    hides the difference: a round has both, another first each time, and its ratio is what counts."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with ExitStack() as stack:
        sites = {
            workers: stack.enter_context(site(work / f"site-{workers}", workers=workers))
            for workers in seconds
        }
        for number in range(rounds + 1):
            for workers in sorted(sites, reverse=number % 2 == 1):
                folders = [
                    make_series(
                        volume,
                        len(volume.hu),
                        work / f"{workers}-{number}-{which}",
                        name=f"{which} of {number}",
                    )
                    for which in ("first", "second")
                ]
                took = sites[workers].study(*folders).seconds
                print(f"{workers} worker(s), two series, round {number}: {took:.2f} s", flush=True)
                if number:  # the first warms up
                    seconds[workers].append(took)
    ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    return {
        "throughput_two_over_one": round(statistics.median(ratios), 3),
        "throughput_seconds": {
            name: [round(s, 3) for s in seconds[n]] for n, name in ((1, "one worker"), (2, "two workers"))
        },
    }


def _median(work: Path, volume: Volume, slices: int, rounds: int) -> tuple[float, int]:
    """Median seconds of a study of so many slices, and the worker's peak in bytes."""
    seconds = []
    with site(work / "site") as running:
        for number in range(rounds + 1):
            folder = make_series(volume, slices, work / f"series-{number}", name=f"{slices} slices {number}")
            seconds.append(running.study(folder).seconds)
            print(f"{slices} slices, round {number}: {seconds[-1]:.2f} s", flush=True)
        return round(statistics.median(seconds[1:]), 3), running.worker_peak_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--series", type=Path, default=SERIES)
    parser.add_argument("--only", choices=("overhead", "seventy", "growth", "two"))
    arguments = parser.parse_args()
    volume = load_series(dicom_files(arguments.series))
    measures: dict[str, Measure] = {
        "overhead": lambda work: measure_overhead(work, volume, arguments.rounds),
        "seventy": lambda work: measure_seventy(work, volume, arguments.rounds),
        "growth": lambda work: measure_growth(work, volume, arguments.rounds),
        "two": lambda work: measure_two(work, volume, arguments.rounds),
    }
    take("study", measures, arguments.only)


if __name__ == "__main__":
    main()
