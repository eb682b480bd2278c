"""How alike images are, and how alike two sets of images.

In: images of floats, 0 to 1.  Out: PSNR, SSIM and KMMD.

KMMD is the kernel maximum mean discrepancy (Gretton et al. 2012), which Deng et al. 2021 name without kernel,
features, estimator or number of images. Here: pixels as they are; Gaussian kernel exp(-|x - y|^2 / (2 s^2))
with s the median distance between different images of both sets together; the biased estimate of the squared
discrepancy, mean k(x, x') + mean k(y, y') - 2 mean k(x, y). It is 0 for a set and its copy. Where the second
set is the first with something filled in, it can be far below that of two independent samples of n images,
about 2 (1 - mean k) / n: a small figure says that filling in left the set as it was.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float64]
Images = NDArray[np.float32]

REGION = 32  # side of a region that enters KMMD
SSIM_SIGMA, SSIM_RADIUS = 1.5, 5  # Wang et al. 2004: an 11 x 11 Gaussian window
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2


def psnr(truth: Images, image: Images) -> float:
    """Peak signal-to-noise ratio, dB, of values 0 to 1; infinite for equal images."""
    error = float(np.mean((truth.astype(np.float64) - image) ** 2))
    return float(-10.0 * np.log10(error)) if error > 0 else float("inf")


def ssim_map(truth: Images, image: Images) -> Floats:
    """Structural similarity around each pixel, (rows, columns)."""

    def local(values: Floats) -> Floats:
        return np.asarray(ndimage.gaussian_filter(values, SSIM_SIGMA, radius=SSIM_RADIUS))

    x, y = truth.astype(np.float64), image.astype(np.float64)
    mean_x, mean_y = local(x), local(y)
    var_x, var_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    both = local(x * y) - mean_x * mean_y
    top = (2 * mean_x * mean_y + SSIM_C1) * (2 * both + SSIM_C2)
    return np.asarray(top / ((mean_x**2 + mean_y**2 + SSIM_C1) * (var_x + var_y + SSIM_C2)))


def bounding_box(mask: NDArray[np.uint8]) -> tuple[slice, slice]:
    """Of what isn't 0. Raises ValueError for an empty mask."""
    boxes = ndimage.find_objects((mask > 0).astype(np.uint8))
    if not boxes:
        raise ValueError("the mask is empty")
    return boxes[0][0], boxes[0][1]


def region(image: Images, mask: NDArray[np.uint8]) -> Images:
    """The mask's bounding box, resampled to REGION x REGION (linear)."""
    box = bounding_box(mask)
    axes = [np.linspace(part.start, part.stop - 1, REGION) for part in box]
    where = np.meshgrid(*axes, indexing="ij")
    return np.asarray(ndimage.map_coordinates(image, where, order=1, mode="nearest"), dtype=np.float32)


def squared_distances(first: Images, second: Images) -> Floats:
    """Between images (n, …) and (m, …): (n, m)."""
    x, y = (one.reshape(len(one), -1).astype(np.float64) for one in (first, second))
    squares = (x * x).sum(1)[:, None] + (y * y).sum(1)[None, :] - 2.0 * x @ y.T
    return np.asarray(np.maximum(squares, 0.0))


def discrepancy_terms(first: Images, second: Images) -> Floats:
    """For sets of n images each, (n, n) values whose mean, weighted for resampled pairs, is KMMD."""
    if first.shape != second.shape or len(first) < 2:
        raise ValueError(f"two sets of equally many images, at least 2, not {first.shape} and {second.shape}")
    xx, yy, xy = (squared_distances(a, b) for a, b in ((first, first), (second, second), (first, second)))
    different = ~np.eye(len(first), dtype=bool)
    scale = 2.0 * np.median(np.sqrt(np.concatenate([part[different] for part in (xx, yy, xy)]))) ** 2
    if scale <= 0:
        return np.zeros_like(xx)
    kernel = [np.exp(-part / scale) for part in (xx, yy, xy)]
    return np.asarray(kernel[0] + kernel[1] - kernel[2] - kernel[2].T)


def kmmd(first: Images, second: Images) -> float:
    """The squared discrepancy of two sets of equally many images."""
    return float(discrepancy_terms(first, second).mean())
