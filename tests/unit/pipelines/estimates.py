"""Estimates with known numbers, for the tests of what is made of them."""

from __future__ import annotations

import numpy as np

from pipelines.classify import FUSION_SPEC, SPEC, choose_key_slices
from pipelines.estimates import Estimate, Estimates
from pipelines.volume import ModelIdentity, Volume
from tests.unit.pipelines.results.synthetic import chest

PNEUMONIA_CLASS = ModelIdentity("pneumonia_class", "1", "c3" * 32, "normal, bacterial or viral")
FUSION = ModelIdentity("fusion", "1", "d4" * 32, "positive or negative", "checkpoint 00")
RANDOM_FUSION = ModelIdentity("fusion", "1", "e5" * 32, "positive or negative", "imagenet; seeded 1")


def estimates_of(
    *, fusion: ModelIdentity | None = None, notes: tuple[str, ...] = (), **arguments: object
) -> tuple[Volume, Estimates]:
    """A synthetic chest whose upper key slices look viral more and more, with ``fusion`` if given."""
    volume, findings = chest(**arguments)  # type: ignore[arg-type]
    keys = choose_key_slices(volume, findings.lungs)
    viral = np.linspace(0.05, 0.85, len(keys))
    first = np.stack([(1 - viral) * 0.75, (1 - viral) * 0.25, viral], axis=1)
    by_model = [Estimate(PNEUMONIA_CLASS, SPEC.classes, first)]
    if fusion is not None:
        by_model.append(Estimate(fusion, FUSION_SPEC.classes, np.stack([1 - viral, viral], axis=1)))
    return volume, Estimates(findings.lungs, keys, tuple(by_model), volume.by_lung_ml(findings.lungs), notes)
