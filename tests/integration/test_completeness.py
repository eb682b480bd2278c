"""Completeness against a real PACS: it is asked how many there are, and for what is missing."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
)
from sqlalchemy import select

from node.config import QueryPeer, SeriesConfig
from node.database import inquiries, open_database
from node.demo.archive import AE_TITLE
from node.triton_server import free_port
from tests.integration.receiving import (
    CT,
    ReceivingNode,
    Sender,
    ct_slice,
    encoded,
    wait_for,
)
from tests.integration.running import Pacs, RunningNode, orthanc_program
from tests.integration.running import storescu as send_folder
from tests.shared_data import shared

pytestmark = pytest.mark.integration

TIMING = SeriesConfig(
    quiet_seconds=4.0,
    released_quiet_seconds=0.6,
    expected_quiet_seconds=0.3,
    missing_wait_seconds=3.0,
    interrupted_wait_seconds=4.0,
)


def as_file(image: Dataset) -> Dataset:
    """With File Meta Information."""
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    return image


class KnownPacs(Pacs):
    """An Orthanc that can be told about AEs that it sends to."""

    def knows(self, title: str, port: int) -> None:
        body = {"AET": title, "Host": "127.0.0.1", "Port": port, "AllowGet": True, "AllowFind": True}
        httpx.put(f"{self.url}/modalities/{title}", json=body, timeout=10).raise_for_status()

    def holds(self, images: list[Dataset]) -> None:
        for image in images:
            stream = BytesIO()
            as_file(image).save_as(stream, enforce_file_format=True)
            httpx.post(f"{self.url}/instances", content=stream.getvalue(), timeout=30).raise_for_status()


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KnownPacs]:
    archive = KnownPacs(orthanc_program(), tmp_path_factory.mktemp("pacs"))
    archive.knows("PACSNODE", 1)
    yield archive
    archive.stop()


def peer(port: int, **changes: Any) -> QueryPeer:
    usual = {"timeout_seconds": 2.0, "retry_seconds": 0.5}
    return QueryPeer(ae_title=AE_TITLE, host="127.0.0.1", port=port, **usual | changes)


@contextmanager
def node(
    folder: Path, query: QueryPeer | None, timing: SeriesConfig = TIMING, **receive: Any
) -> Iterator[ReceivingNode]:
    running = ReceivingNode(folder / "var", timing=timing, query={"pacs": query} if query else {})
    receive = {"allowed_calling_ae_titles": ("SENDER", AE_TITLE), **receive}
    running.receive = running.receive.model_copy(update=receive)
    running.start()
    yield running
    running.stop()


def slices(uid: str, count: int, **changes: Any) -> list[Dataset]:
    return [ct_slice(uid, number, **changes) for number in range(count)]


def send(running: ReceivingNode, images: list[Dataset], *, abort: bool = False) -> None:
    sender = Sender(running.port, CT)
    for image in images:
        assert sender.store_image(image) == 0x0000
    if abort:
        sender.abort()
    else:
        sender.release()


def only_evidence(running: ReceivingNode, seconds: float = 10.0) -> dict[str, Any]:
    wait_for(lambda: running.completed, seconds=seconds, what="the series to be complete")
    (row,) = running.series_rows()
    found: dict[str, Any] = row["evidence"]
    return found


def test_the_pacs_says_that_all_are_there(tmp_path: Path, pacs: KnownPacs) -> None:
    images = slices(generate_uid(), 8)
    pacs.holds(images)
    patient = TIMING.model_copy(update={"released_quiet_seconds": 9.0})
    with node(tmp_path, peer(pacs.port), patient) as running:
        send(running, images, abort=True)
        record = only_evidence(running, seconds=3.0)
    assert (record["rule"], record["complete"], record["expected_by"]) == ("expected_count", True, "c_find")
    assert record["associations"]["aborted"] == 1


@pytest.mark.parametrize("retrieve", ["get", "move"])
def test_what_is_missing_is_fetched(tmp_path: Path, pacs: KnownPacs, retrieve: str) -> None:
    images = slices(generate_uid(), 12)
    withheld = [images[n] for n in (3, 4, 11)]
    pacs.holds(images)
    with node(tmp_path, peer(pacs.port, retrieve=retrieve)) as running:
        pacs.knows("PACSNODE", running.port)
        send(running, [image for image in images if image not in withheld])
        record = only_evidence(running)
        rows = {row["sop_instance_uid"]: row for row in running.rows() if row["state"] == "stored"}
        for image in images:
            row = rows[image.SOPInstanceUID]
            assert row["state"] == "stored" and row["series_version"] == 1
            assert running.dataset_bytes(row) == encoded(image)
        assert {rows[image.SOPInstanceUID]["calling_ae_title"] for image in withheld} == {AE_TITLE}
        study = images[0].StudyInstanceUID
        wait_for(lambda: len(running.audited_transfers()) == 2, what="both transfers' audit messages")
        assert running.audited_transfers() == {(study, "C", "0", "9", ""), (study, "C", "0", "3", "")}
        count = running.metrics.registry.get_sample_value
        assert count("pacsnode_instances_total", {"outcome": "stored", "code": "none"}) == 12
    assert len(rows) == 12
    assert (record["rule"], record["complete"], record["instances"]) == ("expected_count", True, 12)
    assert record["query"] == {"peer": "pacs", "expected": 12, "fetches": 1, "fetched": 3}
    assert not list((running.data_dir / "spool/incoming").iterdir())


def test_compressed_instances_are_fetched_as_they_are(tmp_path: Path, pacs: KnownPacs) -> None:
    folder = shared("chest_ct/lidc0001_ge_deflated")
    paths = sorted(path for path in folder.iterdir() if path.is_file())[:12]
    sent = tmp_path / "sent"
    sent.mkdir()
    for path in paths[:10]:
        shutil.copy(path, sent)
    everything = tmp_path / "everything"
    everything.mkdir()
    for path in paths:
        shutil.copy(path, everything)
    send_folder(pacs.port, everything)
    query = peer(pacs.port).model_dump(mode="json")
    running = RunningNode(
        tmp_path / "node",
        triton_url="127.0.0.1:1",
        pacs_port=1,
        routes=[],
        series=TIMING.model_dump(mode="json"),
        query={"pacs": query},
    ).start()
    try:
        assert send_folder(running.port, sent).returncode == 0
        (row,) = wait_for(
            lambda: [s for s in running.get("/api/series") if s["state"] == "routed"], seconds=20
        )
        assert row["evidence"]["complete"] is True, row["evidence"]
        assert row["evidence"]["query"]["fetched"] == 2
        assert 'pacsnode_fetches_total{outcome="complete",peer="pacs"} 1.0' in running.text("/metrics")
        assert not list((running.data_dir / "spool/incoming").iterdir())
    finally:
        running.stop()


def test_more_than_the_pacs_has_cannot_be_fetched(tmp_path: Path, pacs: KnownPacs) -> None:
    """A gap that the PACS has, too: it isn't waited for, but it is on record."""
    images = [image for image in slices(generate_uid(), 12) if image.InstanceNumber != 5]
    pacs.holds(images)
    with node(tmp_path, peer(pacs.port)) as running:
        send(running, images)
        record = only_evidence(running)
    assert (record["rule"], record["complete"]) == ("association_release", False)
    assert record["missing_positions"]["along_normal_mm"] == [12.5]


