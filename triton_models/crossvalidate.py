"""Cross-validation: train on all parts but one, measure on that one, for each part.

In: a registry entry, settings with labelled data.  Out: one ``Evaluation`` of all cases, each answered by a
network that never saw its group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from triton_models.data.image_list import is_image_list
from triton_models.data.labelled_2d import is_labelled_2d
from triton_models.evaluation.evaluate import collect
from triton_models.evaluation.predictor import predictor_for
from triton_models.evaluation.result import Cases, Evaluation
from triton_models.evaluation.source import Source
from triton_models.registry import ModelEntry
from triton_models.training.loop import CHECKPOINT, finished, settle_again, train
from triton_models.training.recipe import recipe_for
from triton_models.training.settings import TrainSettings


def cross_validate(entry: ModelEntry, settings: TrainSettings, *, parts: int) -> Evaluation:
    """Train ``parts`` networks, in ``settings.out``/0, 1, …, and measure them together.

    Parts that an earlier call finished are not trained again, one that it broke off is resumed. The SHA-256
    is that of the parts' hashes. Raises ValueError unless one folder of ``settings.data`` can be split.
    """
    data = _measured(settings.data)
    collected: list[Cases] = []
    digest = hashlib.sha256()
    for number in range(parts):
        one = replace(settings, out=settings.out / str(number), fold=(number, parts))
        checkpoint = one.out / CHECKPOINT
        if not finished(checkpoint):
            _train(entry, one, settings)
        predictor = predictor_for(entry, checkpoint)
        digest.update(bytes.fromhex(predictor.weights_sha256))
        collected.append(collect(entry, predictor, Source(data=data, fold=one.fold)))
    first, *others = collected
    cases = first.joined(others)
    return Evaluation(
        entry.name, digest.hexdigest(), len(cases), cases.metrics(), {"cross_validation_parts": parts}
    )


def _measured(folders: Sequence[Path]) -> Path:
    """The folder that is split: the list of pictures with classes, or else the pictures with masks."""
    found = [folder for folder in folders if is_image_list(folder)]
    found = found or [folder for folder in folders if is_labelled_2d(folder)]
    if len(found) != 1:
        raise ValueError(f"cross-validation splits one folder of labelled pictures; --data has {len(found)}")
    return found[0]


def _train(entry: ModelEntry, one: TrainSettings, whole: TrainSettings) -> None:
    """Train for one part; what doesn't depend on the part is trained once, in ``whole.out``/all."""
    if recipe_for(entry, one).sees_fold:
        train(entry, one, resume=any(one.out.rglob(CHECKPOINT)))
        return
    # its validation looks at pictures of all parts, but chooses nothing
    everything = replace(whole, out=whole.out / "all")
    checkpoint = everything.out / CHECKPOINT
    if not finished(checkpoint):
        train(entry, everything, resume=checkpoint.is_file())
    settle_again(entry, one, checkpoint)
