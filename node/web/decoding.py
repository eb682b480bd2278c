"""A JPEG or PNG as grey pixels, in a process of its own: ``python -m node.web.decoding PICTURE PIXELS``.

In: a file that somebody uploaded.  Out: its pixels, a byte each, row by row, in the file PIXELS; on standard
output a line of JSON that says what they are, or why there are none (``{"refused": …}``). Nothing else of the
file gets out: no EXIF, no place, no comment, no colour profile.

What decodes is native code that reads strangers' bytes. Here it has limits of time and memory, neither the
node's memory nor its secrets, and takes nothing but itself along when it breaks.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

from PIL import Image

#: a phone's camera has up to about 50 million
MOST_PIXELS = 60_000_000
#: a CT slice has 512; what is smaller shows nothing, what is larger is shrunk
SHORTEST_SIDE, LONGEST_SIDE = 64, 1024
LONGEST_SHAPE = 4  # times as long as wide

CPU_SECONDS = 20
MEMORY_BYTES = 2 * 2**30

_FORMATS = ("JPEG", "PNG")
_ORIENTATION = 0x0112  # of EXIF
#: EXIF's orientation -> what makes the picture upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")


class Refused(Exception):
    """The picture isn't taken; the message is for people."""


def decode(path: Path) -> tuple[Image.Image, dict[str, Any]]:
    """The picture upright, grey, at most LONGEST_SIDE long; and of the file: format, rows, columns, and how
    many times smaller it is than what it holds where that was compressed with loss. Raises Refused."""
    try:
        opened = Image.open(path, formats=_FORMATS)
    except Exception as error:  # the reader of headers has no list of what it raises
        raise Refused("the picture is broken: its header can't be read") from error
    with opened as picture:
        _check(picture)
        jpeg = picture.format != "PNG"
        columns, rows = picture.size
        channels = len(picture.getbands())
        orientation = _orientation(picture)
        try:
            picture.draft("L", (LONGEST_SIDE, LONGEST_SIDE))  # JPEG: much of it needn't be decoded
            picture.load()
            grey = _shrunk(_grey(picture))
        except Exception as error:  # nor has the decoder
            raise Refused("the picture is cut short or broken") from error
    if orientation in _UPRIGHT:
        grey = grey.transpose(_UPRIGHT[orientation])
    ratio = rows * columns * channels / path.stat().st_size if jpeg else None
    what = {"format": "JPEG" if jpeg else "PNG", "rows": rows, "columns": columns, "lossy_ratio": ratio}
    return grey, what


def _check(picture: Image.Image) -> None:
    columns, rows = picture.size
    if rows * columns > MOST_PIXELS:
        raise Refused(
            f"the picture has {rows} x {columns} pixels; at most {MOST_PIXELS // 1_000_000} million are taken"
        )
    short, long = sorted((rows, columns))
    if short < SHORTEST_SIDE:
        raise Refused(f"the picture has {rows} x {columns} pixels: too few to show anything")
    if long > LONGEST_SHAPE * short:
        raise Refused(f"the picture has {rows} x {columns} pixels: too narrow for a CT slice")
    if picture.mode == "CMYK":
        raise Refused("the picture has the colours of print (CMYK): save it in grey or RGB")
    # phones put a second picture for bright screens behind a JPEG's first one (MPO): the first is it
    if picture.format == "PNG" and getattr(picture, "n_frames", 1) > 1:
        raise Refused("the picture moves: save the slice as a single one")


def _orientation(picture: Image.Image) -> int:
    """1 where nothing is said, or nothing that can be read."""
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # the reader of EXIF has no list of what it raises; what is broken says nothing
        return 1


def _grey(picture: Image.Image) -> Image.Image:
    """Luminance, 8 bits; what is transparent is black, as air is."""
    if picture.mode in _SIXTEEN_BITS:
        return picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if "A" in picture.getbands() or "transparency" in picture.info:
        above = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, (0, 0, 0, 255)), above).convert("L")
    return picture.convert("L")


def _shrunk(grey: Image.Image) -> Image.Image:
    scale = LONGEST_SIDE / max(grey.size)
    if scale >= 1:
        return grey
    size = (max(1, round(grey.width * scale)), max(1, round(grey.height * scale)))
    return grey.resize(size, Image.Resampling.LANCZOS)


def _limit() -> None:
    """For the process: what breaks them is killed."""
    for what, most in (
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, LONGEST_SIDE**2),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (least, least))


def main() -> None:
    _limit()
    Image.MAX_IMAGE_PIXELS = None  # ours is lower, and says so
    picture, pixels = map(Path, sys.argv[1:])
    try:
        grey, what = decode(picture)
        pixels.write_bytes(grey.tobytes())
    except Refused as refused:
        said: dict[str, Any] = {"refused": str(refused)}
    else:
        said = {**what, "shown_rows": grey.height, "shown_columns": grey.width}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
