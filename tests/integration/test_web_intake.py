"""Files that come by HTTP: what is answered as stored is there after kill -9, and routed like any series."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from sqlalchemy import Engine, select

from node.config import NodeConfig, ReceiveConfig, SeriesConfig, StowDestination, WebConfig
from node.database import instances, open_database, series
from node.deliver.stow import StowDeliverer
from node.metrics import Metrics
from node.receive.handing import Handing
from node.receive.process import ReceiverProcess
from node.web.app import WebServer, create_app
from node.web.sources import Sources
from node.web.users import Users, write_users
from tests.integration.receiving import wait_for
from tests.unit.node.web.test_wrapping import encoded, gradient

pytestmark = pytest.mark.integration
FAILED, REFERENCED, OTHER = "00081198", "00081199", "0008119A"


@dataclass
class Node:
    """A receiver process and the web server in front of it."""

    folder: Path
    floor: int = 0
    completed: list[tuple[str, int]] = field(default_factory=list)

    def start(self) -> Node:
        self.config = NodeConfig(
            data_dir=self.folder,
            receive=ReceiveConfig(port=0, free_disk_floor_bytes=self.floor, journal_bytes=2**25, movers=0),
            series=SeriesConfig(quiet_seconds=30.0, released_quiet_seconds=0.2),
        )
        users, self.token = Users().with_token("pacs", "operator")
        users, self.viewer = users.with_token("eye", "viewer")
        write_users(self.folder / "users.yaml", users)
        self.engine: Engine = open_database(self.folder)
        self.receiver = ReceiverProcess(self.config, lambda *key: self.completed.append(key))
        self.receiver.start()
        sources = Sources(
            data_dir=self.folder, uploads=self.folder / "uploads", handing=Handing(self.receiver)
        )
        web = WebConfig(port=0, users=self.folder / "users.yaml", open_loopback=False, max_upload_bytes=10**7)
        self.web = WebServer(web, create_app(self.engine, Metrics("1"), {}, sources=sources, config=web))
        self.web.start()
        self.url = f"http://127.0.0.1:{self.web.port}"
        return self

    def stop(self) -> None:
        self.web.stop()
        self.receiver.stop()
        self.engine.dispose()

    def kill(self) -> None:
        """kill -9 the receiver; wait until the next one listens."""
        process = self.receiver._process
        assert process is not None
        self.receiver._ready.clear()
        os.kill(process.pid, signal.SIGKILL)
        wait_for(lambda: self.receiver.why_not_ready() is None, seconds=60, what="the next receiver")

    def states(self) -> dict[str, str]:
        with self.engine.connect() as connection:
            rows = connection.execute(select(instances.c.sop_instance_uid, instances.c.state)).all()
        return {row[0]: row[1] for row in rows}

    def post(self, *parts: bytes, path: str = "/dicom-web/studies", **headers: str) -> httpx.Response:
        boundary = uuid.uuid4().hex
        body = b"".join(
            f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode() + part + b"\r\n"
            for part in parts
        )
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        sent = {"Authorization": f"Bearer {self.token}", "Content-Type": kind, **headers}
        body += f"--{boundary}--".encode()
        return httpx.post(f"{self.url}{path}", content=body, headers=sent, timeout=60)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    running = Node(tmp_path_factory.mktemp("node")).start()
    yield running
    running.stop()


def ct(**values: Any) -> Dataset:
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, generate_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID = generate_uid(), generate_uid()
    image.update({"Modality": "CT", "Rows": 4, "Columns": 4, "PixelData": bytes(32), **values})
    image["PixelData"].VR = "OW"
    return image


def part10(image: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = BytesIO()
    image.save_as(file, enforce_file_format=True)
    return file.getvalue().replace(b"1.2.840.10008.1.2.1\0", syntax.encode().ljust(20, b"\0"))


def reasons(answer: httpx.Response, sequence: str = FAILED) -> dict[str, int]:
    """SOP Instance UID, "" where there is none -> failure reason."""
    items = answer.json()[sequence]["Value"]
    return {i.get("00081155", {"Value": [""]})["Value"][0]: i["00081197"]["Value"][0] for i in items}


def test_what_is_answered_as_stored_is_there_after_kill_9(node: Node) -> None:
    series_uid = generate_uid()
    sent = [ct(SeriesInstanceUID=series_uid) for _ in range(5)]
    answer = node.post(*map(part10, sent))
    node.kill()
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/dicom+json"
    referenced = {item["00081155"]["Value"][0] for item in answer.json()[REFERENCED]["Value"]}
    assert referenced == {image.SOPInstanceUID for image in sent}
    states = node.states()
    assert {states.get(uid) for uid in referenced} == {"stored"}
    again = node.post(*map(part10, sent))
    assert again.status_code == 200 and len(again.json()[REFERENCED]["Value"]) == 5


def test_a_request_s_end_is_an_association_s_release(node: Node) -> None:
    image = ct()
    assert node.post(part10(image)).status_code == 200
    key = (image.SeriesInstanceUID, 1)
    wait_for(lambda: key in node.completed, seconds=60, what="the series to be complete before quiet time")
    with node.engine.connect() as connection:
        sender = connection.execute(
            select(series.c.calling_ae_title).where(series.c.series_instance_uid == key[0])
        ).scalar_one()
    assert sender == "STOW-RS"


def test_each_instance_has_its_own_reason(node: Node) -> None:
    good, of_study = ct(), ct()
    assert node.post(part10(good)).status_code == 200
    same = {name: good[name].value for name in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")}
    other = ct(**same, PixelData=bytes([1] * 32))
    foreign = ct()
    answer = node.post(part10(ct()), part10(other), b"not DICOM" * 100, part10(foreign, "1.2.3.4"))
    assert answer.status_code == 202
    assert reasons(answer) == {good.SOPInstanceUID: 0xC001, foreign.SOPInstanceUID: 0xC122}
    assert reasons(answer, OTHER) == {"": 0xC000}
    path = f"/dicom-web/studies/{of_study.StudyInstanceUID}"
    assert node.post(part10(of_study), path=path).status_code == 200
    stranger = ct()
    answer = node.post(part10(stranger), path=path)
    assert answer.status_code == 409 and reasons(answer) == {stranger.SOPInstanceUID: 0xA900}
    assert stranger.SOPInstanceUID not in node.states()
    unstorable = node.post(part10(ct(SOPClassUID="1.2.840.10008.1.1")))
    assert unstorable.status_code == 409 and set(reasons(unstorable).values()) == {0x0122}
    assert not list((node.folder / "uploads").iterdir())


def test_the_same_picture_by_phone_is_the_same_instance_after_kill_9(node: Node) -> None:
    before = set(node.states())
    page = httpx.get(f"{node.url}/upload", headers={"Authorization": f"Bearer {node.token}"}).text
    link = page.partition('id="link" href="')[2].partition('"')[0]
    with httpx.Client(headers={"Origin": node.url}, timeout=60) as phone:
        assert phone.get(link).status_code == 200
        for status in (200, 503, 200):  # what was on its way is asked for again, as the page does
            sent = phone.post(f"{link}/files", content=encoded(gradient(), "JPEG"))
            assert sent.status_code == status, sent.text
            if status == 200:
                assert sent.json() == {"stored": 1, "refused": {}, "skipped": 0}
                node.kill()
    (made,) = set(node.states()) - before
    assert node.states()[made] == "stored"


def test_our_own_stow_client_is_understood(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOW_TOKEN", node.token)
    config = StowDestination(type="stow", url=f"{node.url}/dicom-web", token_variable="STOW_TOKEN")  # noqa: S106
    files = []
    for number in range(3):
        files.append(tmp_path / f"{number}.dcm")
        files[-1].write_bytes(part10(ct()))
    assert len(StowDeliverer("us", config).deliver(files)) == 3


def test_what_is_no_request(node: Node) -> None:
    part = part10(ct())
    assert node.post(part, Authorization="").status_code == 401
    assert node.post(part, Authorization=f"Bearer {node.viewer}").status_code == 403
    assert node.post(part, Accept="application/dicom+xml").status_code == 406
    assert node.post(part, **{"Content-Type": "application/dicom+json"}).status_code == 415
    assert node.post(part, path="/dicom-web/studies/not-a-uid").status_code == 400
    assert node.post().status_code == 400
    assert node.post(bytes(11_000_000)).status_code == 413


def test_without_room_it_asks_to_come_again(tmp_path: Path) -> None:
    full = Node(tmp_path, floor=2**62).start()
    try:
        answer = full.post(part10(ct()))
        assert answer.status_code == 503 and answer.headers["Retry-After"]
        assert full.states() == {}
    finally:
        full.stop()
