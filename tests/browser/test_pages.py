"""The node's own pages in Chromium, over a running node with Triton and Orthanc: one story, in its order.

A study arrives while the PACS is down, fails, and is sent from its page once the PACS is back; destinations,
models and routes are looked at and changed; a phone uploads another study and sees its result.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import Browser, ConsoleMessage, Page, expect
from pydicom import dcmread

from node.triton_server import EmbeddedTriton, free_port
from tests.browser.axe import Axe
from tests.browser.conftest import BUILD
from tests.integration.receiving import wait_for
from tests.integration.running import Pacs, RunningNode, orthanc_program, storescu
from tests.integration.test_picture import slice_picture
from triton_models.data.dicom_series import write_series
from triton_models.data.phantom import chest_phantom

pytestmark = pytest.mark.integration
WAIT = 120_000.0  # milliseconds, for what a pipeline has to do first
expect.set_options(timeout=60_000.0)  # for what a page does by itself, on a busy machine
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
NOT_THERE = "/studies/9.9"
ROUTE = {
    "name": "triage",
    "pipeline": "chest_ct_triage",
    "when": {"fact": "modality", "equals": "CT"},
    "destinations": ["pacs"],
}
PICTURES = {
    "name": "pictures",
    "pipeline": "chest_ct_picture",
    "when": {
        "all": [
            {"fact": "calling_ae_title", "equals": "UPLOAD"},
            {"fact": "sop_class", "equals": "SecondaryCaptureImageStorage"},
            {"fact": "model", "equals": "picture upload"},
        ]
    },
    "destinations": [],
}


def write(folder: Path, seed: int) -> Path:
    folder.mkdir()
    write_series(chest_phantom(seed, slices=24, rows=128, columns=128, lesions=True), folder, seed=seed)
    return folder


class Story:
    """The running node, and the study that the tests pass on."""

    def __init__(self, folder: Path, triton: EmbeddedTriton) -> None:
        self.folder = folder
        self.pacs_port = free_port()
        self.pacs: Pacs | None = None
        self.ct = write(folder / "ct", 21)
        self.study = str(dcmread(next(self.ct.glob("*.dcm"))).StudyInstanceUID)
        self.node = RunningNode(
            folder / "node", triton_url=triton.url, pacs_port=self.pacs_port, routes=[ROUTE, PICTURES]
        )
        self.edit(lambda config: config["destinations"]["pacs"].update(max_attempts=1))
        self.node.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.node.web_port}"

    def edit(self, change: Any) -> None:
        config = yaml.safe_load(self.node.config_path.read_text())
        change(config)
        self.node.config_path.write_text(yaml.safe_dump(config))

    def start_pacs(self) -> Pacs:
        (self.folder / "pacs").mkdir()
        self.pacs = Pacs(orthanc_program(), self.folder / "pacs", DicomPort=self.pacs_port)
        return self.pacs

    def stop(self) -> None:
        self.node.stop()
        if self.pacs is not None:
            self.pacs.stop()


@pytest.fixture(scope="module")
def story(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with EmbeddedTriton() as triton:
        running = Story(tmp_path_factory.mktemp("story"), triton)
        yield running
        running.stop()


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    """A page in which nothing may fail."""
    opened = browser.new_page(viewport={"width": 1180, "height": 900})
    opened.set_default_timeout(60_000.0)
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))

    def said(message: ConsoleMessage) -> None:
        if message.type == "error" and not message.location["url"].endswith(NOT_THERE):
            faults.append(f"{message.text} {message.location['url']}")

    opened.on("console", said)
    yield opened
    opened.close()
    assert not faults


@pytest.fixture(scope="module")
def axe(installed: None) -> Axe:
    return Axe(BUILD)


def test_a_study_arrives_fails_and_is_sent_from_its_page(story: Story, page: Page) -> None:
    page.goto(f"{story.url}/studies")
    expect(page.get_by_text("No such studies.")).to_be_visible()
    assert storescu(story.node.port, story.ct).returncode == 0
    link = page.get_by_role("link", name=story.study)
    expect(link).to_be_visible(timeout=WAIT)  # by itself: nobody loads the page again
    link.click()
    sentence = page.locator(".said")
    expect(sentence).to_contain_text("No result, because chest_ct_triage failed", timeout=WAIT)
    expect(page.get_by_text("route triage matches")).to_be_visible()
    expect(page.get_by_text("chest_ct_triage made results")).to_be_visible()
    expect(page.locator("table", has_text="pacs").get_by_text("failed")).to_be_visible()
    pacs = story.start_pacs()
    page.get_by_role("button", name="Run again: chest_ct_triage").click()
    expect(sentence).to_have_text("The results of chest_ct_triage are at pacs.", timeout=WAIT)
    expect(page.locator(".timeline").get_by_text("complete", exact=True)).to_be_visible()
    assert pacs.count() == 2, "report and picture"
    picture = page.get_by_role("img", name="Result picture of chest_ct_triage")
    wait_for(lambda: picture.evaluate("one => one.naturalWidth") > 300, seconds=60, what="the picture")
    page.get_by_text("Explain").click()
    expect(page.get_by_role("region", name="Verdicts")).to_contain_text("triage")


def test_the_patient_is_shown_on_request_only(story: Story, page: Page) -> None:
    name = str(dcmread(next(story.ct.glob("*.dcm"))).PatientName)
    page.goto(f"{story.url}/studies/{story.study}")
    assert name and name not in page.content()
    page.get_by_role("link", name="Show it").click()
    expect(page.get_by_text(name)).to_be_visible()
    trail = (story.node.data_dir / "audit/audit-node.log").read_text()
    assert "110103" in trail and name not in trail


def test_destinations_and_models(story: Story, page: Page) -> None:
    page.goto(f"{story.url}/destinations")
    page.get_by_role("button", name="Test pacs").click()
    expect(page.get_by_role("status")).to_have_text("pacs answers.")
    page.get_by_role("button", name="Pause pacs").click()
    expect(page.get_by_text("by loopback")).to_be_visible()
    page.get_by_role("button", name="Resume pacs").click()
    expect(page.get_by_role("button", name="Pause pacs")).to_be_visible()
    page.goto(f"{story.url}/models")
    for model in ("lungs", "pneumonia_class"):
        expect(page.get_by_role("row", name=model)).to_contain_text("ready")


def test_a_dry_run_keeps_nothing(story: Story, page: Page) -> None:
    before = len(story.node.get("/api/series"))
    page.goto(f"{story.url}/routes")
    page.get_by_label("DICOM files").set_input_files(sorted(story.ct.glob("*.dcm"))[:3])
    page.get_by_role("button", name="Dry run").click()
    expect(page.get_by_text("It would run chest_ct_triage.")).to_be_visible()
    expect(page.get_by_text("modality is CT").first).to_be_visible()
    assert len(story.node.get("/api/series")) == before


def test_the_configuration_is_read_again(story: Story, page: Page) -> None:
    before = story.node.text("/metrics")
    assert story.node.process is not None
    good = story.node.config_path.read_text()
    story.node.config_path.write_text("routes: nonsense")
    story.node.process.send_signal(signal.SIGHUP)
    refused = 'pacsnode_configuration_reloads_total{outcome="refused"} 1.0'
    wait_for(lambda: refused in story.node.text("/metrics"), seconds=60, what="the refusal")
    story.node.config_path.write_text(good)

    def add(config: dict[str, Any]) -> None:
        config["destinations"]["outbox"] = {"type": "folder", "path": str(story.folder / "outbox")}
        config["routes"][0]["destinations"] = ["pacs", "outbox"]

    story.edit(add)
    page.goto(f"{story.url}/routes")
    page.get_by_role("button", name="Read the configuration again").click()
    expect(page.get_by_role("status")).to_contain_text("In use: 2 route(s) and 2 destination(s)")
    expect(page.get_by_role("heading", name="triage → chest_ct_triage → pacs, outbox")).to_be_visible()
    name = "pacsnode_configuration_loaded_timestamp_seconds{version="
    was, now = (
        next(line for line in text.splitlines() if line.startswith(name)).partition('"')[2][:12]
        for text in (before, story.node.text("/metrics"))
    )
    assert was != now
    expect(page.get_by_text(now).first).to_be_visible()


def test_a_phone_uploads_and_sees_the_result(story: Story, page: Page, browser: Browser, axe: Axe) -> None:
    packed = Path(shutil.make_archive(str(story.folder / "study"), "zip", write(story.folder / "second", 22)))
    photo = story.folder / "photo.png"
    photo.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    page.goto(f"{story.url}/upload")
    expect(page.get_by_role("img", name="QR code")).to_be_visible()
    link = page.locator("#link").get_attribute("href")
    assert link is not None
    context = browser.new_context(**PHONE)
    context.set_default_timeout(60_000.0)
    phone = context.new_page()
    phone.goto(link)
    phone.get_by_label("Files").set_input_files([photo, packed])
    rows = phone.locator("#list li")
    expect(rows.nth(0)).to_contain_text("its header can't be read", timeout=WAIT)
    expect(rows.nth(1)).to_contain_text("24 stored", timeout=WAIT)
    result = phone.locator("#result")
    expect(result.locator(".said")).to_have_text(
        "The results of chest_ct_triage are at outbox, pacs.", timeout=WAIT
    )
    picture = result.get_by_role("img")
    wait_for(lambda: picture.evaluate("one => one.naturalWidth") > 300, seconds=60, what="the picture")
    expect(result.get_by_role("row", name="viral")).to_contain_text("%")
    assert list((story.folder / "outbox").rglob("*.dcm")), "a destination that came with the reload"
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert phone.evaluate(wide) <= 0
    assert axe.violations(phone) == []
    stored = story.pacs.count() if story.pacs is not None else 0
    snapshot = story.folder / "slice.jpg"
    slice_picture(23).convert("RGB").save(snapshot, quality=90)
    phone.get_by_label("Files").set_input_files(snapshot)
    expect(rows.nth(2)).to_contain_text("1 stored", timeout=WAIT)
    expect(result.get_by_text("The results of chest_ct_picture are kept here.")).to_be_visible(timeout=WAIT)
    expect(result.get_by_text("From a picture, not from CT: grey values are guessed HU")).to_be_visible()
    expect(result.get_by_role("row", name="viral")).to_have_count(2)
    picture = result.get_by_role("img", name="From a picture")
    wait_for(lambda: picture.evaluate("one => one.naturalWidth") > 300, seconds=60, what="the picture")
    assert phone.evaluate(wide) <= 0
    assert axe.violations(phone) == []
    assert story.pacs is not None and story.pacs.count() == stored, "whose it is nobody knows"
    stranger = browser.new_context(**PHONE)
    answer = stranger.new_page().goto(link)
    assert answer is not None and answer.status == 404
    for one in (context, stranger):
        one.close()


def test_everybody_can_use_every_page(story: Story, page: Page, axe: Axe) -> None:
    """axe-core finds nothing serious, and nothing is wider than a phone."""
    phone = page.viewport_size
    for path in (
        *("/", "/studies", f"/studies/{story.study}", f"/studies/{story.study}/patient"),
        *("/destinations", "/models", "/routes", "/upload", "/login", NOT_THERE),
    ):
        page.goto(f"{story.url}{path}")
        assert axe.violations(page) == [], path
        page.set_viewport_size({"width": 390, "height": 844})
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, path
        assert phone is not None
        page.set_viewport_size(phone)
    page.goto(f"{story.url}/studies")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()


def test_check_says_the_same_for_machines(story: Story) -> None:
    """Destinations by C-ECHO, models by Triton; one that is gone is an error with exit code 1."""
    gone = {"type": "cstore", "ae_title": "GONE", "host": "127.0.0.1", "port": 1}
    story.edit(lambda config: config["destinations"].update(gone=gone))
    command = [sys.executable, "-m", "node", "check", "--json", "--config", str(story.node.config_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    said = json.loads(done.stdout)
    found = {(one["kind"], one["name"]): one["level"] for one in said["findings"]}
    assert found["destination", "pacs"] == found["destination", "outbox"] == "ok"
    assert found["model", "lungs version 1"] == "ok"
    (error,) = [one for one in said["findings"] if one["level"] == "error"]
    assert (done.returncode, said["ok"], error["kind"], error["name"]) == (1, False, "destination", "gone")
