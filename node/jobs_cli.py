"""``pacsnode jobs``: see jobs and ask for them again, beside a running node and without one."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine

from node.config import load_config
from node.database import open_database
from node.run import operations

app = typer.Typer(help="See jobs and ask for them again.", no_args_is_help=True)
# reasons may hold square brackets, which rich would read as markup
console = Console(markup=False, emoji=False, highlight=False)

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="Configuration file; see deploy/config.example.yaml.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


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
            job["reason"] or "",
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
                f"{d['destination']}: {d['state']} after {d['attempts']} attempt(s) {d['last_error'] or ''}"
                for d in value
            )
        table.add_row(key, "" if shown is None else str(shown))
    console.print(table)


@app.command("retry")
def jobs_retry(job_id: str, config: ConfigOption) -> None:
    """Ask for a job again; a running node picks it up within a second."""
    console.print(f"job {operations.retry_job(_database(config), job_id)}: retry requested", soft_wrap=True)


@app.command("cancel")
def jobs_cancel(job_id: str, config: ConfigOption) -> None:
    """Cancel a job: its next step isn't begun."""
    console.print(f"job {operations.cancel_job(_database(config), job_id)}: cancelled", soft_wrap=True)


def _database(config: Path) -> Engine:
    loaded = load_config(config)
    return open_database(loaded.data_dir, loaded.database)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
