"""The simulator of sizing.py against the real thing, at its smallest: one worker, embedded Triton.

    python -m tests.benchmarks.sizing_measured             # turnaround of six studies, predicted and measured
    python -m tests.benchmarks.sizing_measured --database  # rows that PostgreSQL writes

The first takes some minutes and wants a machine that does nothing else. It measures studies of 70 and of
133 slices alone, before and after six that come faster than they are done, lets the simulator predict the
turnaround of the six, and prints by how much it is off. Figures go to
build/bench/sizing.json.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import generate_uid
from sqlalchemy import Engine, create_engine, text

from node.config import DatabaseConfig
from node.postgres import postgres_url
from pipelines.load import dicom_files, load_series
from pipelines.volume import Volume
from tests.benchmarks.sizing import KINDS, Plant, Series, Site, Times
from tests.benchmarks.study import LONGEST_SECONDS, QUIET_SECONDS, SERIES, make_series
from tests.benchmarks.study import site as running_site
from tests.benchmarks.taking import take
from tests.integration.running import Pacs, RunningNode, orthanc_program, storescu
from tests.postgres import PostgresCluster
from triton_models.data.dicom_series import write_series
from triton_models.data.phantom import chest_phantom

FEW, MANY = 70, 133
#: of what comes in the queue: when, as a share of the time of a study of MANY slices, and how many slices
QUEUE = ((0.0, MANY), (0.5, FEW), (0.8, MANY), (1.7, FEW), (2.0, FEW), (3.4, MANY))


def measure_queue(work: Path, volume: Volume, rounds: int) -> Mapping[str, object]:
    """Predicted and measured seconds from a series' last instance to its results in the archive."""
    with running_site(work / "site") as running:
        node = running.node
        before = _alone(node, volume, work, "before", rounds)
        service = before[MANY] - QUIET_SECONDS
        schedule = [(share * service, slices) for share, slices in QUEUE]
        queue = [
            (at, _series(volume, slices, work, f"queue {number}"))
            for number, (at, slices) in enumerate(schedule)
        ]
        measured = _turnarounds(node, queue)
        after = _alone(node, volume, work, "after", rounds)
    alone = {slices: (before[slices] + after[slices]) / 2 for slices in (FEW, MANY)}
    each = (alone[MANY] - alone[FEW]) / (MANY - FEW)
    times = replace(
        Times(),
        quiet=QUIET_SECONDS,
        judge_series=0.0,
        judge_slice=0.0,
        triton_slice=0.0,
        job=alone[FEW] - QUIET_SECONDS - FEW * each,
        job_slice=each,
        refused=0.0,
        worker_lives=float("inf"),
    )
    # what comes before WARM_UP_SECONDS isn't counted there
    late = [Series(1000.0 + at, KINDS[0], slices) for at, slices in schedule]
    predicted = Site(Plant(1, 1, 1), times, 1).run(late).turnaround
    means = statistics.mean(predicted), statistics.mean(measured)
    return {
        "seconds_alone_before": before,
        "seconds_alone_after": after,
        "predicted_mean_seconds": round(means[0], 2),
        "measured_mean_seconds": round(means[1], 2),
        "predicted_longest_seconds": round(max(predicted), 2),
        "measured_longest_seconds": round(max(measured), 2),
        "error_of_the_mean": round(means[0] / means[1] - 1, 3),
        "error_of_the_longest": round(max(predicted) / max(measured) - 1, 3),
    }


def _alone(node: RunningNode, volume: Volume, work: Path, when: str, rounds: int) -> dict[int, float]:
    """Turnaround of a study of each size that waits for nothing."""
    return {
        slices: statistics.median(
            _turnarounds(node, [(0.0, _series(volume, slices, work, f"{slices} {when} {number}"))])[0]
            for number in range(rounds)
        )
        for slices in (FEW, MANY)
    }


def _series(volume: Volume, slices: int, work: Path, name: str) -> Path:
    return make_series(volume, slices, work / name.replace(" ", "-"), name=f"sizing {name}")


