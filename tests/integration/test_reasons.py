"""Twelve reasons of "no result", each seeded by its real fault: the page, ``pacsnode explain``, a metric and
the log tell the same reason, in the same words.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom import dcmread

from node.__main__ import main
from node.route.defaults import default_routes
from node.triton_server import EmbeddedTriton, free_port
from tests.integration import seeding
from tests.integration.receiving import wait_for
from tests.integration.running import CALLING, RunningNode, storescu

pytestmark = pytest.mark.integration

STRANGER = "NOBODY"
STEP_SECONDS = 6.0
#: the twelve
SEEDED = (
    "unknown AE",
    "no route",
    "incomplete series",
    "tilted geometry",
    "model missing",
    "contract mismatch",
    "step timeout",
    "out of disk",
    "destination down",
    "destination refused",
    "quarantined file",
    "cancelled",
)


@dataclass(frozen=True)
class Expected:
    """Where a reason is to be told: the page, and what ``explain`` is asked. kind, code: of the reason.
    says: what is particular of it, in its sentence."""

    node: RunningNode
    page: str
    asked: tuple[str, ...]
    kind: str
    code: str
    says: str


Told = dict[str, Expected]


def _routes(pipelines: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Chest CT to each of these pipelines, and to its destinations."""
    (route,) = (route.model_dump(mode="json") for route in default_routes(["pacs"]))
    return [
        route | {"name": pipeline, "pipeline": pipeline, "destinations": names}
        for pipeline, names in pipelines.items()
    ]


def _destination(port: int) -> dict[str, Any]:
    address = {"type": "cstore", "ae_title": "AWAY", "host": "127.0.0.1", "port": port}
    return address | {"max_attempts": 2, "retry_seconds": 0.2, "timeout_seconds": 5.0}


def _ended(node: RunningNode, study: str, count: int) -> list[dict[str, Any]]:
    """Its jobs, once so many have failed."""

    def failed() -> list[dict[str, Any]]:
        found = [job for job in node.jobs() if job["study_instance_uid"] == study]
        return found if sum(job["state"] == "failed" for job in found) >= count else []

    found: list[dict[str, Any]] = wait_for(failed, seconds=180, what=f"{count} job(s) of {study} to fail")
    return found


class _Sound:
    """A node whose own parts are well: what it is sent and where it delivers to isn't."""

    def __init__(self, folder: Path, source: Path, triton: EmbeddedTriton, stack: ExitStack) -> None:
        self._folder, self._source = folder, source
        refusing = stack.enter_context(seeding.refusing_destination(folder / "refusing"))
        self.node = RunningNode(
            folder / "node",
            triton_url=triton.url,
            pacs_port=0,
            series={"quiet_seconds": 1.0, "released_quiet_seconds": 0.3, "missing_wait_seconds": 1.0},
            destinations={"down": _destination(free_port()), "refusing": _destination(refusing)},
            routes=_routes({"chest_ct_triage": ["down", "refusing"]}),
        ).start()
        stack.callback(self.node.stop)

    def seed(self) -> Told:
        """Everything at once, so that it is waited for once."""
        echo = ["/usr/bin/echoscu", "-aet", STRANGER, "-aec", "PACSNODE", "127.0.0.1", str(self.node.port)]
        assert subprocess.run(echo, capture_output=True, timeout=60, check=False).returncode != 0
        changes = {
            "whole": seeding.keep,
            "incomplete": seeding.without_the_middle,
            "tilted": seeding.tilted,
            "no route": seeding.other_modality,
            "quarantined": seeding.without_a_series,
        }
        studies = {
            name: seeding.seeded_series(self._source, self._folder / name, change)
            for name, change in changes.items()
        }
        assert storescu(self.node.port, *(self._folder / name for name in changes)).returncode == 0
        for name in ("whole", "incomplete", "tilted"):
            _ended(self.node, studies[name], 1)
        wait_for(lambda: self.node.events("series_unmatched"), seconds=60, what="the series without a route")
        quarantined = str(next((self._folder / "quarantined").iterdir()))

        def of(name: str, kind: str, code: str, says: str) -> Expected:
            return Expected(self.node, f"/studies/{studies[name]}", (studies[name],), kind, code, says)

        delivery = "delivery failed"
        return {
            "unknown AE": Expected(
                self.node, "/", (STRANGER,), "association rejected", "calling_ae_title", f"'{STRANGER}'"
            ),
            "no route": of("no route", "series unmatched", "modality", "modality is XX, wanted CT"),
            "incomplete series": of("incomplete", "job ended", "geometry_missing_slices", "8 slice(s) of 24"),
            "tilted geometry": of("tilted", "job ended", "geometry_tilted", "sheared by 40.0 degrees"),
            "destination down": of(
                "whole", delivery, "destination_down", "destination down (AWAY at 127.0.0.1:"
            ),
            "destination refused": of("whole", delivery, "destination_refused", "association rejected"),
            "quarantined file": Expected(
                self.node,
                f"/studies/{studies['quarantined']}",
                (quarantined,),
                "instance quarantined",
                "missing_uid",
                "SeriesInstanceUID is missing or empty",
            ),
        }


