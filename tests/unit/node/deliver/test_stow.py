"""STOW-RS to a server that answers as told: statuses, bodies, tokens, sizes, and what isn't logged."""

from __future__ import annotations

import email
import email.policy
import json
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from structlog.testing import capture_logs

from node.config import StowDestination
from node.deliver import make_destination
from node.deliver.base import Destination
from node.errors import ConfigError, DeliveryError
from node.triton_server import free_port
from tests.certificates import Authority
from tests.unit.node.deliver.conftest import write_object

TOKEN = "secret-token-7"
VARIABLE = "CLOUD_TOKEN"
#: attributes of an object that needs a request to itself where a request may have 1 MB
BIG = {"Rows": 700, "Columns": 512, "PixelData": bytes(700 * 512 * 2)}


class Server:
    """``answers``: (status, headers, body) a request; 200 without a body when used up.

    closes: leave a connection's second request without an answer, as a server does that gives up an idle
    connection while the request is on its way.
    """

    def __init__(self, tls: Any = None) -> None:
        self.answers: list[tuple[int, dict[str, str], Any]] = []
        self.requests: list[tuple[str, str, Any, list[bytes]]] = []
        self.delay = 0.0
        self.closes = False
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            answered = 0

            def log_message(self, *_: Any) -> None: ...

            def do_GET(self) -> None:
                self.do_POST()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if server.closes and self.answered:
                    self.close_connection = True
                    return
                self.answered += 1
                server.requests.append((self.command, self.path, self.headers, parts(self.headers, body)))
                time.sleep(server.delay)
                status, headers, said = server.answers.pop(0) if server.answers else (200, {}, "")
                content = said.encode() if isinstance(said, str) else json.dumps(said).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def parts(headers: Any, body: bytes) -> list[bytes]:
    """The parts of a multipart body, as the standard library takes it apart."""
    head = f"Content-Type: {headers.get('Content-Type', '')}\r\n\r\n".encode()
    message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
    found = []
    for part in message.iter_parts() if body else ():
        payload = part.get_payload(decode=True)
        assert isinstance(payload, bytes)
        found.append(payload)
    return found


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


def destination(port: int, scheme: str = "http", **options: Any) -> Destination:
    config = StowDestination.model_validate(
        {"type": "stow", "url": f"{scheme}://127.0.0.1:{port}/dicom-web/", "timeout_seconds": 5, **options}
    )
    return make_destination("cloud", config, calling_ae_title="PACSNODE")


def uids(files: list[Path]) -> list[str]:
    return [str(dcmread(file).SOPInstanceUID) for file in files]


def said(*, failed: dict[str, int] | None = None, stored: dict[str, int | None] | None = None) -> Any:
    """A Store Instances Response Module. stored: with a Warning Reason, or None."""

    def item(uid: str, tag: str, reason: int | None) -> dict[str, Any]:
        found: dict[str, Any] = {"00081155": {"vr": "UI", "Value": [uid]}}
        return found if reason is None else found | {tag: {"vr": "US", "Value": [reason]}}

    module: dict[str, Any] = {}
    if failed:
        module["00081198"] = {"vr": "SQ", "Value": [item(u, "00081197", r) for u, r in failed.items()]}
    if stored:
        module["00081199"] = {"vr": "SQ", "Value": [item(u, "00081196", r) for u, r in stored.items()]}
    return module


def refusal(server: Server, files: list[Path], **options: Any) -> DeliveryError:
    with pytest.raises(DeliveryError) as raised:
        destination(server.port, **options).deliver(files)
    assert str(raised.value).startswith(
        f"destination cloud (http://127.0.0.1:{server.port}/dicom-web/studies)"
    )
    assert "Doe" not in str(raised.value)
    return raised.value


def test_files_are_posted_as_they_are(server: Server, files: list[Path]) -> None:
    stored = destination(server.port).deliver(files)
    assert [each.sop_instance_uid for each in stored] == uids(files)
    ((method, path, headers, bodies),) = server.requests
    assert (method, path) == ("POST", "/dicom-web/studies")
    assert headers["Accept"] == "application/dicom+json" and "Authorization" not in headers
    assert headers["Content-Type"].startswith('multipart/related; type="application/dicom"; boundary=')
    assert bodies == [file.read_bytes() for file in files]


