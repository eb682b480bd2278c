"""What is uploaded: bodies of several parts, zips, and what isn't taken."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from node.web import unpack as unpacking
from node.web.multipart import BadBody, Limits, Part, removed, save_body, save_parts
from node.web.unpack import PICTURE_SKIPPED, unpack

DICOM = bytes(128) + b"DICM" + b"rest"
LIMITS = Limits(body_bytes=10_000, parts=3)


def request(
    body: bytes, content_type: str, chunk: int = 7, headers: Mapping[str, str] | None = None
) -> Request:
    pieces = [body[at : at + chunk] for at in range(0, len(body), chunk)] or [b""]

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    fields = {"content-type": content_type, **(headers or {})}
    raw = [(name.encode(), value.encode()) for name, value in fields.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive)


def body(*parts: bytes, boundary: str = "XX", end: bool = True) -> bytes:
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    return b"".join(head + part + b"\r\n" for part in parts) + (
        f"--{boundary}--\r\n".encode() if end else b""
    )


RELATED = 'multipart/related; type="application/dicom"; boundary=XX'


@pytest.mark.anyio
async def test_parts_are_saved_as_they_come(tmp_path: Path) -> None:
    sent = [b"a" * 1000, b"", b"\r\n--X\r\n--XY\r\n"]
    for chunk in (1, 3, 5000):
        with removed(tmp_path) as folder:
            parts = await save_parts(request(body(*sent), RELATED, chunk), folder, LIMITS)
            assert [part.path.read_bytes() for part in parts] == sent
            assert [part.size for part in parts] == [len(one) for one in sent]
            assert {part.content_type for part in parts} == {"application/dicom"}
    assert not list(tmp_path.iterdir())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=3), st.integers(1, 50))
def test_any_content_survives(contents: list[bytes], chunk: int) -> None:
    import asyncio
    import tempfile

    async def saved() -> list[bytes]:
        with tempfile.TemporaryDirectory() as name, removed(Path(name)) as folder:
            boundary = "=_a-boundary-that-no-content-has_="
            sent = body(*contents, boundary=boundary)
            kind = f'multipart/related; boundary="{boundary}"'
            limits = Limits(100_000, 10)
            parts = await save_parts(request(sent, kind, chunk), folder, limits)
            return [part.path.read_bytes() for part in parts]

    assert asyncio.run(saved()) == contents


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("sent", "kind", "status", "message"),
    [
        (b"{}", "application/json", 415, "must be multipart"),
        (b"", "multipart/related", 415, "with a boundary"),
        (b"nonsense", RELATED, 400, "isn't multipart"),
        (body(b"a", end=False), RELATED, 400, "before its last boundary"),
        (body(b"a" * 20_000), RELATED, 413, "at most"),
        (body(b"a", b"b", b"c", b"d"), RELATED, 413, "3 parts"),
        (b"--XX\r\nX: " + b"y" * 9000 + b"\r\n\r\n", RELATED, 400, "isn't multipart"),
        (b"", f"multipart/related; boundary={'b' * 300}", 400, "isn't multipart"),
    ],
)
async def test_what_is_no_body(tmp_path: Path, sent: bytes, kind: str, status: int, message: str) -> None:
    with pytest.raises(BadBody, match=message) as caught, removed(tmp_path) as folder:
        await save_parts(request(sent, kind, 4000), folder, LIMITS)
    assert caught.value.status == status
    assert not list(tmp_path.iterdir())


@pytest.mark.anyio
async def test_what_says_that_it_is_too_large_is_not_read(tmp_path: Path) -> None:
    asked = request(b"x", "application/octet-stream", headers={"content-length": "20000"})
    with pytest.raises(BadBody, match="at most"):
        await save_body(asked, tmp_path / "file", 10_000)
    with pytest.raises(BadBody, match="at most"):
        await save_body(request(b"x" * 20_000, "x/y", 999), tmp_path / "file", 10_000)
    assert await save_body(request(b"x" * 10_000, "x/y", 999), tmp_path / "file", 10_000) == 10_000


def part(folder: Path, content: bytes, name: str = "name") -> Part:
    path = folder / f"{len(list(folder.iterdir())):06d}"
    path.write_bytes(content)
    return Part(path, "", name, len(content))


def zipped(*files: tuple[str, bytes]) -> bytes:
    packed = BytesIO()
    with ZipFile(packed, "w", ZIP_DEFLATED) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return packed.getvalue()


def test_names_in_a_zip_are_no_paths(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    names = ("../../escaped.dcm", "/tmp/escaped.dcm", "a/b/c.dcm", "C:\\x.dcm", "x" * 300)
    sent = zipped(*((name, DICOM) for name in names), ("folder/", b""), ("readme.txt", b"hello"))
    found = unpack([part(tmp_path / "in", sent)], tmp_path / "in", 10**6)
    assert len(found.dicom) == len(names)
    assert all(one.path.parent == tmp_path / "in" for one in found.dicom)
    assert {one.name for one in tmp_path.iterdir()} == {"in"}
    assert found.skipped == [("readme.txt", "not a DICOM file (no DICM after 128 bytes)")]


def test_kinds_are_told_by_content(tmp_path: Path) -> None:
    pictures = (b"\xff\xd8\xff\xe0 jpeg", b"\x89PNG\r\n\x1a\n")
    sent = [part(tmp_path, content, "x.dcm") for content in (DICOM, *pictures, b"MZ", b"")]
    found = unpack(sent, tmp_path, 10**6)
    assert [one.path for one in found.dicom] == [sent[0].path]
    assert [why for _, why in found.skipped][:2] == [PICTURE_SKIPPED] * 2


def encrypted() -> bytes:
    """A zip whose only file says that it needs a password."""
    sent = bytearray(zipped(("a", DICOM)))
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        struct.pack_into("<H", sent, sent.index(signature) + at, 1)
    return bytes(sent)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (zipped(("zeros", bytes(60_000_000))), "unpacks to more than 50 MB"),
        (zipped(*((str(n), bytes(30_000_000)) for n in range(2))), "unpacks to more than 50 MB"),
        (zipped(*((str(n), b"") for n in range(30))), "30 files"),
        (b"PK\x03\x04 but nothing else", "broken"),
        (zipped(("a", DICOM * 100))[:-30], "broken"),
        (encrypted(), "encrypted"),
    ],
)
def test_bombs_and_broken_zips(
    tmp_path: Path, sent: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "MOST_ENTRIES", 20)
    with pytest.raises(BadBody, match=message) as caught:
        unpack([part(tmp_path, sent)], tmp_path, 10**9)
    assert caught.value.status in (400, 413)


def test_a_zip_in_a_zip_is_not_opened(tmp_path: Path) -> None:
    found = unpack([part(tmp_path, zipped(("b.zip", zipped(("c", DICOM)))))], tmp_path, 10**6)
    assert not found.dicom and found.skipped[0][0] == "b.zip"