class _Unsound:
    """A node that itself is in trouble: with Triton, with a worker, with its disk."""

    def __init__(self, folder: Path, source: Path, stack: ExitStack) -> None:
        self._folder, self._source = folder, source
        repository = seeding.wrong_repository(folder / "repository")
        self._disk = seeding.Disk(folder / "disk")
        stack.callback(self._disk.remove)
        triton = stack.enter_context(EmbeddedTriton(repository))
        self.node = RunningNode(
            folder / "node",
            triton_url=triton.url,
            pacs_port=0,
            data_dir=str(self._disk.folder / "var"),
            receive={
                "allowed_calling_ae_titles": [CALLING],
                "free_disk_floor_bytes": self._disk.floor_bytes,
                "journal_bytes": 48 * seeding.MIB,
                "movers": 1,
            },
            run={"max_attempts": 1, "retry_seconds": 0.5, "step_timeout_seconds": STEP_SECONDS},
            destinations={"down": _destination(free_port())},
            routes=_routes({"chest_ct_pneumonia": ["down"], "chest_ct_triage": ["down"]}),
        ).start()
        stack.callback(self.node.stop)

    def seed(self) -> Told:
        seeding.wait_warm(self.node)
        models = self._send("models")
        _ended(self.node, models, 2)
        seeding.hang_workers(self.node)
        hung = self._send("hung")
        cancelled = self._cancel_one_that_waits(hung)
        (timed_out,) = (job for job in _ended(self.node, hung, 1) if job["state"] == "failed")
        seeding.refuse_by_full_disk(self.node, self._disk, self._folder / "hung")

        def of(study: str, asked: str, code: str, says: str) -> Expected:
            return Expected(self.node, f"/studies/{study}", (asked,), "job ended", code, says)

        return {
            "model missing": of(models, models, "model_not_served", "model lesions version 1 is expected"),
            "contract mismatch": of(models, models, "model_mismatch", "model pneumonia_class version 1"),
            "step timeout": of(
                hung,
                timed_out["job_id"],
                "step_timeout",
                f"the pipeline took longer than {STEP_SECONDS:.0f} s",
            ),
            "cancelled": of(hung, cancelled, "cancelled", "loopback asked for it"),
            "out of disk": Expected(
                self.node, "/", ("--refused",), "association rejected", "no_space", "bytes have to be free"
            ),
        }

    def _send(self, name: str) -> str:
        study = seeding.seeded_series(self._source, self._folder / name)
        assert storescu(self.node.port, self._folder / name).returncode == 0
        return study

    def _cancel_one_that_waits(self, study: str) -> str:
        """There is one worker for two jobs."""

        def both() -> list[dict[str, Any]]:
            found = [job for job in self.node.jobs() if job["study_instance_uid"] == study]
            return found if {job["state"] for job in found} == {"queued", "running"} else []

        (job,) = (job for job in wait_for(both, seconds=60, what="a job") if job["state"] == "queued")
        address = f"http://127.0.0.1:{self.node.web_port}"
        asked = f"{address}/studies/{study}/jobs/{job['job_id']}/cancel"
        assert httpx.post(asked, headers={"Origin": address}, timeout=30.0).status_code == 303
        wait_for(lambda: self.node.events("job_cancelled"), seconds=60, what="the node to notice")
        return str(job["job_id"])


