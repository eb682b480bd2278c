"""``PictureEstimates``: what slice classifiers make of a single picture of a CT slice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.estimates import Estimate, sentence


@dataclass(frozen=True)
class PictureEstimates:
    """lungs: bool (rows, columns), what was found of them on the picture.  by_model: each of one slice; the
    first is the one that says the case's type."""

    lungs: NDArray[np.bool_]
    by_model: tuple[Estimate, ...]
    notes: tuple[str, ...] = ()

    @property
    def case_type(self) -> str:
        return self.by_model[0].predicted


def conclusion(estimates: PictureEstimates) -> str:
    """In plain ASCII, with what it is worth first."""
    parts = ["From a picture, not from CT: grey values are guessed HU, not for clinical use."]
    for one in estimates.by_model:
        listed = ", ".join(f"{name} {p:.3f}" for name, p in one.case.items())
        parts.append(sentence(one, listed))
    return " ".join(parts)


def summarise(estimates: PictureEstimates) -> dict[str, Any]:
    """The part of summary.json (DESIGN section 5) that depends on the estimates."""
    return {
        "findings": [],
        "noisy_or": {},
        "case_type": estimates.case_type,
        "conclusion": conclusion(estimates),
        "estimates": {one.model.name: dict(one.case) for one in estimates.by_model},
        "lung_share_of_picture": round(float(estimates.lungs.mean()), 4),
    }
