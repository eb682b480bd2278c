"""PictureEstimates -> one page for a phone: what it is worth, bars of the estimates, and the picture itself.

In: a CtPicture, its PictureEstimates and a ResultContext.  Out: an RGB page. Of the picture only the lungs
that were found are shown, with a margin: what is written at its edges, a patient's name maybe, isn't.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.ct_picture import CtPicture
from pipelines.drawing import palette
from pipelines.drawing.page import GAP, INNER, MARGIN, Page
from pipelines.picture_estimates import PictureEstimates
from pipelines.results.outlines import hull
from pipelines.triage_picture import case_panel
from pipelines.volume import ResultContext

_SHOWN = 720  # the longer side, pixels
_MARGIN_SHARE = 0.04  # of the lungs' longer side


def picture_page(
    picture: CtPicture, estimates: PictureEstimates, context: ResultContext
) -> NDArray[np.uint8]:
    """Returns (height, 1080, 3) RGB; the height follows from the content."""
    page = Page(height=3600)
    page.header("CT picture triage", "AI estimates of one picture", clinical_use=False)
    page.paragraph(picture.notes[0], 28, fill=palette.WARNING)
    for number, estimate in enumerate(estimates.by_model):
        case_panel(page, estimate, "of this picture alone", {}, main=number == 0)
    page.heading("The lungs that were found on the picture, and their outline")
    _show(page, picture, estimates)
    page.footer([], picture, context, estimates.notes)
    return page.cropped()


def _show(page: Page, picture: CtPicture, estimates: PictureEstimates) -> None:
    rows, columns = (np.flatnonzero(estimates.lungs.any(axis=axis)) for axis in (1, 0))
    margin = max(1, round(_MARGIN_SHARE * max(np.ptp(rows), np.ptp(columns))))
    top, left = max(0, int(rows[0]) - margin), max(0, int(columns[0]) - margin)
    shown = picture.grey[top : int(rows[-1]) + margin + 1, left : int(columns[-1]) + margin + 1]
    scale = _SHOWN / max(shown.shape)
    size = (max(1, round(shown.shape[1] * scale)), max(1, round(shown.shape[0] * scale)))
    image = Image.fromarray(shown).resize(size, Image.Resampling.LANCZOS).convert("RGB")
    at = (MARGIN + (INNER - size[0]) // 2, int(page.y))
    page.image.paste(image, at)
    outline = (hull(estimates.lungs) - (left, top)) * scale + at
    page.draw.line([(float(x), float(y)) for x, y in outline], fill=palette.CALM, width=3)
    page.y += size[1] + GAP
