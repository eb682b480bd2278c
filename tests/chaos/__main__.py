"""``python -m tests.chaos [--seed N] [--kills N]``: the long form; writes ``build/bench/chaos.json``.

Exit code 1 when anything was lost, duplicated, stuck or invalid.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path

from tests.chaos.chaos import Plan, Report, run
from tests.chaos.world import Setup

SETUPS = {"sqlite": Setup(), "postgresql": Setup(listeners=2, workers=3)}
REPORT = Path("build/bench/chaos.json")


def write_report(reports: dict[str, Report], seed: int) -> None:
    """Totals, and each setup's counts."""
    by_setup = {name: asdict(report) for name, report in reports.items()}
    totals = {key: sum(counts[key] for counts in by_setup.values()) for key in asdict(Report())}
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps({**totals, "seed": seed, "setups": by_setup}, indent=2) + "\n")


def main() -> int:
    parser = ArgumentParser()
    parser.add_argument("--seed", type=int, default=20261129)
    parser.add_argument("--kills", type=int, default=100, help="in each setup")
    parser.add_argument("--series", type=int, default=30, help="in each setup")
    parser.add_argument("--setup", choices=sorted(SETUPS), action="append")
    parser.add_argument("--keep", type=Path, help="leave everything here")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # whatever was started is ended
    reports: dict[str, Report] = {}
    for name in arguments.setup or SETUPS:
        plan = Plan(SETUPS[name], arguments.seed, arguments.series, arguments.kills)
        with tempfile.TemporaryDirectory(prefix="pacsnode-chaos-") as temporary:
            folder = Path(temporary) if arguments.keep is None else arguments.keep / name
            folder.mkdir(parents=True, exist_ok=True)
            reports[name] = run(plan, folder, lambda line, name=name: print(f"{name}: {line}", flush=True))
        print(f"{name}: {asdict(reports[name])}", flush=True)
        write_report(reports, arguments.seed)
    return 1 if any(report.faults for report in reports.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
