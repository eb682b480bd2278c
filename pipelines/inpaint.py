"""Inpainting: key slices with their lesions in, the same as if without them out (Deng et al. 2021).

The ``inpaint`` model (WGAN-GP) fills in what is masked in a window of 128 x 128 pixels. What it draws is
invented: it is shown beside the original, never measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.candidates import Chest
from pipelines.regions import Drawn
from pipelines.triton import Inference, ModelSpec, Progress, ServedModel, TensorSpec
from pipelines.volume import InpaintedSlice

SPEC = ModelSpec(
    name="inpaint",
    version="1",
    inputs=(TensorSpec("HU", "INT16", (128, 128)), TensorSpec("MASK", "UINT8", (128, 128))),
    outputs=(TensorSpec("INPAINTED", "INT16", (128, 128)),),
)
#: pixels a side of what the model fills in
WINDOW = 128
KEY_SLICES = 3
#: two key slices nearer than this show the same
APART_MM = 9.0
#: a window is at least so wide, and so much wider than what is masked in it: the model needs surroundings
SMALLEST_WINDOW_MM, SURROUNDINGS = 100.0, 1.6
#: a lesion's border belongs to it: the mask reaches so far beyond the labels
MASK_MARGIN_MM = 2.0


@lru_cache(maxsize=512)
def averaging_weights(source: int, target: int) -> NDArray[np.float32]:
    """(target, source) matrix that averages over the source pixels under each target pixel."""
    edges = np.arange(target + 1) * (source / target)
    pixels = np.arange(source)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.asarray(np.clip(covered, 0.0, 1.0) * (target / source), dtype=np.float32)


def to_window(part: NDArray[np.generic]) -> NDArray[np.float32]:
    """(rows, columns) -> float32 (WINDOW, WINDOW) by averaging."""
    rows, columns = (averaging_weights(n, WINDOW) for n in part.shape)
    return np.asarray(rows @ part.astype(np.float32) @ columns.T, dtype=np.float32)


def inpaint_key_slices(
    chest: Chest,
    drawn: Sequence[Drawn],
    inference: Inference,
    model: ServedModel,
    *,
    progress: Progress | None = None,
) -> tuple[InpaintedSlice, ...]:
    """The slices that show most of the largest of ``drawn``, by ascending slice; none without any."""
    windows = [_window(index, one, chest) for index, one in _key_slices(drawn, chest)]
    if not windows:
        return ()
    small = [(to_window(hu), to_window(mask) > 0) for _, hu, mask in windows]
    answer = inference.run(
        model,
        {
            "HU": np.rint([hu for hu, _ in small]).astype(np.int16),
            "MASK": np.array([mask for _, mask in small], np.uint8),
        },
        progress=progress,
    )["INPAINTED"]
    return tuple(
        InpaintedSlice(index, hu, np.where(mask, _enlarged(filled, hu.shape), hu), mask)
        for (index, hu, mask), filled in zip(windows, answer, strict=True)
    )


def _key_slices(drawn: Sequence[Drawn], chest: Chest) -> list[tuple[int, Drawn]]:
    chosen: list[tuple[int, Drawn]] = []
    for one in sorted(drawn, key=lambda each: -np.count_nonzero(each.inside)):
        index = one.box[0].start + int(np.argmax(one.inside.sum(axis=(1, 2))))
        if all(abs(index - other) * chest.spacing_mm[0] >= APART_MM for other, _ in chosen):
            chosen.append((index, one))
    return sorted(chosen[:KEY_SLICES], key=lambda pair: pair[0])


def _window(index: int, drawn: Drawn, chest: Chest) -> tuple[int, NDArray[np.int16], NDArray[np.bool_]]:
    """The slice, its HU in a window around the lesion, as wide as high in mm, and what to fill in there."""
    rows, columns = np.nonzero(drawn.inside[index - drawn.box[0].start])
    spans = ((rows.min(), rows.max() + 1), (columns.min(), columns.max() + 1))
    pixel_mm = chest.spacing_mm[1:]
    extent = max((b - a) * mm for (a, b), mm in zip(spans, pixel_mm, strict=True))
    side_mm = max(SMALLEST_WINDOW_MM, SURROUNDINGS * extent)
    side_mm = min(side_mm, *(n * mm for n, mm in zip(chest.hu.shape[1:], pixel_mm, strict=True)))
    parts = []
    for (a, b), mm, n, box in zip(spans, pixel_mm, chest.hu.shape[1:], drawn.box[1:], strict=True):
        size = min(round(side_mm / mm), n)
        start = int(np.clip(round(box.start + (a + b) / 2 - size / 2), 0, n - size))
        parts.append(slice(start, start + size))
    place = (index, parts[0], parts[1])
    outside = ndimage.distance_transform_edt(chest.lesions[place] == 0, sampling=pixel_mm)
    mask = (outside <= MASK_MARGIN_MM) & (chest.lungs[place] > 0)
    return index, chest.hu[place].copy(), mask


def _enlarged(filled: NDArray[np.int16], shape: tuple[int, ...]) -> NDArray[np.int16]:
    """(WINDOW, WINDOW) -> shape, linear between pixel centres."""
    index = np.meshgrid(*((np.arange(n) + 0.5) * WINDOW / n - 0.5 for n in shape), indexing="ij")
    large = ndimage.map_coordinates(filled.astype(np.float32), index, order=1, mode="nearest")
    return np.asarray(np.rint(large), dtype=np.int16)
