"""Findings -> one page that a doctor understands at a glance, also on a phone.

In: a Volume, its Findings and a ResultContext.  Out: an RGB page. It names models, not the patient: the
DICOM object around it does that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipelines.drawing import palette, text
from pipelines.drawing.key_slices import key_slices
from pipelines.volume import FINDING_TYPES, NO_FINDING, Findings, Lung, ResultContext, Volume

WIDTH = 1080
_MARGIN = 36
_GAP = 24
_INNER = WIDTH - 2 * _MARGIN
_TOP_REGIONS = 6
#: column of the region table -> its right or left edge, as a share of the inner width, and its anchor
_COLUMNS: Sequence[tuple[str, float, str]] = (
    ("#", 0.02, "la"),
    ("Type", 0.09, "la"),
    ("Lung", 0.44, "la"),
    ("ml", 0.68, "ra"),
    ("Mean HU", 0.84, "ra"),
    ("p", 0.98, "ra"),
)


def result_picture(volume: Volume, findings: Findings, context: ResultContext) -> NDArray[np.uint8]:
    """The page: case type, Noisy-OR by type, lungs, key slices, regions and provenance.

    Returns (height, 1080, 3) RGB; the height follows from the content (about 1800 with regions).
    """
    page = _Page(height=2600)
    _header(page, context)
    _case(page, findings)
    _lungs(page, findings)
    _slices(page, volume, findings)
    if findings.regions:
        _regions(page, findings)
    _footer(page, volume, findings, context)
    return page.cropped()


class _Page:
    """A tall canvas and the place of the next section on it."""

    def __init__(self, height: int) -> None:
        self.image = Image.new("RGB", (WIDTH, height), palette.BACKGROUND)
        self.draw = ImageDraw.Draw(self.image)
        self.y = float(_MARGIN)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: int,
        *,
        fill: palette.RGB = palette.TEXT,
        anchor: str = "la",
        width: float = _INNER,
    ) -> float:
        """Draw one line, shortened to ``width``; returns its width."""
        face = text.font(size)
        words = text.fit(words, face, width)
        self.draw.text((x, y), words, font=face, fill=fill, anchor=anchor)
        return float(face.getlength(words))

    def panel(self, x: float, width: float, height: float) -> None:
        self.draw.rounded_rectangle([x, self.y, x + width, self.y + height], 14, fill=palette.PANEL)

    def heading(self, words: str) -> None:
        self.text(_MARGIN, self.y, words, 24, fill=palette.MUTED)
        self.y += 38

    def cropped(self) -> NDArray[np.uint8]:
        return np.asarray(self.image)[: int(self.y + _MARGIN)]


def _header(page: _Page, context: ResultContext) -> None:
    page.text(_MARGIN, page.y, "Chest CT", 44, width=_INNER * 0.5)
    page.text(_MARGIN, page.y + 52, "AI result: ground glass and consolidation", 26, fill=palette.MUTED)
    if not context.clinical_use:
        face = text.font(26)
        width = face.getlength(palette.NOT_CLINICAL) + 36
        left = WIDTH - _MARGIN - width
        page.draw.rounded_rectangle([left, page.y, left + width, page.y + 50], 25, fill=palette.WARNING)
        middle = (left + width / 2, page.y + 25)
        page.draw.text(middle, palette.NOT_CLINICAL, font=face, fill=palette.BACKGROUND, anchor="mm")
    page.y += 52 + 26 + 28


def _case(page: _Page, findings: Findings) -> None:
    height = 112 + 74 * len(FINDING_TYPES)
    page.panel(_MARGIN, _INNER, height)
    left, top = _MARGIN + 28, page.y + 22
    found = findings.case_type != NO_FINDING
    color = palette.LESION[FINDING_TYPES[findings.case_type]] if found else palette.CALM
    page.draw.rounded_rectangle([_MARGIN, page.y, _MARGIN + 10, page.y + height], 5, fill=color)
    page.text(left, top, palette.NAMES[findings.case_type], 52, fill=color, width=_INNER - 300)
    involved = f"{findings.involved_percent:.1f} %"
    page.text(WIDTH - _MARGIN - 28, top - 4, involved, 46, anchor="ra")
    page.text(WIDTH - _MARGIN - 28, top + 50, "of the lungs involved", 22, fill=palette.MUTED, anchor="ra")
    y = top + 88
    for name, kind in FINDING_TYPES.items():
        probability = findings.noisy_or[name]
        count = sum(region.finding_type == name for region in findings.regions)
        words = "no region" if count == 0 else "1 region" if count == 1 else f"{count} regions"
        used = page.text(left, y, palette.NAMES[name], 28)
        page.text(left + used + 18, y + 4, words, 24, fill=palette.MUTED)
        page.text(WIDTH - _MARGIN - 28, y - 2, _probability(probability), 32, anchor="ra")
        bar = [left, y + 42, WIDTH - _MARGIN - 28, y + 54]
        page.draw.rounded_rectangle(bar, 6, fill=palette.LINE)
        if probability > 0:
            right = bar[0] + max(12.0, (bar[2] - bar[0]) * probability)
            page.draw.rounded_rectangle([bar[0], bar[1], right, bar[3]], 6, fill=palette.LESION[kind])
        y += 74
    page.y += height + _GAP


def _probability(value: float) -> str:
    """Three decimals, but never "1.000": many regions round Noisy-OR to 1, and no model is certain."""
    return "P > 0.999" if value >= 0.9995 else f"P = {value:.3f}"


def _lungs(page: _Page, findings: Findings) -> None:
    width, height = (_INNER - _GAP) / 2, 116.0
    for column, lung in enumerate((Lung.RIGHT, Lung.LEFT)):  # as on the slices: the right lung on the left
        x = _MARGIN + column * (width + _GAP)
        page.panel(x, width, height)
        volume_ml, lesion_ml = findings.lung_volume_ml[lung], findings.lesion_volume_ml[lung]
        percent = 100.0 * lesion_ml / volume_ml if volume_ml > 0 else 0.0
        page.text(x + 24, page.y + 16, f"{lung.name.capitalize()} lung", 26, fill=palette.MUTED)
        page.text(x + 24, page.y + 54, f"{volume_ml:,.0f} ml", 36, width=width / 2)
        page.text(x + width - 24, page.y + 12, f"{percent:.1f} % involved", 30, anchor="ra")
        page.text(
            x + width - 24, page.y + 64, f"{lesion_ml:,.1f} ml lesions", 24, fill=palette.MUTED, anchor="ra"
        )
    page.y += height + _GAP


def _slices(page: _Page, volume: Volume, findings: Findings) -> None:
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


def _regions(page: _Page, findings: Findings) -> None:
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
        color = palette.LESION[FINDING_TYPES[region.finding_type]]
        cells = (
            str(region.number),
            palette.NAMES[region.finding_type],
            region.laterality.name.capitalize(),
            f"{region.volume_ml:.1f}",
            f"{region.mean_hu:.0f}",
            f"{region.probability:.3f}",
        )
        for (name, share, anchor), words in zip(_COLUMNS, cells, strict=True):
            fill = color if name in ("#", "Type") else palette.TEXT
            page.text(_MARGIN + share * _INNER, y, words, 27, fill=fill, anchor=anchor, width=_INNER * 0.34)
    page.y += 20 + line * (len(shown) + 1) + _GAP


def _footer(page: _Page, volume: Volume, findings: Findings, context: ResultContext) -> None:
    lines = [
        "P = 1 - product of (1 - p) over the type's regions (Noisy-OR). Boxes: #region and its p.",
        f"p: {findings.probability_method}.",
        *(f"Model {m.name}, version {m.version}, sha256 {m.sha256[:12]}" for m in context.models),
        f"{context.pipeline} {context.pipeline_version}, software {context.software_version}, "
        f"{context.content_datetime:%Y-%m-%d %H:%M}",
        f"Input: series {volume.sources[0].get('SeriesNumber', '-')}, {len(volume.source_frames)} slices",
        *(f"Note: {note}" for note in findings.notes),
    ]
    page.draw.line([(_MARGIN, page.y), (WIDTH - _MARGIN, page.y)], fill=palette.LINE)
    page.y += 14
    face = text.font(21)
    for words in (line for paragraph in lines for line in text.wrap(paragraph, face, _INNER)):
        page.text(_MARGIN, page.y, words, 21, fill=palette.MUTED)
        page.y += 31
