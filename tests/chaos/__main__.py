"""``python -m tests.chaos [--seed N] [--kills N]``: the long form; writes ``build/bench/chaos.json``.

Exit code 1 when anything was lost, duplicated, stuck, invalid, missing or too much, or when a step
boundary was never reached.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from argparse import ArgumentParser
from functools import partial
from pathlib import Path
from typing import Any

from tests.chaos.boundaries import shares, wanted
from tests.chaos.chaos import Plan, Report, run
from tests.chaos.world import Setup

SETUPS = {"sqlite": Setup(), "postgresql": Setup(listeners=2, workers=3)}
REPORT = Path("build/bench/chaos.json")
TOTALS = ("lost_instances", "duplicate_result_sets", "stuck_jobs", "invalid_objects")


def write_report(reports: dict[str, Report], seed: int) -> None:
    """Totals at the top, then all of each setup."""
    totals: dict[str, Any] = {"kills": sum(report.kills for report in reports.values())}
    for key in TOTALS:
        totals[key] = sum(getattr(report.verdict, key) for report in reports.values())
    totals["boundaries_reached"] = sorted({n for r in reports.values() for n in r.boundaries_reached})
    setups = {name: report.to_json() for name, report in reports.items()}
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps({**totals, "seed": seed, "setups": setups}, indent=2) + "\n")


def _say(name: str, line: str) -> None:
    print(f"{name}: {line}", flush=True)


def main() -> int:
    parser = ArgumentParser()
    parser.add_argument("--seed", type=int, default=20261129)
    parser.add_argument("--kills", type=int, default=70, help="in each setup, beside those at boundaries")
    parser.add_argument("--full-disks", type=int, default=6, help="in each setup")
    parser.add_argument("--seconds", type=float, default=1200.0, help="for the faults of each setup")
    parser.add_argument("--setup", choices=sorted(SETUPS), action="append")
    parser.add_argument("--all", action="store_true", help="every boundary in each setup")
    parser.add_argument("--keep", type=Path, help="leave everything here")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # whatever was started is ended
    reports: dict[str, Report] = {}
    for name in arguments.setup or SETUPS:
        setup = SETUPS[name]
        plan = Plan(
            setup,
            arguments.seed,
            arguments.kills,
            boundaries=wanted(shared=setup.shared) if arguments.all else shares(arguments.seed)[setup.shared],
            full_disks=arguments.full_disks,
            max_seconds=arguments.seconds,
        )
        with tempfile.TemporaryDirectory(prefix="pacsnode-chaos-") as temporary:
            folder = Path(temporary) if arguments.keep is None else arguments.keep / name
            folder.mkdir(parents=True, exist_ok=True)
            reports[name] = run(plan, folder, partial(_say, name))
        print(f"{name}: {json.dumps(reports[name].to_json(), indent=2)}", flush=True)
        write_report(reports, arguments.seed)
    faults = {name: report.faults for name, report in reports.items() if report.faults}
    missed = {name: report.boundaries_missed for name, report in reports.items() if report.boundaries_missed}
    print(f"faults: {faults or 'none'}; boundaries missed: {missed or 'none'}")
    return 1 if faults or missed else 0


if __name__ == "__main__":
    sys.exit(main())
