"""The worker's line protocol, spoken with a real process."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from node.triton_server import free_port
from pipelines.request import NoResult, Request, Shadow, decode_request, encode_request

REQUEST = Request(
    pipeline="chest_ct_pneumonia",
    paths=(Path("/spool/1.dcm"), Path("/spool/ä 2.dcm")),
    out=Path("/results/x"),
    software_version="9.9.9",
    content_datetime=datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC),
    clinical_use=True,
    uid_root="1.2.3",
)
#: a worker whose pipeline does as its name says
SCRIPTED = """
import os
from pipelines import worker

def process(request, client, report):
    report("load", 0, 0)
    report("load", 1, 2)
    if request.pipeline == "noisy":
        print("from Python")
        os.write(1, b"from a native library\\n")
    if request.pipeline == "broken":
        raise ValueError("PatientName Doe^Jane is odd")
    if request.pipeline == "full":
        raise OSError(28, "No space left on device", "/results/Doe")
    if request.pipeline == "crash":
        os.abort()
    return {"findings": [], "note": "größer"}

worker.process = process
worker.main()
"""


class Worker:
    """The node's end of the protocol."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ask(self, pipeline: str) -> list[dict[str, Any]]:
        """Send a request; returns the events up to its end."""
        url = f"127.0.0.1:{free_port()}"
        request = Request(pipeline, (), Path("out"), "0", REQUEST.content_datetime)
        self.send(encode_request(request, triton_url=url, timeout_seconds=2.0))
        return self.events()

    def event(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        event: dict[str, Any] = json.loads(self.process.stdout.readline())
        return event

    def events(self) -> list[dict[str, Any]]:
        found = [self.event()]
        while found[-1]["event"] not in ("done", "failed"):
            found.append(self.event())
        return found

    def close(self) -> tuple[int, str]:
        """Close its stdin; returns its exit code and what it said on stderr."""
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, said


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("-m", "pipelines.worker")
    yield worker
    worker.process.kill()
    worker.process.communicate()


@pytest.fixture
def scripted() -> Iterator[Worker]:
    worker = Worker("-c", SCRIPTED)
    assert worker.event() == {"event": "ready"}
    yield worker
    worker.process.kill()
    worker.process.communicate()


def test_a_request_survives_the_journey() -> None:
    line = encode_request(REQUEST, triton_url="triton:8001", timeout_seconds=3.5)
    assert "\n" not in line
    message = json.loads(line)
    assert decode_request(message) == REQUEST
    full = replace(
        REQUEST,
        encodings=("labelmap-omit",),
        predecessor=Path("results/earlier"),
        reject=True,
        no_result=NoResult("no_lungs", "no lung was found", "both"),
        shadow=Shadow(Path("results/live"), {"lungs": ("lungs_next", "2")}),
    )
    line = encode_request(full, triton_url="triton:8001", timeout_seconds=3.5)
    assert decode_request(json.loads(line)) == full
    assert (message["triton_url"], message["timeout_seconds"]) == ("triton:8001", 3.5)


def test_typed_failures_and_the_end(worker: Worker) -> None:
    assert worker.event() == {"event": "ready"}
    (failed,) = worker.ask("nonsense")
    assert failed["event"] == "failed"
    assert (failed["code"], failed["retryable"]) == ("unknown_pipeline", False)
    assert "'nonsense' isn't known" in failed["message"]
    begun, failed = worker.ask("chest_ct_pneumonia")
    assert begun == {"event": "progress", "stage": "check", "done": 0, "total": 0}
    assert (failed["code"], failed["retryable"]) == ("triton_unavailable", True)
    assert worker.close()[0] == 0


def test_a_line_that_is_no_request(scripted: Worker) -> None:
    scripted.send("{")
    (failed,) = scripted.events()
    assert (failed["code"], failed["message"]) == ("internal", "unexpected JSONDecodeError")
    assert scripted.ask("fine")[-1]["event"] == "done"


def test_progress_and_the_summary(scripted: Worker) -> None:
    assert scripted.ask("fine") == [
        {"event": "progress", "stage": "load", "done": 0, "total": 0},
        {"event": "progress", "stage": "load", "done": 1, "total": 2},
        {"event": "done", "summary": {"findings": [], "note": "größer"}},
    ]


def test_what_is_printed_does_not_get_between_the_events(scripted: Worker) -> None:
    assert [event["event"] for event in scripted.ask("noisy")] == ["progress", "progress", "done"]
    code, said = scripted.close()
    assert code == 0
    assert "from a native library" in said and "from Python" in said


def test_an_unexpected_error_is_told_without_its_message(scripted: Worker) -> None:
    failed = scripted.ask("broken")[-1]
    assert failed == {
        "event": "failed",
        "code": "internal",
        "message": "unexpected ValueError",
        "hint": "a defect of ours: the log has the traceback",
        "retryable": False,
    }
    _, said = scripted.close()
    assert "in process" in said, "the frames"
    assert "Doe" not in said


def test_a_full_disk_may_pass_and_is_told_without_names(scripted: Worker) -> None:
    failed = scripted.ask("full")[-1]
    assert (failed["code"], failed["retryable"]) == ("io_error", True)
    assert "No space left on device" in failed["message"]
    assert "Doe" not in str(failed) + scripted.close()[1]


def test_closing_stdin_ends_it_in_the_middle_of_a_run(worker: Worker) -> None:
    """The node is gone: nobody waits for what it does."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and says nothing
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        worker.send(encode_request(REQUEST, triton_url=url, timeout_seconds=60.0))
        assert [worker.event()["event"] for _ in range(2)] == ["ready", "progress"]
        assert worker.close()[0] == 0
