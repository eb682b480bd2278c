"""What a training run is: fixed before it starts, stored with its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from triton_models.data.slices import TRAIN_SEEDS, VALIDATION_SEEDS
from triton_models.registry import ModelEntry


@dataclass(frozen=True)
class TrainSettings:
    """Settings of one run.

    out: folder of checkpoint, history and curve.  data: folders with real axial CT series, may be empty.
    cache: where generated phantoms are kept between runs.
    steps: optimiser steps; the learning rate's schedule spans them.
    minutes: stop the run after that long even if steps are left; the schedule then spans the time.
    focal: focal loss instead of binary cross-entropy beside the Dice loss (small, rare foreground).
    crop: side in pixels of a random window that is learned from, None for whole slices; for networks that are
        fully convolutional (COVSegNet is, VNet2D's attention wants the whole slice).
    bf16: bfloat16 autocast, fast on CPUs with AMX.
    """

    out: Path
    data: tuple[Path, ...] = ()
    cache: Path | None = None
    steps: int = 1500
    minutes: float | None = None
    batch_size: int = 12
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    average_decay: float = 0.99
    real_share: float = 0.3
    pasted_copies: int = 10
    validate_every: int = 100
    seed: int = 20261120
    focal: bool = False
    crop: int | None = None
    bf16: bool = True
    train_seeds: tuple[int, ...] = tuple(TRAIN_SEEDS)
    validation_seeds: tuple[int, ...] = tuple(VALIDATION_SEEDS)


def settings_for(
    entry: ModelEntry,
    *,
    out: Path,
    data: tuple[Path, ...],
    cache: Path | None,
    steps: int,
    minutes: float | None,
) -> TrainSettings:
    """The settings with which a model is trained; lesions are small, rare and local: focal loss, windows."""
    lesions = entry.name == "lesions"
    return TrainSettings(
        out=out,
        data=data,
        cache=cache,
        steps=steps,
        minutes=minutes,
        focal=lesions,
        crop=160 if lesions else None,
        real_share=0.4 if lesions else 0.3,
    )