def test_a_refused_fetch_is_on_record(tmp_path: Path, pacs: KnownPacs) -> None:
    """C-MOVE to an AE title that Orthanc doesn't know."""
    images = slices(generate_uid(), 12)
    pacs.holds(images)
    pacs.knows("ASKER", 1)
    query = peer(pacs.port, retrieve="move", max_fetches=2, calling_ae_title="ASKER")
    with node(tmp_path, query, ae_title="STRANGER", require_called_ae_title=False) as running:
        send(running, images[:10])
        record = only_evidence(running, seconds=15)
        metrics = running.metrics.expose().decode()
    assert (record["rule"], record["complete"], record["missing_instances"]) == ("missing_limit", False, 2)
    assert (record["query"]["fetches"], record["query"]["fetched"]) == (2, 0)
    assert record["query"]["error"].startswith("fetch: ")
    assert 'pacsnode_fetches_total{outcome="failed",peer="pacs"} 2.0' in metrics
    assert 'pacsnode_series_incomplete_total{by="c_find"} 1.0' in metrics


def test_a_pacs_that_is_down_delays_nothing(tmp_path: Path) -> None:
    with node(tmp_path, peer(free_port())) as running:
        started = time.monotonic()
        for _series in range(3):
            send(running, slices(generate_uid(), 3))
        wait_for(lambda: len(running.completed) == 3, seconds=5)
        assert time.monotonic() - started < 4
        records = [row["evidence"] for row in running.series_rows()]
    assert {record["rule"] for record in records} == {"association_release"}
    assert all("unreachable" in record["query"]["error"] for record in records)


