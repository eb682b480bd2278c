"""Findings -> a rotating 3D view: surfaces on the left, ray-cast CT on the right.

In: a Volume and its Findings.  Out: uint8 RGB frames.  Everything is placed in patient space (LPS mm)
through the volume's affine, so that an oblique or reversed series looks anatomically right.

- Surfaces: marching cubes on labels (vtkDiscreteFlyingEdges3D; Schroeder et al. 2015), smoothed; lungs
  translucent, lesions in the palette's colours.
- Ray casting (vtkOpenGLGPUVolumeRayCastMapper): equal steps along each pixel's ray, compositing front to
  back, transfer function ``pipelines.drawing.scene.TRANSFER_FUNCTION``, lesions in the palette's colours.

Off-screen through EGL only; no display is ever opened. Where EGL is missing, RenderingUnavailable is raised
and ``montage`` is the fallback.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipelines.drawing import palette, text
from pipelines.drawing.planes import axial_grid, heights_mm, slice_picture
from pipelines.errors import RenderingUnavailable
from pipelines.volume import LESION_TYPES, Findings, Volume

if TYPE_CHECKING:
    from pipelines.drawing.scene import Scene

#: of a rotation: views of a turn, columns of a frame
FRAMES, SIZE = 24, 512
#: rows of a frame for each of its columns: lungs are about as high as wide, and stand in half of it
_ROWS = 0.75
_PROBE_SECONDS = 30.0
#: Renders one pixel through EGL. In another process: a broken driver aborts the process that loads it.
_PROBE = """
import vtkmodules.vtkRenderingOpenGL2 as gl
from vtkmodules.vtkRenderingCore import vtkRenderer
window = gl.vtkEGLRenderWindow()
window.SetOffScreenRendering(1)
window.SetSize(8, 8)
window.AddRenderer(vtkRenderer())
window.Render()
raise SystemExit(0 if "OpenGL" in window.ReportCapabilities() else 1)
"""


@cache
def check_rendering() -> None:
    """Raise RenderingUnavailable unless VTK can draw off-screen here: tried in another process, once."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, timeout=_PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RenderingUnavailable(f"the rendering probe took over {_PROBE_SECONDS:.0f} s") from error
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise RenderingUnavailable(
            f"off-screen rendering failed with exit code {done.returncode}: "
            f"{lines[-1] if lines else 'no message'}",
            hint="install EGL and Mesa (Debian: libegl1 libgl1-mesa-dri)",
        )


def load_rendering() -> type[Scene]:
    """Import what draws, if it can here. Raises RenderingUnavailable."""
    check_rendering()
    # Only now: VTK's libraries need system libraries that a machine without EGL may not have either.
    from pipelines.drawing.scene import Scene  # noqa: PLC0415

    return Scene


@dataclass(frozen=True)
class View:
    """One view of both kinds, uint8 RGB (rows, columns, 3), from ``degrees`` round from the patient's front
    to the left."""

    degrees: float
    surfaces: NDArray[np.uint8]
    ray_cast: NDArray[np.uint8]
    pixels_per_mm: float


