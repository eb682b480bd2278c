"""What a radiologist does in OHIF, and what is then to be seen, as pixels.

In: a page of a browser.  Out: RGB arrays of the active viewport, (rows, columns, 3), and of the whole page.
OHIF puts its services on ``window``; they choose the image that is drawn and say where the viewport is.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize

Pixels = NDArray[np.uint8]
Look = Callable[[Pixels], Any]
_Seen = TypeVar("_Seen")

CHROMIUM_FLAGS = (
    *("--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--ignore-gpu-blocklist"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
)
SCREEN: ViewportSize = {"width": 960, "height": 640}
WAIT_SECONDS = 120.0
_VIEWPORT = """
    const grid = window.services.viewportGridService.getState();
    const viewport = window.services.cornerstoneViewportService.getCornerstoneViewport(grid.activeViewportId);
"""


@dataclass(frozen=True)
class Measurement:
    """points: (n, 2) rows and columns of the viewport's pixels.  lines: what stands beside it."""

    points: NDArray[np.float64]
    lines: tuple[str, ...]


class Viewer:
    """One page with one study. faults: errors that the page, the network or the archive met."""

    def __init__(self, browser: Browser, url: str, *, screen: ViewportSize = SCREEN) -> None:
        self._url = url
        self._page: Page = browser.new_page(viewport=screen)
        self._page.set_default_timeout(1000 * WAIT_SECONDS)
        self.faults: list[str] = []
        self._page.on("pageerror", lambda error: self.faults.append(f"page: {error}"))
        self._page.on("requestfailed", lambda request: self.faults.append(f"failed: {request.url}"))
        self._page.on("response", self._note)

    def _note(self, response: Any) -> None:
        if response.status >= 400:
            self.faults.append(f"{response.status}: {response.url}")

    def close(self) -> None:
        self._page.close()

    def open_study(self, study_instance_uid: str) -> None:
        """Load the study and wait for its first image."""
        self._page.add_init_script("localStorage.setItem('shownTours', '[\"basicViewerTour\"]')")
        self._page.goto(f"{self._url}/viewer?StudyInstanceUIDs={study_instance_uid}")
        self._page.wait_for_selector("canvas.cornerstone-canvas")
        self.settled()

    def series(self) -> list[str]:
        """Modality and description of each series in the study's panel."""
        shown = self._page.locator("[data-cy^=study-browser-thumbnail]")
        return [" ".join(text.split()) for text in shown.all_inner_texts()]

    def open_series(self, description: str) -> None:
        """Double-click the series' thumbnail."""
        self._page.locator("[data-cy^=study-browser-thumbnail]", has_text=description).dblclick()

    def show_image(self, uid: str, *, until: Look = np.any) -> Pixels:
        """Go to the image, or frame, of the active viewport's series whose address holds ``uid``; what is
        drawn then, once ``until`` is true of it."""
        went = self._run(
            """(uid) => { const at = viewport.getImageIds().findIndex(id => id.includes(uid));
            if (at >= 0) viewport.setImageIdIndex(at); return at; }""",
            uid,
        )
        assert went >= 0, f"the viewport has no image {uid}"
        self._until(lambda: self._run("() => viewport.getCurrentImageIdIndex()") == went, "the image")
        return self.settled(until)

    def loaded_segments(self) -> list[str]:
        """Labels of the segmentation's segments, once it is loaded."""
        return self._until(lambda: self._segments() or None, "a segmentation")

    def _segments(self) -> list[str]:
        labels: list[str] = self._run(
            """() => window.services.segmentationService.getSegmentations()
            .flatMap(one => Object.values(one.segments).map(segment => segment.label))"""
        )
        return labels

    def image(self) -> str:
        """The address of the image that the active viewport shows; it holds the SOP Instance UID."""
        address: str = self._run("() => viewport.getCurrentImageId()")
        return address

    def next_measurement(self) -> None:
        """Go on to the next measurement of the report that is open."""
        self._page.locator("[data-cy=viewport-action-arrows-right]").click()

    def measurement(self, text: str) -> Measurement:
        """The measurement that is drawn, once ``text`` stands beside it."""

        def drawn() -> Measurement | None:
            lines = self._page.locator(".svg-layer tspan").all_text_contents()
            points = self._page.locator(".svg-layer polyline").evaluate_all(
                "lines => lines.map(line => [...line.points].map(point => [point.y, point.x]))"
            )
            return Measurement(np.array(points[0]), tuple(lines)) if points and text in lines else None

        return self._until(drawn, f"a measurement with {text}")

    def to_screen(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 3) patient millimetres (LPS) -> (n, 2) row and column of ``pixels``."""
        script = """(points) => { const scale = viewport.canvas.width / viewport.canvas.clientWidth;
            return points.map(point => viewport.worldToCanvas(point).map(x => x * scale)); }"""
        return np.array(self._run(script, points.tolist()))[:, ::-1]

    def pixels(self) -> Pixels | None:
        """The active viewport's canvas: image and overlays, without texts. None while there isn't one."""
        url: str | None = self._run(
            "() => viewport && viewport.canvas && viewport.canvas.width ? viewport.canvas.toDataURL() : null"
        )
        if url is None:
            return None
        picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
        return np.asarray(picture.convert("RGB"))

    def settled(self, until: Look = np.any) -> Pixels:
        """The canvas once ``until`` is true of it and it has stopped changing."""
        last: Pixels | None = None

        def still() -> Pixels | None:
            nonlocal last
            before, last = last, self.pixels()
            if before is None or last is None or not np.array_equal(before, last):
                return None
            return last if until(last) else None

        return self._until(still, "a picture")

    def screenshot(self, path: Path) -> Pixels:
        """The whole page, as it is on the screen; also kept as a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return np.asarray(Image.open(io.BytesIO(self._page.screenshot(path=path))).convert("RGB"))

    def _run(self, function: str, argument: Any = None) -> Any:
        """Call a JavaScript function that may use ``grid`` and ``viewport``."""
        return self._page.evaluate(
            f"(argument) => {{ {_VIEWPORT} return ({function})(argument); }}", argument
        )

    def _until(self, look: Callable[[], _Seen | None], what: str) -> _Seen:
        """Look again until there is something to see."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            if (seen := look()) is not None and seen is not False:
                return seen
            self._page.wait_for_timeout(200)
        raise AssertionError(f"the viewer didn't show {what}; faults: {self.faults}")
