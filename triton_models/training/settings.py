"""What the user chose for a training run; what a model needs beyond that stands in its recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from triton_models.data.folds import Fold
from triton_models.registry import MAIN

SEED = 20261120


@dataclass(frozen=True)
class TrainSettings:
    """Settings of one run.

    out: folder of checkpoint, history and curve.  data: folders with images, may be empty.
    cache: where generated phantoms are kept between runs.
    steps: optimiser steps, None for the recipe's own number; the learning rate's schedule spans them.
    minutes: stop the run after that long even if steps are left; the schedule then spans the time.
    variant: the model itself or one of its baselines.
    bf16: bfloat16 autocast, fast on CPUs that have it.
    networks: train so many, from other seeds, whose answers are averaged; None for the recipe's own number.
    fold: of labelled pictures, train on all but this part and validate on it.
    """

    out: Path
    data: tuple[Path, ...] = ()
    cache: Path | None = None
    steps: int | None = None
    minutes: float | None = None
    variant: str = MAIN
    seed: int = SEED
    bf16: bool = True
    networks: int | None = None
    fold: Fold | None = None