Handler = Callable[[evt.Event], Iterator[tuple[int, Dataset | None]]]


@contextmanager
def scripted(find: Handler, **more: Any) -> Iterator[int]:
    """A query SCP that answers as no real one may."""
    ae = AE(ae_title=AE_TITLE)
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
    ae.add_supported_context(CTImageStorage, scu_role=True, scp_role=True)
    handlers = [(evt.EVT_C_FIND, find), *((getattr(evt, name), handler) for name, handler in more.items())]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    yield int(server.server_address[1])
    server.shutdown()


def answer(event: evt.Event, **values: Any) -> Dataset:
    found = Dataset()
    found.QueryRetrieveLevel = event.identifier.QueryRetrieveLevel
    found.SeriesInstanceUID = event.identifier.SeriesInstanceUID
    for keyword, value in values.items():
        setattr(found, keyword, value)
    return found


def slow(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
    time.sleep(3.0)
    yield 0x0000, None


def refusing(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
    yield 0xA700, None


def other_series(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
    """Ignores the keys."""
    for number in range(50):
        yield 0xFF00, answer(event, SeriesInstanceUID=f"1.2.{number}", NumberOfSeriesRelatedInstances=9)
    yield 0x0000, None


def absurd_counts(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
    """No number of instances at SERIES level, and no UIDs at IMAGE level."""
    if event.identifier.QueryRetrieveLevel == "SERIES":
        yield 0xFF00, answer(event, NumberOfSeriesRelatedInstances=-7)
    else:
        for number in range(20):
            yield 0xFF00, answer(event, SOPInstanceUID=f"not a UID {number}")
    yield 0x0000, None


def endless(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
    while not event.is_cancelled:
        time.sleep(0.05)
        yield 0xFF00, answer(event, NumberOfSeriesRelatedInstances=1)


def aborting(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
    event.assoc.abort()
    yield 0x0000, None


@pytest.mark.parametrize("find", [slow, refusing, other_series, absurd_counts, endless, aborting])
def test_useless_answers_cost_seconds_and_no_series(tmp_path: Path, find: Handler) -> None:
    with (
        scripted(find) as port,
        node(tmp_path, peer(port, timeout_seconds=0.5, retry_seconds=5.0)) as running,
    ):
        send(running, slices(generate_uid(), 5))
        record = only_evidence(running, seconds=8)
    assert record["rule"] == "association_release"
    assert record["complete"] is None
    assert record["query"]["expected"] is None


def test_a_slow_peer_holds_up_only_its_own_senders(tmp_path: Path) -> None:
    with scripted(slow) as port:
        query = peer(port, timeout_seconds=5.0, senders=("OTHER",))
        with node(tmp_path, query) as running:
            send(running, slices(generate_uid(), 3))
            wait_for(lambda: running.completed, seconds=2)


def test_a_peer_that_ignores_levels_is_counted_by_its_images(tmp_path: Path) -> None:
    uid = generate_uid()
    images = slices(uid, 5)

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        if event.identifier.QueryRetrieveLevel == "SERIES":
            yield 0xFF00, answer(event)
        else:
            for image in images:
                yield 0xFF00, answer(event, SOPInstanceUID=image.SOPInstanceUID)
        yield 0x0000, None

    with scripted(find) as port, node(tmp_path, peer(port)) as running:
        send(running, images)
        record = only_evidence(running)
    assert (record["rule"], record["expected"], record["expected_by"]) == ("expected_count", 5, "c_find")


def test_a_peer_that_sends_what_was_not_asked_for_fills_nothing(tmp_path: Path) -> None:
    uid = generate_uid()
    images = slices(uid, 5)

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        for image in images:
            yield 0xFF00, answer(event, SOPInstanceUID=image.SOPInstanceUID, NumberOfSeriesRelatedInstances=5)
        yield 0x0000, None

    def get(event: evt.Event) -> Iterator[tuple[int, Dataset | None] | int]:
        yield 1
        yield 0xFF00, as_file(ct_slice(generate_uid(), 1))

    with scripted(find, EVT_C_GET=get) as port, node(tmp_path, peer(port, max_fetches=1)) as running:
        send(running, images[:4])
        record = only_evidence(running, seconds=12)
        assert len(running.rows()) == 4
    assert (record["rule"], record["missing_instances"]) == ("missing_limit", 1)
    assert record["query"]["fetched"] == 0


def test_killed_in_the_middle_of_a_fetch(tmp_path: Path, pacs: KnownPacs) -> None:
    """The fetch hangs, the node is killed; the next one fetches the rest."""
    images = slices(generate_uid(), 12)
    pacs.holds(images)
    hanging = threading.Event()

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        for image in images:
            yield (
                0xFF00,
                answer(event, SOPInstanceUID=image.SOPInstanceUID, NumberOfSeriesRelatedInstances=12),
            )
        yield 0x0000, None

    def get(event: evt.Event) -> Iterator[tuple[int, Dataset | None] | int]:
        hanging.set()
        time.sleep(20)
        yield 0

    timing = TIMING.model_copy(update={"missing_wait_seconds": 60.0})
    with scripted(find, EVT_C_GET=get) as port:
        query = peer(port).model_dump(mode="json")
        running = RunningNode(
            tmp_path, triton_url="127.0.0.1:1", pacs_port=1, routes=[],
            series=timing.model_dump(mode="json"), query={"pacs": query},
        ).start()  # fmt: skip
        folder = tmp_path / "sent"
        folder.mkdir()
        for image in images[:9]:
            image.save_as(folder / f"{image.InstanceNumber}.dcm", enforce_file_format=True)
        assert send_folder(running.port, folder).returncode == 0
        assert hanging.wait(15)
        running.kill()
    engine = open_database(running.data_dir)
    with engine.connect() as connection:
        assert connection.execute(select(inquiries.c.fetches)).scalar_one() == 1
    engine.dispose()
    text = running.config_path.read_text().replace(f"port: {port}", f"port: {pacs.port}")
    running.config_path.write_text(text)
    running.start()
    try:
        (row,) = wait_for(
            lambda: [s for s in running.get("/api/series") if s["state"] == "routed"], seconds=20
        )
    finally:
        running.stop()
    assert (row["instance_count"], row["version"]) == (12, 1)
    assert row["evidence"]["query"] == {"peer": "pacs", "expected": 12, "fetches": 2, "fetched": 3}


def test_a_study_whose_slices_arrive_in_random_order(tmp_path: Path) -> None:
    uids = [generate_uid() for _series in range(3)]
    images = [image for uid in uids for image in slices(uid, 20, ImagesInAcquisition=20)]
    random.Random(5).shuffle(images)  # noqa: S311 - not for cryptography
    with node(tmp_path, None) as running:
        for start in range(0, 60, 20):
            send(running, images[start : start + 20])
        wait_for(lambda: len(running.completed) == 3)
        rows = running.series_rows()
    assert {row["evidence"]["rule"] for row in rows} == {"expected_count"}
    assert {row["instance_count"] for row in rows} == {20}


def test_an_enhanced_object_is_complete_while_its_association_is_open(tmp_path: Path) -> None:
    image = ct_slice(generate_uid(), 1, SOPClassUID=EnhancedCTImageStorage, NumberOfFrames=30)
    with node(tmp_path, None) as running:
        sender = Sender(running.port, [(EnhancedCTImageStorage, ExplicitVRLittleEndian)])
        assert sender.store_image(image) == 0x0000
        record = only_evidence(running, seconds=2.5)
        sender.release()
    assert (record["rule"], record["associations"]["released"]) == ("multi_frame", 0)
