"""Inpainted key slices -> one page: the original, as if without its lesions, and the difference.

In: the Findings' inpainted slices and a ResultContext.  Out: an RGB page in radiological convention: the
axial view's columns run to the patient's left, which is the right of the picture.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from pipelines.drawing import palette, text
from pipelines.drawing.page import GAP, INNER, MARGIN, Page
from pipelines.drawing.planes import window
from pipelines.volume import Findings, InpaintedSlice, Lesion, ResultContext, Volume

_TITLES = ("Original", "As if without lesions", "Difference")
_TILE = (INNER - 2 * GAP) // 3
#: HU of difference that has the full colour
_FULL_DIFFERENCE = 600.0
#: denser than the drawn lung, and less dense
_DENSER, _LIGHTER = palette.LESION[Lesion.CONSOLIDATION], palette.LESION[Lesion.GROUND_GLASS]


def inpainted_picture(volume: Volume, findings: Findings, context: ResultContext) -> NDArray[np.uint8]:
    """The page, (height, 1080, 3) RGB. Raises ValueError where nothing was inpainted."""
    if not findings.inpainted:
        raise ValueError("no slice was inpainted")
    page = Page(height=400 + len(findings.inpainted) * (_TILE + GAP + 40))
    page.header("Chest CT", "AI drawing: without the lesions", clinical_use=context.clinical_use)
    for column, title in enumerate(_TITLES):
        page.text(MARGIN + column * (_TILE + GAP), page.y, title, 26, fill=palette.MUTED, width=_TILE)
    page.y += 40
    for one in sorted(findings.inpainted, key=lambda each: -each.index):  # head first
        for column, picture in enumerate(tiles(one)):
            page.image.paste(picture, (MARGIN + column * (_TILE + GAP), int(page.y)))
        page.y += _TILE + GAP
    page.footer(
        [
            "The middle column is invented by a network that learned from lungs without disease. It shows "
            "what the lung might look like, not what it was; nothing may be measured on it.",
            f"Difference: orange where the original is denser, blue where less, full colour at "
            f"{_FULL_DIFFERENCE:.0f} HU.",
        ],
        volume,
        context,
        (),
    )
    return page.cropped()


def tiles(one: InpaintedSlice) -> list[Image.Image]:
    """Original with what was masked outlined, inpainted, and the difference: squares of _TILE pixels."""
    original, inpainted = (
        np.repeat(window(hu)[..., None], 3, axis=2).astype(np.float32) for hu in (one.original, one.inpainted)
    )
    change = (one.original.astype(np.float32) - one.inpainted) / _FULL_DIFFERENCE
    strength = np.clip(np.abs(change), 0.0, 1.0)[..., None]
    color = np.where(change[..., None] > 0, np.array(_DENSER, np.float32), np.array(_LIGHTER, np.float32))
    difference = 0.35 * original * (1 - strength) + color * strength
    edge = one.mask & ~ndimage.binary_erosion(one.mask)
    original[edge] = palette.WARNING
    return [_tile(picture) for picture in (original, inpainted, difference)]


def _tile(picture: NDArray[np.float32]) -> Image.Image:
    """Windows are as wide as high in mm, so that a square shows them undistorted."""
    tile = Image.fromarray(picture.clip(0, 255).astype(np.uint8)).resize(
        (_TILE, _TILE), Image.Resampling.BICUBIC
    )
    draw, face = ImageDraw.Draw(tile), text.font(22)
    for letter, x, anchor in (("R", 6, "lm"), ("L", _TILE - 6, "rm")):
        text.outlined(draw, (x, _TILE / 2), letter, face, anchor=anchor)
    return tile
