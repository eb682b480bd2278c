"""Estimates -> one page for a quick decision, also on a phone: bars of the case's, key slices with their own.

In: a Volume, its Estimates and a ResultContext.  Out: an RGB page. It names models, not the patient.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.drawing import palette, text
from pipelines.drawing.page import GAP, INNER, MARGIN, WIDTH, Page
from pipelines.drawing.planes import window
from pipelines.estimates import AGGREGATION, Estimate, Estimates, KeySlice
from pipelines.geometry import AxialView
from pipelines.volume import ResultContext, Volume

#: class -> words and colour. Okabe and Ito's colours for disease, grey for none: told apart with every common
#: colour-vision deficiency, and always named in words beside.
CLASSES: Mapping[str, tuple[str, palette.RGB]] = {
    "normal": ("Normal", (214, 220, 228)),
    "bacterial": ("Bacterial pneumonia", (230, 159, 0)),
    "viral": ("Viral pneumonia", (86, 180, 233)),
    "negative": ("COVID-19 negative", (214, 220, 228)),
    "positive": ("COVID-19 positive", (204, 121, 167)),
}
_ACROSS = 4
_TILE_GAP = 16
_TILE = (INNER - (_ACROSS - 1) * _TILE_GAP) // _ACROSS
_MARGIN_MM = 10.0
_SEEN = 0.0005  # a probability below this is written as 0.000


def triage_picture(volume: Volume, estimates: Estimates, context: ResultContext) -> NDArray[np.uint8]:
    """The page: each model's estimates of the case, the key slices with theirs, and provenance.

    Returns (height, 1080, 3) RGB; the height follows from the content.
    """
    page = Page(height=3600)
    page.header("Chest CT triage", "AI estimates by slice classifiers", clinical_use=context.clinical_use)
    for number, estimate in enumerate(estimates.by_model):
        slices = len(estimate.by_slice)
        counted = {
            name: f"{votes} of {slices}" + (" slices" if slices != 1 else " slice")
            for name, votes in estimate.votes.items()
        }
        meaning = f"mean of {slices} key slices" if slices != 1 else "1 key slice"
        case_panel(page, estimate, meaning, counted, main=number == 0)
    _key_slices(page, volume, estimates)
    method = f"Estimates of the case: {AGGREGATION}. Each slice is judged by itself, without the others."
    page.footer([method], volume, context, estimates.notes)
    return page.cropped()


def case_panel(
    page: Page, estimate: Estimate, meaning: str, counted: Mapping[str, str], *, main: bool
) -> None:
    """A model's predicted class in words, and of what it is the mean; for each class a bar, and what is said
    of it beside its name, if anything (how many slices are most likely of it)."""
    heading = 88 if main else 80
    height = heading + 22 + 74 * len(estimate.classes) + 8
    page.panel(MARGIN, INNER, height)
    words, color = CLASSES[estimate.predicted]
    if estimate.model.is_random:  # never a class in large letters that nothing was learned of
        words, color = "Means nothing: random weights", palette.WARNING
    page.draw.rounded_rectangle([MARGIN, page.y, MARGIN + 10, page.y + height], 5, fill=color)
    left, right, top = MARGIN + 28, WIDTH - MARGIN - 28, page.y + 22
    page.text(left, top, words, 52 if main else 38, fill=color, width=INNER - 400)
    page.text(right, top, estimate.model.name, 26, anchor="ra", width=340)
    page.text(right, top + 34, meaning, 24, fill=palette.MUTED, anchor="ra")
    y = page.y + 22 + heading
    for name, p in estimate.case.items():
        bar_words, bar_color = CLASSES[name]
        used = page.text(left, y, bar_words, 28)
        page.text(left + used + 18, y + 4, counted.get(name, ""), 24, fill=palette.MUTED)
        page.text(right, y - 2, _probability(p), 32, anchor="ra")
        bar = (left, y + 42, right, y + 54)
        page.draw.rounded_rectangle(bar, 6, fill=palette.LINE)
        if p >= _SEEN:
            full = bar[0] + max(12.0, (bar[2] - bar[0]) * p)
            shown = palette.MUTED if estimate.model.is_random else bar_color
            page.draw.rounded_rectangle((bar[0], bar[1], full, bar[3]), 6, fill=shown)
        y += 74
    page.y += height + GAP


def _probability(value: float) -> str:
    """Three decimals, but never "1.000": no model is certain."""
    return "> 0.999" if value >= 0.9995 else f"{value:.3f}"


def _key_slices(page: Page, volume: Volume, estimates: Estimates) -> None:
    page.heading("Key slices, head first, as the classifiers saw them, each with its own estimates")
    pictures = _pictures(volume, estimates)
    tallest = max(picture.height for picture in pictures)
    shown = [estimate for estimate in estimates.by_model if not estimate.model.is_random]
    step = tallest + 12 + 50 * len(shown) + _TILE_GAP
    rows = list(enumerate(estimates.key_slices))[::-1]
    for place, (row, key) in enumerate(rows):
        x = MARGIN + (place % _ACROSS) * (_TILE + _TILE_GAP)
        y = int(page.y) + place // _ACROSS * step
        picture = pictures[row]
        page.image.paste(picture, (x + (_TILE - picture.width) // 2, y + (tallest - picture.height) // 2))
        _letters(page, (x, y, x + _TILE, y + tallest), _caption(volume, key))
        for number, estimate in enumerate(shown):
            _slice_estimate(page, x, y + tallest + 8 + 50 * number, estimate, row)
    page.y += step * ((len(rows) - 1) // _ACROSS + 1) + GAP - _TILE_GAP


def _pictures(volume: Volume, estimates: Estimates) -> list[Image.Image]:
    """What the classifiers saw, in the lung window, cut to the lungs, with square pixels; at most _TILE wide.

    In the axial view rows run towards the back and columns towards the patient's left, as radiologists look.
    """
    view = AxialView.of(volume.affine)
    indexes = [key.index for key in estimates.key_slices]
    lungs = view.view(estimates.lungs)[indexes] > 0
    hu = view.view(volume.hu)[indexes]
    spacing = view.spacing_mm(volume.spacing_mm)[1:]
    cut = []
    for axis, mm in ((1, spacing[0]), (2, spacing[1])):
        inside = np.flatnonzero(lungs.any(axis=(0, 3 - axis)))
        margin = round(_MARGIN_MM / mm)
        cut.append(slice(max(int(inside[0]) - margin, 0), int(inside[-1]) + margin + 1))
    shown = hu[:, cut[0], cut[1]]
    size_mm = (shown.shape[2] * spacing[1], shown.shape[1] * spacing[0])
    scale = _TILE / max(size_mm)
    size = (max(1, round(size_mm[0] * scale)), max(1, round(size_mm[1] * scale)))
    return [
        Image.fromarray(window(one)).resize(size, Image.Resampling.LANCZOS).convert("RGB") for one in shown
    ]


def _letters(page: Page, box: tuple[int, int, int, int], caption: str) -> None:
    left, top, right, bottom = box
    face = text.font(22)
    middle = ((left + right) / 2, (top + bottom) / 2)
    for words, place, anchor in (
        (caption, (left + 6.0, top + 4.0), "la"),
        ("R", (left + 6.0, middle[1]), "lm"),
        ("L", (right - 6.0, middle[1]), "rm"),
        ("P", (middle[0], bottom - 4.0), "md"),
    ):
        text.outlined(page.draw, place, words, face, anchor=anchor)


def _caption(volume: Volume, key: KeySlice) -> str:
    """The image's number where the source is axial, so that it can be found on the workstation."""
    classic = len(volume.sources) == len(volume.source_frames)
    if key.source_slice is not None and classic:
        source, _ = volume.source_frames[volume.acquired_plane(key.source_slice)]
        number = volume.sources[source].get("InstanceNumber")
        if number is not None:
            return f"Image {number}"
    return f"z {key.z_mm:.0f} mm"


def _slice_estimate(page: Page, x: float, y: float, estimate: Estimate, row: int) -> None:
    """The class with the largest probability in words, and all of them as one bar."""
    values = estimate.by_slice[row]
    best = int(values.argmax())
    words, color = estimate.classes[best], CLASSES[estimate.classes[best]][1]
    page.text(x, y, words, 26, fill=color, width=_TILE * 0.6)
    page.text(x + _TILE, y, _probability(float(values[best])), 26, anchor="ra")
    left = x
    for name, p in zip(estimate.classes, values, strict=True):
        right = left + _TILE * float(p)
        if right - left >= 1:
            page.draw.rectangle((left, y + 34, right - 1, y + 41), fill=CLASSES[name][1])
        left = right
