"""CT scanners as they show in the pixels: kernel, noise, padding.

In: a noise-free slice in HU.  Out: the slice as a scanner with that kernel and dose would give it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Scanner:
    """One scanner protocol.

    sharpness: 0 (soft tissue) to 1 (bone, lung).  noise_hu: standard deviation at the isocentre.
    padding_hu: value outside the reconstruction circle, or None when the whole square is reconstructed.
    signed: pixels are stored as signed integers.
    """

    manufacturer: str
    model: str
    kernel: str
    sharpness: float
    noise_hu: float
    padding_hu: int | None
    signed: bool


# manufacturer, model, signed, padding values seen outside the circle, (kernel, sharpness) pairs
_PRODUCTS: tuple[tuple[str, str, bool, tuple[int | None, ...], tuple[tuple[str, float], ...]], ...] = (
    (
        "GE MEDICAL SYSTEMS",
        "LightSpeed VCT",
        True,
        (-3024, -3024, -2000, None),
        (("STANDARD", 0.35), ("SOFT", 0.1), ("CHST", 0.45), ("LUNG", 0.95), ("BONE", 1.0)),
    ),
    (
        "SIEMENS",
        "SOMATOM Definition AS",
        False,
        (-1024, -1024, None),
        (("B30f", 0.25), ("B40f", 0.4), ("B60f", 0.8), ("B70f", 1.0), ("I31f", 0.2)),
    ),
    (
        "Philips",
        "Brilliance 64",
        False,
        (-1024, -1000, None),
        (("A", 0.1), ("B", 0.3), ("C", 0.5), ("YA", 0.7), ("L", 0.9)),
    ),
    (
        "TOSHIBA",
        "Aquilion ONE",
        True,
        (-2048, -1024, 0, None),
        (("FC07", 0.3), ("FC17", 0.35), ("FC03", 0.2), ("FC51", 0.95)),
    ),
)


def random_scanner(rng: np.random.Generator, thickness_mm: float) -> Scanner:
    """Draw a protocol; thinner slices and sharper kernels are noisier at the same dose."""
    manufacturer, model, signed, paddings, kernels = _PRODUCTS[rng.integers(len(_PRODUCTS))]
    kernel, sharpness = kernels[rng.integers(len(kernels))]
    dose_noise = rng.uniform(5.0, 16.0) * np.sqrt(5.0 / max(thickness_mm, 0.8))
    return Scanner(
        manufacturer=manufacturer,
        model=model,
        kernel=kernel,
        sharpness=sharpness,
        noise_hu=float(min(dose_noise * (0.7 + 3.0 * sharpness**2), 90.0)),
        padding_hu=paddings[rng.integers(len(paddings))],
        signed=signed,
    )


class Reconstruction:
    """Applies a scanner's frequency response and noise to slices of one size."""

    def __init__(self, scanner: Scanner, shape: tuple[int, int], pixel_mm: float) -> None:
        fy = fft.fftfreq(shape[0], pixel_mm).astype(np.float32)[:, None]
        fx = fft.rfftfreq(shape[1], pixel_mm).astype(np.float32)[None, :]
        frequency = np.sqrt(fx * fx + fy * fy)  # cycles per mm
        cut = 0.45 + 0.55 * scanner.sharpness
        boost = 1.0 + 1.6 * scanner.sharpness**2 * np.minimum(frequency / 0.5, 1.5) ** 2
        self._response = (boost * np.exp(-((frequency / cut) ** 2))).astype(np.float32)
        # filtered back projection: noise power rises with frequency until the kernel cuts it off
        spectrum = np.sqrt(frequency + 0.01) * self._response
        weight = np.full(spectrum.shape, 2.0)
        weight[:, 0] = 1.0
        power = float((weight * spectrum.astype(np.float64) ** 2).sum()) / (shape[0] * shape[1])
        self._noise = (spectrum * (scanner.noise_hu / np.sqrt(power))).astype(np.float32)
        self._shape = shape

    def __call__(self, rng: np.random.Generator, hu: Array, noise_map: Array | float = 1.0) -> Array:
        """Blur or sharpen ``hu`` (rows, columns) and add noise scaled by ``noise_map``."""
        image = fft.irfft2(fft.rfft2(hu) * self._response, s=self._shape)
        white = rng.standard_normal(self._shape, dtype=np.float32)
        noise = fft.irfft2(fft.rfft2(white) * self._noise, s=self._shape)
        return np.asarray(image + noise * noise_map, dtype=np.float32)


def outside_circle(shape: tuple[int, int]) -> NDArray[np.bool_]:
    """True outside the circle inscribed in the image, where no projection data exist."""
    rows = np.arange(shape[0]) - (shape[0] - 1) / 2
    columns = np.arange(shape[1]) - (shape[1] - 1) / 2
    radius = min(shape) / 2
    return np.asarray(rows[:, None] ** 2 + columns[None, :] ** 2 > radius * radius)
