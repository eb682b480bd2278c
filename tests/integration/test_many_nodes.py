"""Listeners that share a PostgreSQL database and a data_dir: a series is one, whoever received what of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid

from node.config import DatabaseConfig, SeriesConfig
from node.receive.adoption import LOOK_SECONDS
from tests.integration.receiving import CT, ReceivingNode, Sender, ct_slice, wait_for
from tests.postgres import PostgresCluster

ROOT = Path(__file__).parents[2]


@pytest.fixture
def database(postgres: PostgresCluster) -> Iterator[DatabaseConfig]:
    with postgres.database() as database:
        yield database


@contextmanager
def listener(
    data_dir: Path, database: DatabaseConfig, node_id: str, *, quiet_seconds: float = 6.0
) -> Iterator[ReceivingNode]:
    timing = SeriesConfig(quiet_seconds=quiet_seconds, released_quiet_seconds=2, interrupted_wait_seconds=3)
    node = ReceivingNode(data_dir, timing=timing, database=database, node_id=node_id).start()
    try:
        yield node
    finally:
        node.stop()


def send(port: int, images: list[Dataset]) -> None:
    sender = Sender(port, CT)
    for image in images:
        assert sender.store_image(image) == 0x0000
    sender.release()


def test_a_series_through_two_listeners_is_one_and_is_judged_once(
    tmp_path: Path, database: DatabaseConfig
) -> None:
    """Four associations at once, two to each listener; every third instance comes through both."""
    uids = [generate_uid() for _ in range(3)]
    images = [ct_slice(uid, number) for number in range(30) for uid in uids]
    with listener(tmp_path, database, "l1") as one, listener(tmp_path, database, "l2") as two:
        parts = [
            (node.port, [i for at, i in enumerate(images) if at % 2 == half or at % 3 == 0])
            for node in (one, two)
            for half in (0, 1)
        ]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda part: send(*part), parts))
        wait_for(lambda: len(one.completed + two.completed) >= 3, seconds=60, what="three series")
        assert sorted(one.completed + two.completed) == sorted((uid, 1) for uid in uids)
        assert not (one.completed and two.completed), "one judges, the other doesn't"
        two.spool.file_all()
        assert [(row["version"], row["instance_count"]) for row in one.series_rows()] == [(1, 30)] * 3
        assert len(one.rows()) == len(images)


@contextmanager
def process(
    data_dir: Path, database: DatabaseConfig, node_id: str
) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A listener as a process of its own, and its port."""
    command = [sys.executable, "-m", "tests.integration.receiving", str(data_dir)]
    with subprocess.Popen(
        [*command, database.model_dump_json(), node_id],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        text=True,
    ) as running:
        stdout: IO[str] | None = running.stdout
        assert stdout is not None
        try:
            yield int(stdout.readline()), running
        finally:
            running.kill()


def test_what_a_listener_that_is_gone_had_acknowledged_is_filed_and_judged_by_another(
    tmp_path: Path, database: DatabaseConfig
) -> None:
    uid = generate_uid()
    images = [ct_slice(uid, number) for number in range(40)]
    with (
        process(tmp_path, database, "l1") as (port, gone),
        listener(tmp_path, database, "l2", quiet_seconds=2 * LOOK_SECONDS) as left,  # it has looked by then
    ):
        sender = Sender(port, CT)
        for image in images:
            assert sender.store_image(image) == 0x0000
        gone.kill()
        gone.wait()
        wait_for(lambda: left.completed == [(uid, 1)], seconds=60, what="the series")
        assert {row["sop_instance_uid"] for row in left.rows()} == {i.SOPInstanceUID for i in images}
        (row,) = left.series_rows()
        assert (row["instance_count"], row["evidence"]["associations"]["lost"]) == (40, 1)
