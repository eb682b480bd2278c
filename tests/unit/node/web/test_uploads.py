"""Upload links: one phone each, for a while; what is refused, in a sentence; what the phone may see."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, insert

from node.config import WebConfig
from node.database import jobs, series
from node.errors import SpoolError
from node.metrics import Metrics
from node.receive.handing import Handing
from node.web import uploads
from node.web.app import create_app
from node.web.sources import Sources
from node.web.uploads import UploadLinks
from tests.unit.node.rows import job_row, series_row
from tests.unit.node.web.test_pages import dicom, zipped
from tests.unit.node.web.test_sessions import Clock
from tests.unit.node.web.test_wrapping import encoded, gradient

ORIGIN = {"Origin": "http://localhost"}


class Receiver:
    """What it was ordered; says that everything is stored, or whatever ``status`` is."""

    def __init__(self) -> None:
        self.orders: list[dict[str, Any]] = []
        self.status = 0
        self.down = False

    def obey(self, order: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
        if self.down:
            raise SpoolError("the receiver is down", hint="send it again in a moment")
        self.orders.append(order)
        taken = {"status": self.status, "comment": "quarantined: it" if self.status else ""}
        uids = {"study_instance_uid": "1.2", "series_instance_uid": "1.2.3"}
        return [taken | uids for path in order.get("paths", ()) if Path(path).is_file()]

    def names(self) -> list[str]:
        return [order["order"] for order in self.orders]


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


def client(engine: Engine, folder: Path, receiver: Receiver | None, **options: Any) -> httpx.AsyncClient:
    handing = Handing(receiver) if receiver is not None else None
    sources = Sources(data_dir=folder, uploads=folder / "uploads", handing=handing)
    config = WebConfig(**options)
    app = create_app(engine, Metrics("1"), {}, sources=sources, config=config)
    transport = httpx.ASGITransport(app=app, client=("127.0.0.1", 4000))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=ORIGIN)


async def link(operator: httpx.AsyncClient) -> str:
    page = (await operator.get("/upload")).text
    assert "<svg" in page
    found = re.search(r'id="link" href="[^"]*(/upload/[^"]+)"', page)
    assert found is not None
    return found.group(1)


@pytest.mark.anyio
async def test_the_first_phone_has_the_link(engine: Engine, tmp_path: Path, receiver: Receiver) -> None:
    async with client(engine, tmp_path, receiver) as first:
        address = await link(first)
        transport = first._transport
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=ORIGIN
        ) as other:
            unclaimed = await first.post(f"{address}/files", content=dicom())
            assert unclaimed.status_code == 404
            opened = await first.get(address)
            assert opened.status_code == 200
            cookie = opened.headers["Set-Cookie"]
            for part in ("HttpOnly", "SameSite=strict", "Path=/upload"):
                assert part in cookie
            assert (await first.get(address)).status_code == 200, "a page that is loaded again"
            assert (await other.get(address)).status_code == 404
            assert (await other.post(f"{address}/files", content=dicom())).status_code == 404
            assert (await other.get(f"{address}/state")).status_code == 404
        elsewhere = {"Origin": "http://attacker.example.org"}
        assert (await first.post(f"{address}/files", content=dicom(), headers=elsewhere)).status_code == 404
        assert (await first.get("/upload/nonsense")).status_code == 404
    assert receiver.orders == []


@pytest.mark.anyio
async def test_files_go_to_the_receiver_as_one_association(
    engine: Engine, tmp_path: Path, receiver: Receiver
) -> None:
    async with client(engine, tmp_path, receiver) as phone:
        address = await link(phone)
        await phone.get(address)
        sent = await phone.post(f"{address}/files", content=dicom())
        assert (sent.status_code, sent.json()) == (200, {"stored": 1, "refused": {}, "skipped": 0})
        packed = zipped(**{"a.dcm": dicom(), "b.dcm": dicom(), "readme": b"x"})
        sent = await phone.post(f"{address}/files", content=packed)
        assert sent.json() == {"stored": 2, "refused": {}, "skipped": 1}
        receiver.status = 0xC000
        sent = await phone.post(f"{address}/files", content=dicom())
        assert (sent.status_code, sent.json()["refused"]) == (422, {"quarantined: it": 1})
        assert (await phone.post(f"{address}/done")).status_code == 200
        assert receiver.names() == ["open", "take", "take", "take", "end"]
        assert (receiver.orders[0]["ae_title"], receiver.orders[-1]["released"]) == ("UPLOAD", True)
        receiver.down = True
        down = await phone.post(f"{address}/files", content=dicom())
        assert down.status_code == 503 and "the receiver is down" in down.json()["error"]
    assert not list((tmp_path / "uploads").iterdir())


@pytest.mark.anyio
async def test_a_picture_goes_to_the_receiver_wrapped(
    engine: Engine, tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MOST_PICTURES", 2)
    async with client(engine, tmp_path, receiver) as phone:
        address = await link(phone)
        await phone.get(address)
        for kind in ("PNG", "JPEG"):
            sent = await phone.post(f"{address}/files", content=encoded(gradient(), kind))
            assert (sent.status_code, sent.json()) == (200, {"stored": 1, "refused": {}, "skipped": 0})
        too_many = await phone.post(f"{address}/files", content=encoded(gradient()))
        assert too_many.status_code == 429
        mixed = zipped(**{"a.dcm": dicom(), "logo.png": encoded(gradient())})
        assert (await phone.post(f"{address}/files", content=mixed)).json()["skipped"] == 1
    assert receiver.names() == ["open", "take", "take", "take"]
    assert all(path.endswith(".dcm") for order in receiver.orders[1:3] for path in order["paths"])
    assert not list((tmp_path / "uploads").iterdir())


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"\xff\xd8\xff\xe0 a photo", 422, "the picture is broken"),
        (encoded(gradient())[:-40], 422, "the picture is cut short or broken"),
        (b"MZ", 415, "neither a DICOM file, nor a zip with one, nor a JPEG or PNG picture"),
        (b"GIF89a", 415, "nor a JPEG or PNG picture"),
        (b"", 415, "neither a DICOM file"),
        (zipped(readme=b"hello"), 415, "neither a DICOM file"),
        (zipped(a=encoded(gradient())), 415, "choose the pictures themselves"),
        (zipped(zeros=bytes(60_000_000)), 413, "unpacks to more than"),
        (b"PK\x03\x04", 400, "the zip is broken"),
        (bytes(2_000_001), 413, "at most 2 MB"),
    ],
)
async def test_what_is_not_taken(
    engine: Engine, tmp_path: Path, content: bytes, status: int, message: str
) -> None:
    receiver = Receiver()
    async with client(engine, tmp_path, receiver, max_upload_bytes=2_000_000) as phone:
        address = await link(phone)
        await phone.get(address)
        answer = await phone.post(f"{address}/files", content=content)
        assert (answer.status_code, message in answer.json()["error"]) == (status, True), answer.text
    assert receiver.orders == []
    assert not list((tmp_path / "uploads").iterdir())


@pytest.mark.anyio
async def test_the_phone_sees_its_own_series_only(engine: Engine, tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "results/j1").mkdir(parents=True)
    summary = {
        "results": [],
        "timings_seconds": {},
        "conclusion": "It is.",
        "estimates": {"m": {"viral": 0.9}},
    }
    (tmp_path / "results/j1/summary.json").write_text(json.dumps(summary))
    with engine.begin() as connection:
        connection.execute(insert(series), [series_row(), series_row(series_instance_uid="9.9")])
        other = job_row(job_id="j2", series_instance_uid="9.9", result_dir=None)
        connection.execute(insert(jobs), [job_row(state="delivering", result_dir="results/j1"), other])
    async with client(engine, tmp_path, receiver) as phone:
        address = await link(phone)
        await phone.get(address)
        assert (await phone.get(f"{address}/state")).json() == {"series": []}
        await phone.post(f"{address}/files", content=dicom())
        (one,) = (await phone.get(f"{address}/state")).json()["series"]
        assert [job["job_id"] for job in one["jobs"]] == ["j1"]
        assert one["jobs"][0]["estimates"] == {"viral": 0.9}
        assert (await phone.get(f"{address}/pictures/j2/0")).status_code == 404


@pytest.mark.anyio
async def test_who_may_make_links_and_where_they_lead(
    engine: Engine, tmp_path: Path, receiver: Receiver
) -> None:
    async with client(engine, tmp_path, receiver) as local:
        assert "A phone can't reach this address" in (await local.get("/upload")).text
    async with client(engine, tmp_path, receiver, public_url="https://node.example.org") as named:
        page = (await named.get("/upload")).text
        assert 'href="https://node.example.org/upload/' in page and "can't reach" not in page
    async with client(engine, tmp_path, None) as worker:
        assert (await worker.get("/upload")).status_code == 404
    async with client(engine, tmp_path, receiver, open_loopback=False) as nobody:
        assert (await nobody.get("/upload")).status_code == 401


def orders(links: UploadLinks, tokens: Sequence[str]) -> list[bool]:
    return [links.claim(token, "") is not None for token in tokens]


def test_links_end_and_are_bounded(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(uploads, "MOST_OF_ONE", 2)
    clock = Clock()
    links = UploadLinks(60.0, Handing(receiver), clock)
    tokens = [links.make("anna") for _ in range(3)]
    assert orders(links, tokens) == [False, True, True]
    token = links.make("otto")
    claimed = links.claim(token, "")
    assert claimed is not None
    upload, cookie = claimed
    upload.take([tmp_path / "x"], "192.0.2.1")
    assert links.find(token, cookie) is upload and links.find(token, cookie + "x") is None
    clock.now += 61.0
    assert links.find(token, cookie) is None
    assert receiver.names() == ["open", "take", "end"], "who waits for more of it has to hear of the end"
    assert receiver.orders[-1]["released"] is False


def test_a_phone_that_has_gone_is_waited_for_a_while_only(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(uploads, "IDLE_SECONDS", 0.01)
    links = UploadLinks(60.0, Handing(receiver))
    claimed = links.claim(links.make("anna"), "")
    assert claimed is not None
    claimed[0].take([tmp_path / "x"], "192.0.2.1")
    assert claimed[0]._idle is None or claimed[0]._idle.finished.wait(30)
    claimed[0].end(released=True)
    assert receiver.names() == ["open", "take", "end"]
