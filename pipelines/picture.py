"""Findings -> one page that a doctor understands at a glance, also on a phone.

In: a Volume, its Findings and a ResultContext.  Out: an RGB page. It names models, not the patient: the
DICOM object around it does that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.drawing import palette
from pipelines.drawing.key_slices import key_slices
from pipelines.drawing.page import GAP as _GAP
from pipelines.drawing.page import INNER as _INNER
from pipelines.drawing.page import MARGIN as _MARGIN
from pipelines.drawing.page import WIDTH, Page
from pipelines.quantify import severity
from pipelines.volume import INFECTION_TYPES, NO_FINDING, Findings, Lung, ResultContext, Volume

_TOP_REGIONS = 6
#: column of the region table -> its right or left edge, as a share of the inner width, and its anchor
_COLUMNS: Sequence[tuple[str, float, str]] = (
    ("#", 0.02, "la"),
    ("Type", 0.08, "la"),
    ("Lung", 0.41, "la"),
    ("ml", 0.60, "ra"),
    ("Mean HU", 0.74, "ra"),
    ("Votes", 0.85, "ra"),
    ("p", 0.98, "ra"),
)


def result_picture(volume: Volume, findings: Findings, context: ResultContext) -> NDArray[np.uint8]:
    """The page: case type, Noisy-OR by type, lungs, key slices, regions and provenance.

    Returns (height, 1080, 3) RGB; the height follows from the content (about 1800 with regions).
    """
    page = Page(height=2600)
    page.header("Chest CT", "AI result: infected regions and their type", clinical_use=context.clinical_use)
    _case(page, findings)
    _lungs(page, findings)
    _slices(page, volume, findings)
    if findings.regions:
        _regions(page, findings)
    _footer(page, volume, findings, context)
    return page.cropped()


def _case(page: Page, findings: Findings) -> None:
    height = 112 + 74 * len(INFECTION_TYPES)
    page.panel(_MARGIN, _INNER, height)
    left, top = _MARGIN + 28, page.y + 22
    found = findings.case_type != NO_FINDING
    color = palette.INFECTION[findings.case_type] if found else palette.CALM
    page.draw.rounded_rectangle([_MARGIN, page.y, _MARGIN + 10, page.y + height], 5, fill=color)
    page.text(left, top, palette.NAMES[findings.case_type], 52, fill=color, width=_INNER - 300)
    involved = f"{findings.involved_percent:.1f} %"
    page.text(WIDTH - _MARGIN - 28, top - 4, involved, 46, anchor="ra")
    words = f"of the lungs involved: {severity(findings.involved_percent)}"
    page.text(WIDTH - _MARGIN - 28, top + 50, words, 22, fill=palette.MUTED, anchor="ra")
    y = top + 88
    for name in INFECTION_TYPES:
        probability = findings.noisy_or[name]
        count = sum(region.infection_type == name for region in findings.regions)
        words = "no region" if count == 0 else "1 region" if count == 1 else f"{count} regions"
        used = page.text(left, y, palette.NAMES[name], 28)
        page.text(left + used + 18, y + 4, words, 24, fill=palette.MUTED)
        page.text(WIDTH - _MARGIN - 28, y - 2, _probability(probability), 32, anchor="ra")
        bar = [left, y + 42, WIDTH - _MARGIN - 28, y + 54]
        page.draw.rounded_rectangle(bar, 6, fill=palette.LINE)
        if probability > 0:
            right = bar[0] + max(12.0, (bar[2] - bar[0]) * probability)
            page.draw.rounded_rectangle([bar[0], bar[1], right, bar[3]], 6, fill=palette.INFECTION[name])
        y += 74
    page.y += height + _GAP


def _probability(value: float) -> str:
    """Three decimals, but never "1.000": many regions round Noisy-OR to 1, and no model is certain."""
    return "P > 0.999" if value >= 0.9995 else f"P = {value:.3f}"


def _lungs(page: Page, findings: Findings) -> None:
    width, height = (_INNER - _GAP) / 2, 116.0
    for column, lung in enumerate((Lung.RIGHT, Lung.LEFT)):  # as on the slices: the right lung on the left
        x = _MARGIN + column * (width + _GAP)
        page.panel(x, width, height)
        measures = findings.measures[lung]
        lesions = f"{measures.lesions_ml:,.1f} ml lesions, {measures.peripheral_percent:.0f} % peripheral"
        page.text(x + 24, page.y + 16, f"{lung.name.capitalize()} lung", 26, fill=palette.MUTED)
        page.text(x + 24, page.y + 54, f"{measures.volume_ml:,.0f} ml", 30, width=width * 0.3)
        page.text(x + width - 24, page.y + 12, f"{measures.involved_percent:.1f} % involved", 30, anchor="ra")
        page.text(
            *(x + width - 24, page.y + 66, lesions, 21), fill=palette.MUTED, anchor="ra", width=width * 0.68
        )
    page.y += height + _GAP


def _slices(page: Page, volume: Volume, findings: Findings) -> None:
    page.heading("Key slices" if findings.regions else "Slices")
    width = (_INNER - _GAP) // 2
    slices = key_slices(volume, findings, width=width)
    row_height = 0
    for number, key in enumerate(slices):
        x = _MARGIN + (number % 2) * (width + _GAP)
        if number and number % 2 == 0:
            page.y += row_height + _GAP
        picture = Image.fromarray(key.picture)
        page.image.paste(picture, (x, int(page.y)))
        row_height = picture.height
    page.y += row_height + _GAP


def _regions(page: Page, findings: Findings) -> None:
    shown = findings.regions[:_TOP_REGIONS]
    more = len(findings.regions) - len(shown)
    page.heading("Regions" if not more else f"Regions: the {len(shown)} largest of {len(findings.regions)}")
    line = 46
    page.panel(_MARGIN, _INNER, 20 + line * (len(shown) + 1))
    y = page.y + 14
    for name, share, anchor in _COLUMNS:
        page.text(_MARGIN + share * _INNER, y, name, 22, fill=palette.MUTED, anchor=anchor)
    for region in shown:
        y += line
        page.draw.line([(_MARGIN + 16, y - 8), (WIDTH - _MARGIN - 16, y - 8)], fill=palette.LINE)
        color = palette.INFECTION[region.infection_type]
        cells = (
            str(region.number),
            palette.NAMES[region.infection_type],
            region.laterality.name.capitalize(),
            f"{region.volume_ml:.1f}",
            f"{region.mean_hu:.0f}",
            f"{sum(v.infection_type == region.infection_type for v in region.votes)} of {len(region.votes)}",
            f"{region.probability:.3f}",
        )
        for (name, share, anchor), words in zip(_COLUMNS, cells, strict=True):
            fill = color if name in ("#", "Type") else palette.TEXT
            page.text(_MARGIN + share * _INNER, y, words, 27, fill=fill, anchor=anchor, width=_INNER * 0.34)
    page.y += 20 + line * (len(shown) + 1) + _GAP


def _footer(page: Page, volume: Volume, findings: Findings, context: ResultContext) -> None:
    page.footer(
        [
            "P = 1 - product of (1 - p) over the type's regions (Noisy-OR). Boxes: #region and its p, in the "
            "type's colour; outlines: ground glass blue, consolidation orange.",
            f"p: {findings.probability_method}.",
        ],
        volume,
        context,
        findings.notes,
    )
