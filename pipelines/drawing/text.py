"""Fonts and text measures. Pillow's own scalable font: there is nothing to install on a bare machine."""

from __future__ import annotations

from functools import cache

from PIL import ImageDraw, ImageFont

from pipelines.drawing import palette

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@cache
def font(size: int) -> Font:
    """Pillow's built-in font (Aileron) at ``size`` pixels. Covers Latin-1; use plain ASCII text."""
    return ImageFont.load_default(size)


def line_height(face: Font) -> int:
    """Pixels from one line's top to the next's."""
    box = face.getbbox("Hgy")
    return int(box[3] * 1.15) + 1


def fit(text: str, face: Font, width: float) -> str:
    """``text``, or as much of it as fits ``width`` pixels with an ellipsis."""
    if face.getlength(text) <= width:
        return text
    while text and face.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def wrap(text: str, face: Font, width: float) -> list[str]:
    """``text`` broken at spaces into lines of at most ``width`` pixels; a longer word is shortened."""
    lines: list[str] = []
    for word in text.split():
        if lines and face.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(fit(word, face, width))
    return lines


def outlined(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    words: str,
    face: Font,
    *,
    anchor: str = "la",
    fill: palette.RGB = palette.TEXT,
) -> None:
    """Text that is readable on any grey of an image."""
    draw.text(
        place, words, font=face, fill=fill, anchor=anchor, stroke_width=2, stroke_fill=palette.BACKGROUND
    )