def _turnarounds(node: RunningNode, schedule: Sequence[tuple[float, Path]]) -> list[float]:
    """Of series that are sent at these times."""
    before, began = len(node.events("job_done")), time.monotonic()

    def send(at: float, folder: Path) -> None:
        time.sleep(max(began + at - time.monotonic(), 0.0))
        sent = storescu(node.port, folder)
        assert sent.returncode == 0, sent.stderr[-1000:]

    senders = [threading.Thread(target=send, args=one) for one in schedule]
    for sender in senders:
        sender.start()
    while len(done := node.events("job_done")[before:]) < len(schedule):
        if time.monotonic() - began > LONGEST_SECONDS:
            raise SystemExit(f"no result after {LONGEST_SECONDS:.0f} s: {node.jobs()}")
        time.sleep(0.1)
    for sender in senders:
        sender.join()
    return [float(one["turnaround_seconds"]) for one in done]


def measure_database(work: Path) -> Mapping[str, object]:
    """Rows written: of an instance (two series that match no route, of 20 and 120), of a job beside its
    instances.
    """
    with _node_on_postgres(work) as (node, database):
        engine = create_engine(postgres_url(database))
        idle_from = _rows(engine)
        time.sleep(20.0)
        idle = (_rows(engine) - idle_from) / 20.0
        written = {}
        for count in (20, 120):
            folder = _unmatched(count, work / f"unmatched-{count}")
            written[count] = _written(engine, node, folder, "series_unmatched", idle)
        instance = (written[120] - written[20]) / 100
        matched = work / "matched"
        write_series(chest_phantom(11, slices=24, rows=256, columns=256, lesions=True), matched, seed=11)
        job = _written(engine, node, matched, "job_done", idle) - 24 * instance
        engine.dispose()
    return {
        "rows_idle_a_second": round(idle, 2),
        "rows_an_instance": round(instance, 2),
        "rows_a_series": round(written[20] - 20 * instance, 1),
        "rows_a_job": round(job, 1),
    }


@contextmanager
def _node_on_postgres(work: Path) -> Iterator[tuple[RunningNode, DatabaseConfig]]:
    cluster = PostgresCluster()
    (work / "pacs").mkdir(parents=True)
    pacs = Pacs(orthanc_program(), work / "pacs")
    try:
        with cluster.database() as database:
            section = {"url": database.url, "password_file": str(database.password_file)}
            node = RunningNode(work / "node", triton_url=None, pacs_port=pacs.port, database=section)
            try:
                yield node.start(), database
            finally:
                node.stop()
    finally:
        pacs.stop()
        cluster.remove()


def _unmatched(count: int, folder: Path) -> Path:
    folder.mkdir()
    source = folder.with_name("template")
    if not source.exists():
        write_series(chest_phantom(11, slices=1, rows=64, columns=64, lesions=False), source, seed=11)
    image = dcmread(next(source.iterdir()))
    image.Modality, image.SeriesInstanceUID = "OT", generate_uid()
    for number in range(count):
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        image.InstanceNumber = number + 1
        image.save_as(folder / f"{number}.dcm")
    return folder


def _rows(engine: Engine) -> int:
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_stat_clear_snapshot()"))
        query = "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables"
        return int(connection.execute(text(query)).scalar_one() or 0)


def _written(engine: Engine, node: RunningNode, folder: Path, event: str, idle: float) -> float:
    """Rows from before the first instance until a few seconds after the event."""
    events, rows, began = len(node.events(event)), _rows(engine), time.monotonic()
    sent = storescu(node.port, folder)
    assert sent.returncode == 0, sent.stderr[-1000:]
    while len(node.events(event)) == events:
        if time.monotonic() - began > LONGEST_SECONDS:
            raise SystemExit(f"no {event} after {LONGEST_SECONDS:.0f} s")
        time.sleep(0.1)
    time.sleep(5.0)  # PostgreSQL's statistics come a second late
    return _rows(engine) - rows - idle * (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--database", action="store_true")
    parser.add_argument("--rounds", type=int, default=3, help="of studies alone, before and after")
    parser.add_argument("--series", type=Path, default=SERIES)
    arguments = parser.parse_args()
    if arguments.database:
        take("sizing", {"database": measure_database}, "database")
        return
    volume = load_series(dicom_files(arguments.series))
    take("sizing", {"queue": lambda work: measure_queue(work, volume, arguments.rounds)}, "queue")


if __name__ == "__main__":
    main()
