"""Pictures of the node's own pages: study, overview and destinations on a desktop, an upload on a phone.

.venv/bin/python -m tests.browser.pages_screenshot DICOM_FOLDER --out docs
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from node.triton_server import EmbeddedTriton
from tests.browser.conftest import CHROMIUM
from tests.browser.test_pages import PHONE, WAIT, Story
from tests.browser.viewer import CHROMIUM_FLAGS
from tests.integration.receiving import wait_for
from tests.integration.running import storescu

COLORS = 220
#: further pages -> where they are
DESKTOP = {"overview": "/", "destinations": "/destinations"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, EmbeddedTriton() as triton, sync_playwright() as playwright:
        story = Story(Path(folder), triton)
        story.start_pacs()
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        try:
            desktop = browser.new_page(viewport={"width": 1180, "height": 1000})
            storescu(story.node.port, arguments.folder)
            wait_for(lambda: story.node.get("/api/jobs"), seconds=60, what="a job")
            study = story.node.get("/api/jobs")[0]["study_instance_uid"]
            desktop.goto(f"{story.url}/studies/{study}")
            expect(desktop.locator(".said")).to_contain_text("are at pacs", timeout=WAIT)
            take(desktop, arguments.out / "page_study.png")
            desktop.set_viewport_size({"width": 1180, "height": 300})
            for name, path in DESKTOP.items():
                desktop.goto(f"{story.url}{path}")
                take(desktop, arguments.out / f"page_{name}.png", whole=True)
            link = httpx.get(f"{story.url}/upload").text.partition('id="link" href="')[2].partition('"')[0]
            phone = browser.new_context(**PHONE).new_page()
            phone.goto(link)
            packed = shutil.make_archive(str(story.folder / "study"), "zip", arguments.folder)
            phone.get_by_label("Files").set_input_files(packed)
            expect(phone.locator("#result .said")).to_contain_text("are at pacs", timeout=WAIT)
            take(phone, arguments.out / "page_upload.png")
        finally:
            browser.close()
            story.stop()


def take(page: Page, out: Path, *, whole: bool = False) -> None:
    """whole: to the page's end, however long it is."""
    shown = "[...document.images].every((one) => one.complete && one.naturalWidth)"
    wait_for(lambda: page.evaluate(shown), seconds=60, what="the pictures")
    page.screenshot(path=out, full_page=whole)
    Image.open(out).convert("RGB").quantize(COLORS).save(out, optimize=True)


if __name__ == "__main__":
    main()
