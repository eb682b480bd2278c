"""The page of a result picture: a canvas with a header, panels, text, and what made it at the foot.

In: words and numbers.  Out: an RGB page as wide as a phone shows well. It names models, never the patient.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipelines.drawing import palette, text
from pipelines.volume import ResultContext, SourceImages

WIDTH = 1080
MARGIN = 36
GAP = 24
INNER = WIDTH - 2 * MARGIN


class Page:
    """A tall canvas and the place of the next section on it."""

    def __init__(self, height: int) -> None:
        self.image = Image.new("RGB", (WIDTH, height), palette.BACKGROUND)
        self.draw = ImageDraw.Draw(self.image)
        self.y = float(MARGIN)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: int,
        *,
        fill: palette.RGB = palette.TEXT,
        anchor: str = "la",
        width: float = INNER,
    ) -> float:
        """Draw one line, shortened to ``width``; returns its width."""
        face = text.font(size)
        words = text.fit(words, face, width)
        self.draw.text((x, y), words, font=face, fill=fill, anchor=anchor)
        return float(face.getlength(words))

    def panel(self, x: float, width: float, height: float) -> None:
        self.draw.rounded_rectangle([x, self.y, x + width, self.y + height], 14, fill=palette.PANEL)

    def heading(self, words: str) -> None:
        self.text(MARGIN, self.y, words, 24, fill=palette.MUTED)
        self.y += 38

    def paragraph(self, words: str, size: int, *, fill: palette.RGB = palette.TEXT) -> None:
        """Lines as wide as the page."""
        for line in text.wrap(words, text.font(size), INNER):
            self.text(MARGIN, self.y, line, size, fill=fill)
            self.y += size * 1.4
        self.y += GAP

    def cropped(self) -> NDArray[np.uint8]:
        return np.asarray(self.image)[: int(self.y + MARGIN)]

    def header(self, title: str, subtitle: str, *, clinical_use: bool) -> None:
        """Title and, unless the site declares clinical use, the warning."""
        self.text(MARGIN, self.y, title, 44, width=INNER * 0.5)
        self.text(MARGIN, self.y + 52, subtitle, 26, fill=palette.MUTED)
        if not clinical_use:
            face = text.font(26)
            width = face.getlength(palette.NOT_CLINICAL) + 36
            left = WIDTH - MARGIN - width
            self.draw.rounded_rectangle([left, self.y, left + width, self.y + 50], 25, fill=palette.WARNING)
            middle = (left + width / 2, self.y + 25)
            self.draw.text(middle, palette.NOT_CLINICAL, font=face, fill=palette.BACKGROUND, anchor="mm")
        self.y += 52 + 26 + 28

    def footer(
        self, method: Sequence[str], volume: SourceImages, context: ResultContext, notes: Sequence[str]
    ) -> None:
        """How the numbers were made, by which models and software, from what, and what to know of it."""
        lines = [
            *method,
            *(f"Model {m.name}, version {m.version}, sha256 {m.sha256[:12]}" for m in context.models),
            f"{context.pipeline} {context.pipeline_version}, software {context.software_version}, "
            f"{context.content_datetime:%Y-%m-%d %H:%M}",
            f"Input: series {volume.sources[0].get('SeriesNumber', '-')}, "
            + _counted(len(volume.source_frames)),
            *(f"Note: {note}" for note in notes),
        ]
        self.draw.line([(MARGIN, self.y), (WIDTH - MARGIN, self.y)], fill=palette.LINE)
        self.y += 14
        face = text.font(21)
        for words in (line for paragraph in lines for line in text.wrap(paragraph, face, INNER)):
            self.text(MARGIN, self.y, words, 21, fill=palette.MUTED)
            self.y += 31


def _counted(frames: int) -> str:
    return f"{frames} slices" if frames != 1 else "1 image"
