"""What is made of many phantoms: kept on disk between runs, made by several processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Made = TypeVar("Made")
Arrays = Mapping[str, NDArray[Any]]


def cached_arrays(cache: Path | None, name: str, make: Callable[[], Arrays]) -> Arrays:
    """Arrays by name, read from ``cache/name.npz`` when an earlier run left them there.

    cache: None keeps nothing. The file appears whole, whoever else makes it meanwhile.
    """
    if cache is None:
        return make()
    path = cache / f"{name}.npz"
    if path.exists():
        with np.load(path) as stored:
            return dict(stored)
    arrays = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp.npz")
    np.savez(unfinished, **arrays)
    unfinished.replace(path)
    return arrays


def each_phantom(
    make: Callable[[int, Path | None], Made],
    seeds: Iterable[int],
    cache: Path | None,
    *,
    processes: int = 2,
) -> list[Made]:
    """``make(seed, cache)`` of each seed, in their order; one alone is made in this process."""
    wanted = list(seeds)
    if processes <= 1 or len(wanted) <= 1:
        return [make(seed, cache) for seed in wanted]
    # spawn: a forked child would inherit torch's thread pools in an unusable state
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(make, wanted, repeat(cache)))
