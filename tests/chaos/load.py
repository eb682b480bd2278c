"""Series to send, and senders that don't give up: DCMTK's storescu, again until all is acknowledged."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import generate_uid

from tests.integration.running import CALLING, STORESCU
from triton_models.data.dicom_series import write_series
from triton_models.data.phantom import chest_phantom

SLICES = 10
SENDERS = 2


def make_series(folder: Path, count: int, seed: int) -> dict[str, dict[str, Path]]:
    """Series UID -> SOP Instance UID -> file, of one small chest phantom under different UIDs."""
    first = folder / "first"
    write_series(chest_phantom(seed, slices=SLICES, rows=128, columns=128, lesions=True), first, seed=seed)
    images = [dcmread(path) for path in sorted(first.iterdir())]
    made: dict[str, dict[str, Path]] = {}
    for number in range(count):
        uid = generate_uid(entropy_srcs=[str(seed), str(number)])
        (folder / str(number)).mkdir()
        files = made.setdefault(uid, {})
        for at, image in enumerate(images):
            image.SeriesInstanceUID = uid
            image.StudyInstanceUID = generate_uid(entropy_srcs=[uid, "study"])
            image.SOPInstanceUID = generate_uid(entropy_srcs=[uid, str(at)])
            image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
            path = folder / str(number) / f"{at}.dcm"
            image.save_as(path)
            files[str(image.SOPInstanceUID)] = path
    return made


class Senders:
    """Send all series, some at once, each to any of the ports, again until it succeeds."""

    def __init__(
        self, series: list[Path], ports: list[int], rng: random.Random, pause_seconds: float
    ) -> None:
        self._left = list(series)
        self._ports, self._rng, self._pause = ports, rng, pause_seconds
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self.attempts = 0
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(SENDERS)]
        for thread in self._threads:
            thread.start()

    @property
    def busy(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                if not self._left:
                    return
                folder = self._left.pop(0)
            while not self._stopping.is_set() and not self._send(folder):
                time.sleep(0.5)
            self._stopping.wait(self._pause)

    def _send(self, folder: Path) -> bool:
        with self._lock:
            port = self._rng.choice(self._ports)
            self.attempts += 1
        done = subprocess.run(
            [STORESCU, "-aet", CALLING, "-aec", "PACSNODE", "+sd", "-R", "127.0.0.1", str(port), str(folder)],
            capture_output=True,
            timeout=120,
            env={**os.environ, "TCP_NODELAY": "1"},
            check=False,
        )
        return done.returncode == 0