class Drawing:
    """One turn about the patient's head-foot axis, drawn on a thread of its own: begun when the lungs are
    known, gone on with once it is told what to show.

    lungs: uint8 (slices, rows, columns), 0 or ``Lung``.  frames: views of a turn.  size: columns of both
    kinds side by side.
    """

    def __init__(
        self, volume: Volume, lungs: NDArray[np.uint8], *, frames: int = FRAMES, size: int = SIZE
    ) -> None:
        self.size = size
        self._angles = [360.0 * number / frames for number in range(frames)]
        self._views: list[Future[View]] = []
        self._thread: ThreadPoolExecutor | None = ThreadPoolExecutor(1, thread_name_prefix="drawing")
        self._scene = self._thread.submit(
            lambda: load_rendering()(volume, lungs, width=size // 2, height=_rows(size))
        )

    def wait(self) -> None:
        """Return once the lungs that it began with aren't looked at any more."""
        wait([self._scene])

    def show(self, lungs: NDArray[np.uint8], lesions: NDArray[np.uint8]) -> None:
        """Once. lungs: as they are now.  lesions: uint8 (slices, rows, columns), 0 or ``Lesion``."""
        assert self._thread is not None  # noqa: S101 - it is closed by this
        shown = self._thread.submit(lambda: self._scene.result().show(lungs, lesions))
        self._views = [self._thread.submit(_view_of, self._scene, shown, degrees) for degrees in self._angles]
        self.close()

    def close(self) -> None:
        """Nothing will be shown, or nothing else."""
        if self._thread is not None:
            self._thread.submit(lambda: self._scene.result().close())
            self._thread.shutdown(wait=False)
            self._thread = None

    def views(self) -> Iterator[View]:
        """The views in their order, each when it is drawn. Raises RenderingUnavailable."""
        for view in self._views:
            yield view.result()


def _rows(columns: int) -> int:
    return round(_ROWS * columns)


def _view_of(scene: Future[Scene], shown: Future[None], degrees: float) -> View:
    it = scene.result()
    shown.result()
    return View(degrees, it.surfaces(degrees), it.ray_cast(degrees), it.pixels_per_mm)


def render_rotation(
    volume: Volume, findings: Findings, frames: int = FRAMES, size: int = SIZE, *, clinical_use: bool = False
) -> NDArray[np.uint8]:
    """One turn about the patient's head-foot axis, starting with the view from the front.

    Returns (frames, 3/4 size, size, 3) RGB. The left half shows surfaces, the right half ray casting. Seen
    from the front the patient's right is on the left. Each half has the letters of the directions that point
    left and right in it (R, L, A, P), H above and F below, and a scale bar. Where the findings come with a
    drawing that has begun, it is that one's views.

    Raises RenderingUnavailable where VTK can't draw off-screen.
    """
    drawing = findings.drawing
    if drawing is None:
        drawing = Drawing(volume, findings.lungs, frames=frames, size=size)
        drawing.show(findings.lungs, findings.lesions)
    return np.stack(
        [_frame(view, drawing.size, findings, clinical_use=clinical_use) for view in drawing.views()]
    )


def _frame(view: View, size: int, findings: Findings, *, clinical_use: bool) -> NDArray[np.uint8]:
    half, rows = size // 2, _rows(size)
    picture = Image.new("RGB", (size, rows), palette.BACKGROUND)
    for column, side in enumerate((view.surfaces, view.ray_cast)):
        picture.paste(Image.fromarray(side), (column * half, 0))
    draw = ImageDraw.Draw(picture)
    draw.line([(half, 0), (half, rows)], fill=palette.LINE)
    for column, title in enumerate(("Surfaces", "Ray casting")):
        view_box = (column * half, 0, (column + 1) * half, rows)
        _annotate(draw, view_box, title, degrees=view.degrees, pixels_per_mm=view.pixels_per_mm)
    _legend(draw, size, findings, clinical_use=clinical_use)
    return np.asarray(picture)


def side_letters(degrees: float) -> tuple[str, str]:
    """The directions at the left and right edge of a view ``degrees`` from the front (PS3.3 C.7.6.1.1.1)."""
    angle = np.deg2rad(degrees)
    right = (float(np.cos(angle)), float(np.sin(angle)))  # LPS x, y of the picture's rightward direction
    return _letters(-right[0], -right[1]), _letters(*right)


def _letters(x: float, y: float) -> str:
    named = sorted([(abs(x), "L" if x > 0 else "R"), (abs(y), "P" if y > 0 else "A")], reverse=True)
    return "".join(letter for size, letter in named if size > np.sin(np.deg2rad(22.5)))


def _annotate(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    title: str,
    *,
    degrees: float,
    pixels_per_mm: float,
) -> None:
    left, top, right, bottom = box
    font = _font(2 * (right - left))
    line = text.line_height(font)
    middle, foot = (left + right) / 2, bottom - 2 * line - 10
    draw.text((middle, top + 4), title, font=font, fill=palette.MUTED, anchor="ma")
    draw.text((middle, top + 6 + line), "H", font=font, fill=palette.TEXT, anchor="ma")
    draw.text((middle, foot), "F", font=font, fill=palette.TEXT, anchor="md")
    to_left, to_right = side_letters(degrees)
    draw.text((left + 6, (top + bottom) / 2), to_left, font=font, fill=palette.TEXT, anchor="lm")
    draw.text((right - 6, (top + bottom) / 2), to_right, font=font, fill=palette.TEXT, anchor="rm")
    draw.line([(left + 8, foot), (left + 8 + 50.0 * pixels_per_mm, foot)], fill=palette.TEXT, width=2)
    draw.text((left + 8, foot - 3), "5 cm", font=font, fill=palette.MUTED, anchor="ld")


def _font(size: int) -> text.Font:
    return text.font(max(10, size // 34))


def _legend(draw: ImageDraw.ImageDraw, size: int, findings: Findings, *, clinical_use: bool) -> None:
    font = _font(size)
    line = text.line_height(font)
    x, y = 8.0, _rows(size) - line - 4
    entries = [(palette.NAMES[name], palette.LESION[kind]) for name, kind in LESION_TYPES.items()]
    if not findings.regions:
        entries = [(palette.NAMES[findings.case_type], palette.CALM)]
    for name, color in entries:
        draw.rectangle([x, y + line * 0.2, x + line * 0.7, y + line * 0.9], fill=color)
        draw.text((x + line, y), name, font=font, fill=palette.TEXT)
        x += line * 1.8 + draw.textlength(name, font=font)
    _mark(draw, (size - 8, y), font, clinical_use=clinical_use)


def _mark(
    draw: ImageDraw.ImageDraw, right_top: tuple[float, float], font: text.Font, *, clinical_use: bool
) -> None:
    words, color = ("AI result", palette.MUTED) if clinical_use else (palette.NOT_CLINICAL, palette.WARNING)
    draw.text(right_top, words, font=font, fill=color, anchor="ra")


def montage(
    volume: Volume,
    findings: Findings,
    *,
    tiles: tuple[int, int] = (4, 4),
    size: int = 1024,
    clinical_use: bool = False,
) -> NDArray[np.uint8]:
    """Axial slices from head to foot with the lesions in colour: what is sent when 3D can't be drawn.

    tiles: (down, across). Returns (size, size, 3) RGB, in radiological convention.
    """
    down, across = tiles
    tile = (size // across, size // down)
    chest = findings.lungs
    grid = axial_grid(volume, chest, columns=tile[0])
    z = heights_mm(volume, chest)
    font = text.font(max(11, tile[0] // 16))
    page = Image.new("RGB", (size, size), palette.BACKGROUND)
    draw = ImageDraw.Draw(page)
    levels = np.quantile(z, np.linspace(0.98, 0.02, down * across))  # more slices where there is more lung
    for number, level in enumerate(levels):
        picture = Image.fromarray(slice_picture(volume, findings, grid, float(level)))
        picture.thumbnail(tile)
        x, y = (number % across) * tile[0], (number // across) * tile[1]
        page.paste(picture, (x + (tile[0] - picture.width) // 2, y + (tile[1] - picture.height) // 2))
        for letter, left, anchor in (("R", x + 4, "lm"), ("L", x + tile[0] - 4, "rm")):
            text.outlined(draw, (left, y + tile[1] / 2), letter, font, anchor=anchor)
        draw.text((x + 4, y + 4), f"z {level:.0f} mm", font=font, fill=palette.MUTED)
    _mark(draw, (size - 6, size - text.line_height(font)), font, clinical_use=clinical_use)
    return np.asarray(page)