@pytest.fixture(scope="module")
def told(
    tmp_path_factory: pytest.TempPathFactory, triton: EmbeddedTriton, phantom_series: Path
) -> Iterator[Told]:
    """All twelve, made by two nodes at the same time."""
    with ExitStack() as sound, ExitStack() as unsound, ThreadPoolExecutor(2) as threads:
        folders = [tmp_path_factory.mktemp(name) for name in ("sound", "unsound")]
        seeding_ = [
            threads.submit(lambda: _Sound(folders[0], phantom_series, triton, sound).seed()),
            threads.submit(lambda: _Unsound(folders[1], phantom_series, unsound).seed()),
        ]
        yield seeding_[0].result() | seeding_[1].result()


Explain = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def explain(capsys: pytest.CaptureFixture[str]) -> Explain:
    """``pacsnode explain --json``: every reason that it tells."""

    def asked(node: RunningNode, *arguments: str) -> list[dict[str, Any]]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as raised:
            main(["explain", *arguments, "--json", "--config", str(node.config_path)])
        said = capsys.readouterr()
        if "nothing is known of" in said.err:  # yet: who asks waits, but not for ever
            return []
        assert raised.value.code in (0, None), said.err
        return list(_reasons(json.loads(said.out)))

    return asked


def _reasons(data: Any) -> Iterator[dict[str, Any]]:
    """Wherever they are in an answer."""
    if isinstance(data, dict):
        if {"kind", "code", "sentence", "metric"} <= data.keys():
            yield data
        data = list(data.values())
    if isinstance(data, list):
        for one in data:
            yield from _reasons(one)


def _counted(text: str, selector: str) -> float:
    """The sum of the samples that a selector selects."""
    name, _, labels = selector.removesuffix("}").partition("{")
    wanted = labels.split(",")
    samples = re.findall(rf"^{name}\{{(.*)\}} (\S+)$", text, re.MULTILINE)
    return sum(float(value) for found, value in samples if all(label in found for label in wanted))


@pytest.mark.parametrize("name", SEEDED)
def test_all_tell_the_same_reason_in_the_same_words(told: Told, explain: Explain, name: str) -> None:
    expected = told[name]
    node = expected.node

    def reasons() -> set[tuple[str, str, str]]:  # what was turned away is written a moment later
        return {
            (why["code"], why["sentence"], why["metric"])
            for why in explain(node, *expected.asked)
            if (why["kind"], why["code"]) == (expected.kind, expected.code)
        }

    ((code, sentence, metric),) = wait_for(reasons, seconds=10, what=f"{expected.code} to be explained")
    assert expected.says in sentence

    def noted() -> bool:
        page = html.unescape(node.text(expected.page))
        return sentence in page and f">{code}<" in page

    wait_for(noted, seconds=10, what=f"{code} on {expected.page}")
    lines = [json.loads(line) for line in node.log_path.read_text().splitlines() if line.startswith("{")]
    assert [line["event"] for line in lines if (line.get("code"), line.get("reason")) == (code, sentence)]
    assert _counted(node.text("/metrics"), metric) >= 1, metric


def test_an_instance_that_found_no_space_is_told_as_well(told: Told, explain: Explain) -> None:
    node = told["out of disk"].node

    def reasons() -> list[dict[str, Any]]:
        return [why for why in explain(node, CALLING) if why["kind"] == "instance refused"]

    refused = wait_for(reasons, seconds=10, what="the instance to be explained")
    assert [why["code"] for why in refused] == ["out_of_space"]
    (line,) = node.events("instance_refused")
    assert (line["code"], line["reason"]) == ("out_of_space", refused[0]["sentence"])
    assert refused[0]["sentence"] in html.unescape(node.text("/"))


def test_no_patient_is_named(told: Told, phantom_series: Path) -> None:
    """Neither in what was turned away nor in any reason."""
    image = dcmread(min(phantom_series.iterdir()))
    for node in {id(one.node): one.node for one in told.values()}.values():
        said = node.text("/") + node.text("/api/refused") + node.text("/metrics") + node.log_path.read_text()
        assert str(image.PatientName) not in said and image.PatientID not in said