def test_requests_are_of_bounded_size(server: Server, tmp_path: Path) -> None:
    files = [write_object(tmp_path, number, **BIG) for number in (1, 2)] + [write_object(tmp_path, 3)]
    destination(server.port, max_request_bytes=1_000_000).deliver(files)
    assert [len(bodies) for *_, bodies in server.requests] == [1, 2]


def test_a_server_closes_what_was_idle(server: Server, tmp_path: Path) -> None:
    server.closes = True
    files = [write_object(tmp_path, number, **BIG) for number in (1, 2, 3)]
    stored = destination(server.port, max_request_bytes=1_000_000).deliver(files)
    assert len(stored) == len(server.requests) == 3


def test_warnings_are_stored(server: Server, files: list[Path]) -> None:
    first, second, third = uids(files)
    server.answers = [(202, {}, said(stored={first: None, second: 0xB006, third: None}))]
    with capture_logs() as logs:
        stored = destination(server.port).deliver(files)
    assert [bool(each.warning) for each in stored] == [False, True, False]
    assert "0xb006 (elements discarded)" in stored[1].warning
    assert [line["sop_instance_uid"] for line in logs if line["event"] == "stow_warning"] == [second]


@pytest.mark.parametrize("status", [200, 202, 409])
@pytest.mark.parametrize(("reason", "retryable"), [(0xA700, True), (0x0110, True), (0xA900, False)])
def test_failures_are_named(
    server: Server, files: list[Path], status: int, reason: int, retryable: bool
) -> None:
    first, second, third = uids(files)
    server.answers = [(status, {}, said(failed={second: reason}, stored={first: None, third: None}))]
    error = refusal(server, files)
    assert (error.code, error.retryable) == ("stow_failed", retryable)
    assert f"STOW-RS of {second} failed with status {reason:#06x} (" in str(error)
    assert first not in str(error) and error.hint


def test_what_a_409_does_not_mention_failed(server: Server, files: list[Path]) -> None:
    server.answers = [(409, {}, said(stored={uids(files)[0]: None}))]
    error = refusal(server, files)
    assert not error.retryable and uids(files)[1] in str(error)
    server.answers = [(202, {}, said(stored={uids(files)[0]: None}))]
    assert refusal(server, files).retryable


def test_a_reason_that_is_missing_may_pass(server: Server, files: list[Path]) -> None:
    body = said(failed={uids(files)[0]: 0})
    del body["00081198"]["Value"][0]["00081197"]
    server.answers = [(409, {}, body)]
    assert "0x0110" in str(refusal(server, files))


@pytest.mark.parametrize("status", [202, 409])
@pytest.mark.parametrize("body", ["<xml/>", "", "[]", '{"00081198": 7}'])
def test_a_response_that_cannot_be_read(server: Server, files: list[Path], status: int, body: str) -> None:
    server.answers = [(status, {}, body)]
    error = refusal(server, files)
    assert f"HTTP status {status}" in str(error)


@pytest.mark.parametrize(
    ("status", "retryable"),
    [
        (302, False),
        (400, False),
        (401, True),
        (403, False),
        (404, True),
        (413, False),
        (429, True),
        (503, True),
    ],
)
def test_http_errors(server: Server, files: list[Path], status: int, retryable: bool) -> None:
    server.answers = [(status, {"Location": "http://127.0.0.1:1/"}, "")]
    error = refusal(server, files)
    assert (error.retryable, error.retry_after_seconds) == (retryable, None)
    assert f"HTTP status {status}" in str(error) and error.hint
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [("120", 120, 120), (900.0, 300, 900), ("soon", None, None)],
    ids=["seconds", "date", "neither"],
)
def test_retry_after(
    server: Server, files: list[Path], value: str | float, least: float | None, most: float | None
) -> None:
    asked = value if isinstance(value, str) else formatdate(time.time() + value)
    server.answers = [(503, {"Retry-After": asked}, "")]
    found = refusal(server, files).retry_after_seconds
    if least is None or most is None:
        assert found is None
    else:
        assert found is not None and least <= found <= most


