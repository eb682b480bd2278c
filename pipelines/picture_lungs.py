"""The lungs on a picture of a CT slice, and whether it shows any as a lung window does.

In: a CtPicture and the ``lungs`` model.  Out: a mask, or a refusal. The model knows axial chest CT in HU and
marks something on most pictures; what it marks has to be dark in brighter surroundings, on both sides, and
neither next to nothing nor nearly all. That refuses drawings, text, noise and CT in another window (of the
soft tissue, where the guessed HU would be plainly wrong). It doesn't tell a chest from everything that looks
like one: a head in a lung window passes. Figures: triton_models/repository/pneumonia_class/README.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pipelines.ct_picture import CtPicture, guessed_hu
from pipelines.errors import SeriesRefused
from pipelines.triton import Inference, ServedModel

#: the model is asked about as many pixels as CT has: it would pass over some of larger pictures'
ASKED_SIDE = 512
#: share of the picture
LEAST_SHARE, MOST_SHARE = 0.05, 0.6
#: medians of grey: how much brighter the surroundings are, of 255
LEAST_CONTRAST = 50
#: share of the lungs that lies in the half with less of them
LEAST_BALANCE = 0.1
#: parts smaller than this share of the largest one are noise
SMALLEST_PART = 0.1
#: surroundings begin and end so many pixels off
_RING = (2, 8)


@dataclass(frozen=True)
class _Seen:
    """What may be lungs. share: of the picture.  contrast, balance: as their limits above."""

    mask: NDArray[np.bool_]
    share: float
    contrast: float
    balance: float

    @property
    def are_lungs(self) -> bool:
        return (
            LEAST_SHARE <= self.share <= MOST_SHARE
            and self.contrast >= LEAST_CONTRAST
            and self.balance >= LEAST_BALANCE
        )

    def __str__(self) -> str:
        return (
            f"{100 * self.share:.0f} % of it could be lung, by {self.contrast:.0f} of 255 darker than around "
            f"it, {100 * self.balance:.0f} % on one side"
        )


def find_lungs(picture: CtPicture, inference: Inference, model: ServedModel) -> NDArray[np.bool_]:
    """bool (rows, columns) of the picture. Raises SeriesRefused (no_lungs_found) with what was seen."""
    grey = _asked(picture.grey)
    answer = inference.run(model, {"HU": guessed_hu(grey)[None]})["LUNGS"][0] > 0
    # the air around the patient touches the edges, and so do the lungs where a picture is cut narrowly
    within, whole = (_seen(grey, _large_parts(mask)) for mask in (_without_edge(answer), answer))
    found = within if within.are_lungs else whole
    if not found.are_lungs:
        raise SeriesRefused(
            f"no lungs as a lung window shows them on picture {picture.instance_uids[0]}: {found}",
            code="no_lungs_found",
            hint="an axial slice of a chest CT in a lung window, upright, without much around it?",
        )
    rows, columns = picture.grey.shape
    return np.asarray(Image.fromarray(found.mask).resize((columns, rows), Image.Resampling.NEAREST))


def _asked(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = ASKED_SIDE / max(grey.shape)
    if scale >= 1:
        return grey
    rows, columns = (max(1, round(side * scale)) for side in grey.shape)
    return np.asarray(Image.fromarray(grey).resize((columns, rows), Image.Resampling.BOX))


def _large_parts(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    parts, count = ndimage.label(mask)
    if not count:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    large: NDArray[np.bool_] = (sizes >= SMALLEST_PART * sizes.max())[parts]
    return large


def _without_edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without parts that touch the picture's edge."""
    parts, _ = ndimage.label(mask)
    edge = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    within: NDArray[np.bool_] = mask & ~np.isin(parts, edge[edge > 0])
    return within


def _seen(grey: NDArray[np.uint8], mask: NDArray[np.bool_]) -> _Seen:
    near, far = (ndimage.binary_dilation(mask, iterations=n) for n in _RING)
    around = grey[far & ~near]
    contrast = float(np.median(around) - np.median(grey[mask])) if mask.any() and around.size else 0.0
    left, total = np.count_nonzero(mask[:, : mask.shape[1] // 2]), max(1, np.count_nonzero(mask))
    return _Seen(mask, float(mask.mean()), contrast, min(left, total - left) / total)
