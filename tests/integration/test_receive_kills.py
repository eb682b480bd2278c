"""kill -9 of the listener at random moments, with several senders: nothing acknowledged is lost or torn.

``PACSNODE_KILLS`` says how often (``make test-kills``: 100 times).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pydicom.uid import generate_uid

from node.config import SeriesConfig
from tests.integration.raw_scu import RawScu, store_message
from tests.integration.receiving import ReceivingNode, ct_slice, encoded, wait_for

pytestmark = pytest.mark.integration

KILLS = int(os.environ.get("PACSNODE_KILLS", "10"))
SENDERS = 3


class Load:
    """Senders that send until the listener is gone, and what they were told."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)  # noqa: S311 repeatable noise
        self.attempted: dict[str, bytes] = {}
        self.acknowledged: set[str] = set()
        self.series = [generate_uid(entropy_srcs=[str(seed), str(n)]) for n in range(SENDERS)]
        self._number = 0
        self._lock = threading.Lock()

    def _next(self, series: str) -> tuple[str, bytes]:
        with self._lock:
            self._number += 1
            pixels = self.rng.randbytes(self.rng.choice((512, 60_000, 300_000)))
            image = ct_slice(series, self._number, PixelData=pixels)
            self.attempted[image.SOPInstanceUID] = encoded(image)
        return image.SOPInstanceUID, self.attempted[image.SOPInstanceUID]

    def send(self, port: int, series: str) -> None:
        try:
            with RawScu(port) as scu:
                while True:
                    uid, dataset = self._next(series)
                    scu.socket.sendall(store_message(uid, dataset))
                    if scu.status() == 0x0000:
                        self.acknowledged.add(uid)
        except (OSError, AssertionError):
            return  # the listener is gone

    def until_killed(self, data_dir: Path) -> None:
        with subprocess.Popen(
            [sys.executable, "-m", "tests.integration.receiving", str(data_dir)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
            text=True,
        ) as process:
            if self.rng.random() < 0.2:  # while it starts and recovers
                time.sleep(self.rng.uniform(0.3, 1.2))
                process.send_signal(signal.SIGKILL)
                return
            assert process.stdout is not None
            port = int(process.stdout.readline())
            threads = [threading.Thread(target=self.send, args=(port, s)) for s in self.series]
            for thread in threads:
                thread.start()
            time.sleep(self.rng.uniform(0.05, 0.9))
            process.send_signal(signal.SIGKILL)
            for thread in threads:
                thread.join()


def test_nothing_acknowledged_is_lost_and_nothing_is_half_there(tmp_path: Path) -> None:
    data_dir = tmp_path / "var"
    load = Load(seed=20261121)
    for _ in range(KILLS):
        load.until_killed(data_dir)
    node = ReceivingNode(data_dir, timing=SeriesConfig(quiet_seconds=0.5)).start()
    try:
        rows = node.rows()
        kept = {row["sop_instance_uid"]: node.dataset_bytes(row) for row in rows}
        assert len(kept) == len(rows)
        assert len(load.acknowledged) > 5 * KILLS
        assert load.acknowledged <= set(kept)
        assert all(dataset == load.attempted[uid] for uid, dataset in kept.items())
        assert {row["state"] for row in rows} == {"stored"}
        assert list(data_dir.rglob("*.part")) == []
        assert len(list(data_dir.rglob("*.dcm"))) == len(rows)
        wait_for(lambda: {uid for uid, _ in node.completed} == set(load.series), what="every series")
        newest = {row["series_instance_uid"]: row["instance_count"] for row in node.series_rows()}
        assert sum(newest.values()) == len(rows)
    finally:
        node.stop()