def test_nothing_more_is_sent_after_a_refusal(server: Server, tmp_path: Path) -> None:
    big = {"Rows": 700, "Columns": 512, "PixelData": bytes(700 * 512 * 2)}
    files = [write_object(tmp_path, number, **big) for number in (1, 2)]
    server.answers = [(409, {}, said(failed={uids(files)[0]: 0xA700}))]
    assert refusal(server, files, max_request_bytes=1_000_000).retryable
    assert len(server.requests) == 1


def test_a_server_that_does_not_answer(server: Server, files: list[Path]) -> None:
    server.delay = 1.0
    error = refusal(server, files, timeout_seconds=0.2)
    assert error.retryable and "no answer within 0.2 s" in str(error)


def test_nobody_listens(files: list[Path]) -> None:
    made = destination(free_port())
    with pytest.raises(DeliveryError, match="no connection") as raised:
        made.deliver(files)
    assert raised.value.retryable


def test_check(server: Server) -> None:
    made = destination(server.port)
    server.answers = [(200, {}, "[]"), (204, {}, ""), (405, {}, ""), (401, {}, "")]
    for _ in range(3):
        made.check()
    with pytest.raises(DeliveryError, match="401"):
        made.check()
    assert {path for _, path, *_ in server.requests} == {"/dicom-web/studies?StudyInstanceUID=2.25.0&limit=1"}


def test_a_token_from_a_file_is_read_anew(server: Server, files: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "token"
    made = destination(server.port, token_file=file)
    with pytest.raises(DeliveryError, match=r"destinations\.cloud\.token_file") as raised:
        made.deliver(files)
    assert raised.value.retryable
    for token in (TOKEN, "renewed"):
        file.write_text(f"{token}\n")
        made.deliver(files)
    assert [headers["Authorization"] for _, _, headers, _ in server.requests] == [
        f"Bearer {TOKEN}",
        "Bearer renewed",
    ]


def test_a_token_from_the_environment_and_nowhere_else(
    server: Server, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"destinations\.cloud\.token_variable: CLOUD_TOKEN isn't set"):
        destination(server.port, token_variable=VARIABLE)
    monkeypatch.setenv(VARIABLE, TOKEN)
    made = destination(server.port, token_variable=VARIABLE)
    server.answers = [(401, {}, TOKEN), (200, {}, "")]
    with capture_logs() as logs:
        with pytest.raises(DeliveryError) as raised:
            made.deliver(files)
        made.deliver(files)
    assert server.requests[0][2]["Authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in f"{raised.value} {raised.value.hint} {logs} {vars(raised.value)}"


@pytest.mark.parametrize(
    ("options", "mentions"),
    [
        ({"url": "https://user:word@host/x"}, "url"),
        ({"url": "ftp://host"}, "url"),
        ({"url": "http://h", "token_file": "a", "token_variable": "B"}, "name one"),
        ({"url": "http://h", "tls": {"ca": "x"}}, "https://"),
    ],
)
def test_mistakes_in_the_configuration(options: dict[str, Any], mentions: str) -> None:
    with pytest.raises(ValueError, match=mentions):
        StowDestination.model_validate({"type": "stow", **options})


def test_tls_with_a_client_certificate(tmp_path: Path, files: list[Path]) -> None:
    import ssl

    (tmp_path / "ca").mkdir()
    (tmp_path / "other").mkdir()
    authority, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other", "Other CA")
    own, ours = authority.sign("pacs"), authority.sign("node")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.certificate, own.key)
    context.load_verify_locations(authority.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    server = Server(context)
    files_of = {"certificate": ours.certificate, "key": ours.key}
    try:
        destination(server.port, "https", tls={"ca": authority.ca, **files_of}).deliver(files)
        assert len(server.requests) == 1
        with pytest.raises(DeliveryError, match="TLS failed: certificate verify failed") as raised:
            destination(server.port, "https", tls={"ca": other.ca, **files_of}).deliver(files)
        assert (raised.value.code, raised.value.retryable) == ("tls_failed", True)
        with pytest.raises(DeliveryError, match=r"(IP address|Hostname) mismatch"):
            tls = {"ca": authority.ca, "server_name": "other.example.org", **files_of}
            destination(server.port, "https", tls=tls).check()
        with pytest.raises(DeliveryError, match=r"certificate required|no connection"):
            destination(server.port, "https", tls={"ca": authority.ca}).check()
    finally:
        server.stop()
