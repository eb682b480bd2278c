"""Renderings show the right anatomy on the right side, for any source orientation."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines import render
from pipelines.drawing import palette
from pipelines.errors import RenderingUnavailable
from pipelines.render import Drawing, check_rendering, montage, render_rotation, side_letters
from pipelines.volume import Lesion
from tests.unit.pipelines.results.synthetic import ORIENTATIONS, chest


@pytest.fixture
def rendering() -> None:
    try:
        check_rendering()
    except RenderingUnavailable as error:
        pytest.skip(f"no off-screen rendering here: {error}")


@pytest.fixture
def unprobed() -> Iterator[None]:
    check_rendering.cache_clear()
    yield
    check_rendering.cache_clear()


def near(picture: NDArray[np.uint8], color: palette.RGB) -> NDArray[np.bool_]:
    """Pixels of this hue, at any brightness: shading and veils change the rest."""
    pixels = picture.astype(np.float32)
    length = np.linalg.norm(pixels, axis=-1) * np.linalg.norm(color)
    cosine = (pixels @ np.array(color, np.float32)) / np.maximum(length, 1e-3)
    bright: NDArray[np.bool_] = (cosine > 0.985) & (pixels.max(axis=-1) > 90)
    return bright


def middle(mask: NDArray[np.bool_]) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    assert rows.size > 20, "the colour isn't in the picture"
    return float(rows.mean()), float(columns.mean())


def halves(frame: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Surfaces and ray casting, without the writing at the top and the legend at the bottom."""
    rows, columns = frame.shape[:2]
    body = frame[rows // 8 : rows - rows // 5]
    return [body[:, : columns // 2], body[:, columns // 2 :]]


@pytest.mark.usefixtures("rendering")
@pytest.mark.parametrize("orientation", list(ORIENTATIONS))
def test_anatomy_is_on_the_right_side(orientation: str) -> None:
    volume, findings = chest(orientation)
    front, _, back, _ = render_rotation(volume, findings, frames=4, size=384)
    for surfaces_or_cast in range(2):
        view = halves(front)[surfaces_or_cast]
        ground_glass = middle(near(view, palette.LESION[Lesion.GROUND_GLASS]))
        consolidation = middle(near(view, palette.LESION[Lesion.CONSOLIDATION]))
        # Ground glass is in the right lung, consolidation low in the left one
        assert ground_glass[1] < view.shape[1] / 2 < consolidation[1]
        assert ground_glass[0] < consolidation[0]
        behind = halves(back)[surfaces_or_cast]
        assert middle(near(behind, palette.LESION[Lesion.CONSOLIDATION]))[1] < view.shape[1] / 2


@pytest.mark.usefixtures("rendering")
def test_frames_turn_and_are_the_same_when_drawn_again() -> None:
    volume, findings = chest()
    first = render_rotation(volume, findings, frames=3, size=128)
    assert first.shape == (3, 96, 128, 3) and first.dtype == np.uint8
    assert (first[0] != first[1]).any()
    np.testing.assert_array_equal(first, render_rotation(volume, findings, frames=3, size=128))


@pytest.mark.usefixtures("rendering")
def test_a_drawing_that_began_before_the_findings_were_known_is_used() -> None:
    volume, findings = chest()
    drawing = Drawing(volume, findings.lungs, frames=2, size=128)
    drawing.show(findings.lungs, findings.lesions)
    early = render_rotation(volume, replace(findings, drawing=drawing), frames=5)
    np.testing.assert_array_equal(early, render_rotation(volume, findings, frames=2, size=128))


@pytest.mark.usefixtures("rendering")
def test_a_drawing_that_began_with_lungs_that_lesions_hid_shows_them_whole() -> None:
    """At the least, consolidation at the pleura isn't among the lungs at first."""
    volume, findings = chest()
    hidden = findings.lungs.copy()
    hidden[findings.lesions > 0] = 0
    drawing = Drawing(volume, hidden, frames=2, size=128)
    drawing.wait()
    drawing.show(findings.lungs, findings.lesions)
    early = render_rotation(volume, replace(findings, drawing=drawing))
    np.testing.assert_array_equal(early, render_rotation(volume, findings, frames=2, size=128))


@pytest.mark.usefixtures("rendering")
def test_a_drawing_that_has_nothing_to_show_ends() -> None:
    volume, findings = chest()
    drawing = Drawing(volume, findings.lungs)
    drawing.close()
    drawing.close()
    for thread in threading.enumerate():
        if thread.name.startswith("drawing"):
            thread.join(30)
            assert not thread.is_alive()


@pytest.mark.usefixtures("rendering")
def test_a_case_without_lesions_is_drawn() -> None:
    volume, findings = chest(lesions=False)
    picture = render_rotation(volume, findings, frames=1, size=256)[0]
    assert not near(halves(picture)[0], palette.LESION[Lesion.CONSOLIDATION]).any()


@pytest.mark.parametrize(
    ("degrees", "letters"),
    [(0, ("R", "L")), (90, ("A", "P")), (180, ("L", "R")), (270, ("P", "A")), (45, ("RA", "LP"))],
)
def test_letters_at_the_edges(degrees: float, letters: tuple[str, str]) -> None:
    assert tuple("".join(sorted(x)) for x in side_letters(degrees)) == tuple(
        "".join(sorted(x)) for x in letters
    )


@pytest.mark.usefixtures("unprobed")
def test_a_crashing_driver_is_reported_and_not_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "_PROBE", "import os; os.abort()")
    volume, findings = chest()
    with pytest.raises(RenderingUnavailable, match="exit code -6"):
        render_rotation(volume, findings)


@pytest.mark.usefixtures("unprobed")
def test_a_hanging_driver_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_arguments: object, **_keywords: object) -> None:
        raise subprocess.TimeoutExpired("probe", 30)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(RenderingUnavailable, match="took over"):
        check_rendering()


@pytest.mark.parametrize("orientation", ["axial", "coronal", "reversed"])
def test_montage_follows_radiological_convention(orientation: str) -> None:
    volume, findings = chest(orientation)
    page = montage(volume, findings, tiles=(1, 1), size=300)
    assert page.shape == (300, 300, 3)
    # One tile shows the highest lung slice; take more for the lesions
    page = montage(volume, findings, tiles=(4, 4), size=1024)
    tiles = page.reshape(4, 256, 4, 256, 3).swapaxes(1, 2).reshape(16, 256, 256, 3)
    for kind, on_the_left in ((Lesion.GROUND_GLASS, True), (Lesion.CONSOLIDATION, False)):
        masks = [near(tile, palette.LESION[kind]) for tile in tiles]
        columns = np.concatenate([np.nonzero(mask)[1] for mask in masks])
        assert columns.size > 20
        assert (columns.mean() < 128) == on_the_left
