"""Series to send, and senders that don't give up: DCMTK's storescu, again until all is acknowledged."""

from __future__ import annotations

import os
import random
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import generate_uid

from tests.integration.running import CALLING, STORESCU
from tests.patients import give_identity
from triton_models.data.dicom_series import write_series
from triton_models.data.phantom import chest_phantom

SLICES, PIXELS = 10, 128
SENDERS = 3
#: of so many series, one is for the pipeline with every model
WHOLE_EVERY = 5
#: what its route looks for
WHOLE = "Every model"
#: storescu's own limits, seconds
_LIMITS = ["-to", "5", "-ta", "15", "-td", "20"]


@dataclass(frozen=True)
class Sent:
    """A series. files: by SOP Instance UID.  whole: for the pipeline with every model, too."""

    uid: str
    files: dict[str, Path]
    whole: bool


class Series:
    """Makes series of one small chest phantom, each under UIDs of its own."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._seed = folder, seed
        first = folder / "first"
        phantom = chest_phantom(seed, slices=SLICES, rows=PIXELS, columns=PIXELS, lesions=True)
        self._images = [dcmread(path) for path in write_series(phantom, first, seed=seed)]

    def make(self, number: int) -> Sent:
        uid = generate_uid(entropy_srcs=[str(self._seed), str(number)])
        whole = number % WHOLE_EVERY == 0
        folder = self._folder / str(number)
        folder.mkdir()
        files = {}
        for at, image in enumerate(self._images):
            image.SeriesInstanceUID = uid
            image.StudyInstanceUID = generate_uid(entropy_srcs=[uid, "study"])
            image.SOPInstanceUID = generate_uid(entropy_srcs=[uid, str(at)])
            image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
            give_identity(image)
            image.Manufacturer = WHOLE if whole else "Chaos"
            path = folder / f"{at}.dcm"
            image.save_as(path)
            files[str(image.SOPInstanceUID)] = path
        return Sent(uid, files, whole)


class Load:
    """Sends series until ``end``: some at once, each to any of the ports, again until it succeeds."""

    def __init__(
        self, series: Series, ports: list[int], rng: random.Random, wait: Callable[[int], bool]
    ) -> None:
        """wait: whether there is so many times enough to do already."""
        self.sent: list[Sent] = []
        self.attempts = 0
        self._series, self._ports, self._rng, self._wait = series, ports, rng, wait
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self.hurry = False  # whether to send on while there is enough to do, up to twice as much
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(SENDERS)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Begin no more series."""
        self._ending.set()

    @property
    def busy(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Give up what isn't acknowledged."""
        self._ending.set()
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._ending.is_set():
            if self.sent and self._wait(2 if self.hurry else 1):
                self._ending.wait(0.5)
                continue
            with self._lock:
                one = self._series.make(len(self.sent))
                self.sent.append(one)
            folder = next(iter(one.files.values())).parent
            while not self._stopping.is_set() and not self._send(folder):
                self._stopping.wait(0.5)
            self._ending.wait(1.0)

    def _send(self, folder: Path) -> bool:
        with self._lock:
            port = self._rng.choice(self._ports)
            self.attempts += 1
        called = ["-aet", CALLING, "-aec", "PACSNODE", *_LIMITS, "+sd", "-R", "127.0.0.1", str(port)]
        try:
            done = subprocess.run(
                [STORESCU, *called, str(folder)],
                capture_output=True,
                timeout=120,
                env={**os.environ, "TCP_NODELAY": "1"},
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0
