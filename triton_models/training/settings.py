"""What the user chose for a training run; what a model needs beyond that stands in its recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from triton_models.data.folds import Fold
from triton_models.registry import MAIN

SEED = 20261120
CPU_INFO = Path("/proc/cpuinfo")
#: flags of CPUs that compute with bfloat16: x86's two ways, and Arm's
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def bf16_is_fast(cpu_info: Path = CPU_INFO) -> bool:
    """Whether this CPU computes with bfloat16 itself. False where there is no file that tells."""
    try:
        text = cpu_info.read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return not BF16_FLAGS.isdisjoint(text.split())


@dataclass(frozen=True)
class TrainSettings:
    """Settings of one run.

    out: folder of checkpoint, history and curve.  data: folders with images, may be empty.
    cache: where generated phantoms are kept between runs.
    steps: optimiser steps, None for the recipe's own number; the learning rate's schedule spans them.
    minutes: stop the run after that long even if steps are left; the schedule then spans the time.
    variant: the model itself or one of its baselines.
    bf16: bfloat16 autocast; by default where the CPU has it: elsewhere a step takes thrice as long.
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
    bf16: bool = field(default_factory=bf16_is_fast)
    networks: int | None = None
    fold: Fold | None = None
