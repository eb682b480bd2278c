"""Bodies of several parts: what a form with files and a STOW-RS request bring.

In: the body, as it comes.  Out: each part in a file of its own, whatever it calls itself; nothing is held in
memory.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser
from starlette.concurrency import run_in_threadpool

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

#: a part's header fields together
_LONGEST_HEADERS = 8192


class BadBody(Exception):
    """The request can't be used. status: of HTTP; the message is for people."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """Of one request."""

    body_bytes: int
    parts: int


@dataclass
class Part:
    """One part. name: what the sender calls the file, for telling it apart: never a path of ours."""

    path: Path
    content_type: str
    name: str
    size: int = 0


def parameters(header: str) -> tuple[str, dict[str, str]]:
    """A header field's value and its parameters, in lower case: ("multipart/related", {"type": …})."""
    message = Message()
    message["content-type"] = header
    found = message.get_params(failobj=[("", "")])
    return found[0][0].lower(), {str(name).lower(): str(value) for name, value in found[1:]}


@contextmanager
def removed(folder: Path) -> Iterator[Path]:
    """A new folder in ``folder``, removed with all that is in it."""
    own = folder / uuid.uuid4().hex
    own.mkdir(parents=True, mode=0o700)
    try:
        yield own
    finally:
        for path in own.iterdir():
            path.unlink(missing_ok=True)
        own.rmdir()


async def save_body(request: Request, path: Path, limit: int) -> int:
    """A body that is one file; returns its size. Raises BadBody when it is larger than the limit."""
    size = 0
    _check_length(request, limit)
    with path.open("wb") as file:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            await run_in_threadpool(file.write, chunk)
    return size


async def save_parts(request: Request, folder: Path, limits: Limits) -> list[Part]:
    """Every part as a file in the folder, in their order. Raises BadBody."""
    kind, values = parameters(request.headers.get("content-type", ""))
    if not kind.startswith("multipart/") or not values.get("boundary"):
        raise BadBody(415, "the body must be multipart, with a boundary")
    _check_length(request, limits.body_bytes)
    parsing = _Parsing(folder, limits)
    size = 0
    try:
        boundary = values["boundary"].encode("latin-1", errors="replace")
        parser = MultipartParser(boundary, parsing.callbacks(), max_header_size=_LONGEST_HEADERS)
        async for chunk in request.stream():
            size += len(chunk)
            if size > limits.body_bytes:
                raise _too_large(limits.body_bytes)
            await run_in_threadpool(parser.write, chunk)
        parser.finalize()
    except FormParserError as error:
        raise BadBody(400, "the body isn't multipart as its boundary says") from error
    finally:
        parsing.close()
    if not parsing.ended:
        raise BadBody(400, "the body ends before its last boundary")
    return parsing.parts


def _check_length(request: Request, limit: int) -> None:
    """Refuse at once what says itself that it is too large."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> BadBody:
    return BadBody(413, f"at most {limit // 1_000_000} MB are taken at once")


@dataclass
class _Parsing:
    """The state between chunks."""

    folder: Path
    limits: Limits
    parts: list[Part] = field(default_factory=list)
    ended: bool = False
    _file: BinaryIO | None = None
    _field: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _headers: dict[str, str] = field(default_factory=dict)

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_field,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header,
            "on_headers_finished": self._on_headers,
            "on_part_data": self._on_data,
            "on_part_end": self.close,
            "on_end": self._end,
        }

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self) -> None:
        if len(self.parts) >= self.limits.parts:
            raise BadBody(413, f"at most {self.limits.parts} parts are taken at once")
        self._headers = {}

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header(self) -> None:
        name = self._field.decode("latin-1").lower()
        self._headers[name] = self._value.decode("utf-8", errors="replace")
        self._field.clear()
        self._value.clear()

    def _on_headers(self) -> None:
        _, disposition = parameters(self._headers.get("content-disposition", ""))
        kind, _ = parameters(self._headers.get("content-type", ""))
        path = self.folder / f"{len(self.parts):06d}"
        self._file = path.open("wb")
        self.parts.append(Part(path, kind, disposition.get("filename", "")[:200]))

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        assert self._file is not None  # noqa: S101 - the headers came first
        self._file.write(data[start:end])
        self.parts[-1].size += end - start

    def _end(self) -> None:
        self.ended = True
