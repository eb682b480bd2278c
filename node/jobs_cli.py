"""``pacsnode jobs``: see jobs and ask for them again, beside a running node and without one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine

from node.cli_options import ConfigOption, JsonOption
from node.config import load_config
from node.database import open_database
from node.reasons import of_delivery, of_job
from node.run import operations

app = typer.Typer(help="See jobs and ask for them again.", no_args_is_help=True)
# reasons may hold square brackets, which rich would read as markup
console = Console(markup=False, emoji=False, highlight=False)

#: who a job says cancelled it
_CANCEL = "`pacsnode jobs cancel`"


@app.command("list")
def jobs_list(
    config: ConfigOption,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10000)] = 50,
    as_json: JsonOption = False,
) -> None:
    """List the newest jobs."""
    found = operations.list_jobs(_database(config), state=state, limit=limit)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    table = Table("job", "state", "pipeline", "created", "series", "reason")
    for job in found:
        table.add_row(
            job["job_id"][:12],
            job["state"],
            job["pipeline"],
            _time(job["created_at"]),
            job["series_instance_uid"],
            why.sentence if (why := of_job(job)) is not None else "",
        )
    console.print(table)


@app.command("show")
def jobs_show(job_id: str, config: ConfigOption, as_json: JsonOption = False) -> None:
    """Show one job and its deliveries; JOB_ID may be shortened."""
    job = operations.show_job(_database(config), job_id)
    if as_json:
        print(json.dumps(job, indent=2))
        return
    table = Table(show_header=False)
    for key, value in job.items():
        shown = _time(value) if key.endswith("_at") and value is not None else value
        if key == "deliveries":
            shown = "\n".join(
                f"{d['destination']}: {d['state']} after {d['attempts']} attempt(s) {_why_not(d)}"
                for d in value
            )
        if key == "shadows":
            shown = "\n".join(_shadow(one) for one in value)
        table.add_row(key, "" if shown is None else str(shown))
    console.print(table)


def _why_not(delivery: Mapping[str, Any]) -> str:
    why = of_delivery(delivery)
    return "" if why is None else why.sentence


def _shadow(row: Mapping[str, Any]) -> str:
    if (agreement := row["agreement"]) is None:
        return f"{row['candidate']}: {row['state']} {row['reason'] or ''}".rstrip()
    equal = "equal case type" if agreement["case_type"]["equal"] else "other case type"
    dice = ", ".join(f"{name} {value:.3f}" for name, value in agreement["dice"].items())
    return f"{row['candidate']}: {row['state']}, {equal}; Dice {dice or 'of nothing'}"


@app.command("shadows")
def jobs_shadows(
    config: ConfigOption,
    limit: Annotated[int, typer.Option(min=1, max=100000, help="So many newest runs.")] = 1000,
    as_json: JsonOption = False,
) -> None:
    """How far each candidate (section shadow) agrees with what is live."""
    found = operations.shadow_summary(_database(config), limit=limit)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for one in found:
        runs = ", ".join(f"{state} {count}" for state, count in sorted(one["runs"].items()))
        console.print(f"{one['candidate']}: {runs}", soft_wrap=True)
        if not one["compared"]:
            continue
        table = Table("of the newest", "median", "worst")
        table.add_row(f"{one['compared']} runs: equal case type", f"{one['equal_case_types']:.1%}", "")
        for name, dice in one["dice"].items():
            table.add_row(f"Dice of {name}", f"{dice['median']:.3f}", f"{dice['least']:.3f}")
        for name, away in one["noisy_or"].items():
            row = (f"Noisy-OR of {name}, difference", f"{away['median']:.3f}", f"{away['largest']:.3f}")
            table.add_row(*row)
        console.print(table)


@app.command("retry")
def jobs_retry(job_id: str, config: ConfigOption, as_json: JsonOption = False) -> None:
    """Ask for a job again; a running node picks it up within a second."""
    _say(operations.retry_job(_database(config), job_id), "retry", "retry requested", as_json=as_json)


@app.command("cancel")
def jobs_cancel(job_id: str, config: ConfigOption, as_json: JsonOption = False) -> None:
    """Cancel a job: its next step isn't begun."""
    found = operations.cancel_job(_database(config), job_id, _CANCEL)
    _say(found, "cancelled", "cancelled", as_json=as_json)


def _say(job_id: str, state: str, said: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"job_id": job_id, "state": state}))
    else:
        console.print(f"job {job_id}: {said}", soft_wrap=True)


def _database(config: Path) -> Engine:
    loaded = load_config(config)
    return open_database(loaded.data_dir, loaded.database)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
