"""Helpers: faults made on purpose: series that are wrong in one way, a Triton that serves other models, a
disk that fills up, a worker that hangs, a destination that refuses.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE

from node.triton_server import DEFAULT_REPOSITORY, free_port
from tests.chaos.disk import SmallDisk
from tests.integration.receiving import wait_for
from tests.integration.running import CALLING, RunningNode, storescu
from tests.processes import children, cpu_seconds, read

STORESCP = "/usr/bin/storescp"
MIB = 1 << 20
Change = Callable[[int, Dataset], bool]


def keep(_number: int, _image: Dataset) -> bool:
    """As it is."""
    return True


def other_modality(number: int, image: Dataset) -> bool:
    """Two images of a kind that no route wants."""
    image.Modality = "XX"
    return number < 2


def without_the_middle(number: int, _image: Dataset) -> bool:
    """Eight slices in a row are missing."""
    return not 8 <= number < 16


def tilted(_number: int, image: Dataset) -> bool:
    """Sheared by 40 degrees, which no gantry is."""
    position = [float(value) for value in image.ImagePositionPatient]
    position[1] += position[2] * math.tan(math.radians(40.0))
    image.ImagePositionPatient = [f"{value:.6g}" for value in position]
    return True


def without_a_series(number: int, image: Dataset) -> bool:
    """One image that can't be filed."""
    image.SeriesInstanceUID = ""
    return number == 0


def seeded_series(source: Path, folder: Path, change: Change = keep) -> str:
    """Write a series like ``source`` with UIDs of its own; returns its Study Instance UID.

    change: of an image; False leaves it out.
    """
    folder.mkdir()
    study, series = generate_uid(), generate_uid()
    for number, path in enumerate(sorted(source.iterdir())):
        image = dcmread(path)
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        if change(number, image):
            image.save_as(folder / path.name)
    return str(study)


def wrong_repository(folder: Path) -> Path:
    """A Triton repository without ``lesions``, and in which what is called ``pneumonia_class`` is another
    model."""
    for name in ("lungs", "pneumonia_class"):
        shutil.copytree(DEFAULT_REPOSITORY / "lungs", folder / name)
    config = folder / "pneumonia_class/config.pbtxt"
    config.write_text(config.read_text().replace('name: "lungs"', 'name: "pneumonia_class"'))
    return folder


@contextmanager
def refusing_destination(folder: Path) -> Iterator[int]:
    """DCMTK's storescp, which rejects every association; its port."""
    port = free_port()
    folder.mkdir()
    process = subprocess.Popen([STORESCP, "--refuse", "-od", str(folder), str(port)])
    try:
        yield port
    finally:
        process.terminate()
        process.wait(10)


class Disk:
    """A file system of its own where we may mount one, else the one that we are on. ``floor_bytes`` of it
    have to be free for the node to receive."""

    def __init__(self, folder: Path, *, floor_bytes: int = 64 * MIB) -> None:
        """floor_bytes: only of a file system of its own."""
        self._disk = SmallDisk(folder, floor_bytes + 192 * MIB)
        self.folder = folder
        self._room = (192 if self._disk.is_small else 1024) * MIB  # others use a larger one, too
        self.floor_bytes = shutil.disk_usage(folder).free - self._room

    def fill(self) -> None:
        """Leave less than the floor, and room for what a database needs."""
        too_much = shutil.disk_usage(self.folder).free - self.floor_bytes
        assert too_much <= 2 * self._room, "what fills a small disk is memory: that much isn't meant"
        with (self.folder / "filler").open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, too_much + 16 * MIB)

    def empty(self) -> None:
        (self.folder / "filler").unlink(missing_ok=True)

    def remove(self) -> None:
        self.empty()
        self._disk.remove()


def refuse_by_full_disk(node: RunningNode, disk: Disk, folder: Path) -> None:
    """Fill it under an association: its next instance is refused; then nobody gets another association."""
    image = dcmread(min(folder.iterdir()))
    ae = AE(ae_title=CALLING)
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", node.port, ae_title="PACSNODE")
    assert association.is_established
    disk.fill()
    assert association.send_c_store(image).Status == 0xA700
    association.release()
    assert storescu(node.port, folder).returncode != 0


def workers(node: RunningNode) -> list[int]:
    """The processes that run pipelines."""
    assert node.process is not None
    return [pid for pid in children(node.process.pid) if "pipelines.worker" in _command(pid)]


def _command(pid: int) -> str:
    with suppress(OSError):  # it has ended meanwhile
        return read(pid, "cmdline")
    return ""


def wait_warm(node: RunningNode) -> None:
    """What workers load before their first job counts as the job's time."""

    def idle() -> bool:
        before = [cpu_seconds(pid) for pid in workers(node)]
        time.sleep(1.0)
        after = [cpu_seconds(pid) for pid in workers(node)]
        return bool(after) and min(after) > 1.0 and after == before

    wait_for(idle, seconds=120, what="workers that have warmed up")


def hang_workers(node: RunningNode) -> None:
    """They don't answer any more."""
    found = wait_for(lambda: workers(node), seconds=60, what="a worker")
    for pid in found:
        os.kill(pid, signal.SIGSTOP)
