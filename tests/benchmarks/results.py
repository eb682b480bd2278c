"""How long the result objects of a large study take to encode, and how large they are.

A drawn chest of 300 slices of 512 x 512 whose lungs fill 280 of them, with ten regions. Everything is encoded
and written as the pipeline does it: once with drawing the 3D rotation, once with its views drawn before; the
segmentation as a label map, too, and either as it goes to a destination with ``deflate``.

    python -m tests.benchmarks.results [--rounds 3]

Prints a table and writes build/bench/results.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
import zlib
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np

from pipelines import results
from pipelines.encoding import DEFAULT, Encoding
from pipelines.render import load_rendering, render_rotation
from pipelines.results import build_result_set, write_result_set
from pipelines.results.segmentation import build_segmentation
from pipelines.volume import Findings, Region, Volume
from tests.benchmarks.taking import take
from tests.unit.pipelines.results.synthetic import chest, context, findings_of, region_of

SHAPE, SPACING_MM = (300, 512, 512), (0.6, 0.7, 0.7)
#: so many regions are made of each of the three that the chest has
PARTS = {1: 4, 2: 3, 3: 3}


def large_chest() -> tuple[Volume, Findings]:
    """Each region is cut along the columns, so that its parts are on as many slices as it was."""
    volume, findings = chest(shape=SHAPE, spacing=SPACING_MM)
    labels = np.zeros_like(findings.region_labels)
    regions: list[Region] = []
    for region in findings.regions:
        first, last = region.bounding_box[2]
        edges = np.linspace(first, last, PARTS[region.number] + 1).astype(int)
        for start, stop in pairwise(edges.tolist()):
            number = len(regions) + 1
            part = np.zeros(SHAPE, np.bool_)
            part[:, :, start:stop] = findings.region_labels[:, :, start:stop] == region.number
            labels[part] = number
            what = (region.lesion_type, region.infection_type, region.probability)
            regions.append(region_of(volume, labels, findings.lungs, number, *what))
    return volume, findings_of(volume, findings.lungs, findings.lesions, labels, tuple(regions))


def _seconds(volume: Volume, findings: Findings, folder: Path) -> float:
    started = time.perf_counter()
    write_result_set(build_result_set(volume, findings, context()), folder)
    return time.perf_counter() - started


def measure(work: Path, rounds: int) -> dict[str, object]:
    volume, findings = large_chest()
    load_rendering()  # a worker has done so before its first study
    views = render_rotation(volume, findings)
    draws = {"with_rotation": render_rotation, "without_rotation": lambda *_, **__: views}
    seconds: dict[str, list[float]] = {name: [] for name in draws}
    for number in range(rounds + 1):
        for name, took in seconds.items():
            with patch.object(results, "render_rotation", draws[name]):
                took.append(_seconds(volume, findings, work / f"{name}-{number}"))
            print(f"round {number}, {name}: {took[-1]:.2f} s", flush=True)
    sizes = {}
    for encoding in (DEFAULT, Encoding("labelmap")):
        path = work / f"{encoding.name}.dcm"
        build_segmentation(volume, findings, context(), encoding).save_as(path, enforce_file_format=True)
        sizes[f"{encoding.segmentation}_bytes"] = path.stat().st_size
        sizes[f"{encoding.segmentation}_deflated_bytes"] = len(zlib.compress(path.read_bytes()))
    medians = {f"seconds_{name}": round(statistics.median(took[1:]), 3) for name, took in seconds.items()}
    return {"regions": len(findings.regions), **medians, **sizes}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    take("results", {"results": lambda work: measure(work, arguments.rounds)}, None)


if __name__ == "__main__":
    main()
