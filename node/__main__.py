"""The command line: ``pacsnode``.

Each command loads what it needs: ``jobs list`` neither a web server nor DICOM.

Exit codes: 0 ok, 1 failed work, 2 bad usage or configuration.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from node import __version__
from node.cli_options import ConfigOption, JsonOption
from node.config import LogConfig, NodeConfig, Role, load_config
from node.errors import ConfigError, NodeError
from node.jobs_cli import app as jobs_app
from node.log import configure_logging
from node.users_cli import app as users_app
from pipelines.errors import PipelineError
from pipelines.request import Request
from triton_models.cli import app as models_app

if TYPE_CHECKING:
    from node.checks import Finding

app = typer.Typer(
    name="pacsnode",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(jobs_app, name="jobs")
app.add_typer(users_app, name="users", help="Who may use the web pages: users, API tokens and their roles.")
app.add_typer(models_app, name="models", help="The models: list, train, export, evaluate.")

# reasons and paths may hold square brackets, which rich would read as markup
console = Console(markup=False, emoji=False, highlight=False)
errors = Console(stderr=True, markup=False, emoji=False, highlight=False)

OptionalConfig = Annotated[
    Path | None, typer.Option("--config", "-c", help="Configuration file; without it, built-in defaults.")
]


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _about(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """A DICOM-native inference node: C-STORE in, Triton models, DICOM SEG + SR + secondary captures out."""


@app.command()
def run(
    config: ConfigOption,
    role: Annotated[
        Role,
        typer.Option(help="Receive and route (listener), run and deliver (worker), or all."),
    ] = "all",
    node_id: Annotated[str | None, typer.Option(help="Instead of node_id in the configuration.")] = None,
) -> None:
    """Run the node until SIGTERM."""
    from node.app import serve

    loaded = load_config(config, node_id=node_id)
    configure_logging(loaded.log)
    serve(loaded, role, lambda: load_config(config, node_id=node_id))
    sys.stderr.flush()
    os._exit(0)  # threads of the workflow engine that wait for a step must not hold the process back


@app.command()
def check(config: ConfigOption, as_json: JsonOption = False) -> None:
    """Check configuration, certificates, ports, destinations (C-ECHO), collector, login, models."""
    from node.app import routes_of
    from node.checks import (
        Finding,
        check_audit,
        check_configuration,
        check_destinations,
        check_login,
        check_models,
        check_ports,
        check_shadows,
    )
    from node.run.shadowing import check_candidates

    loaded = load_config(config)
    routes_of(loaded)
    check_candidates(loaded)
    counted = f"valid, {len(loaded.routes)} route(s), {len(loaded.destinations)} destination(s)"
    findings = [Finding("configuration", str(config), "ok", counted)]

    def found(some: Iterable[Finding]) -> None:
        for one in some:
            findings.append(one)
            if not as_json:
                _tell(one)

    if not as_json:
        _tell(findings[0])
    found(check_configuration(loaded))
    found(check_ports(loaded))
    found(check_destinations(loaded))
    found(check_audit(loaded))
    found(check_login(loaded))
    with _triton(loaded) as url:
        found(check_models(loaded, url))
        found(check_shadows(loaded, url))
    failed = any(one.level == "error" for one in findings)
    if as_json:
        print(json.dumps({"ok": not failed, "findings": [asdict(one) for one in findings]}, indent=2))
    raise typer.Exit(1 if failed else 0)


def _tell(one: Finding) -> None:
    what = one.name if one.kind == "configuration" else f"{one.kind} {one.name}"
    if one.level == "error":
        errors.print(f"error: {one.said}", style="red", soft_wrap=True)
        if one.hint:
            errors.print(f"hint: {one.hint}", soft_wrap=True)
    elif one.level == "warning":
        errors.print(f"warning: {one.said}", soft_wrap=True)
    else:
        _say(f"{what}: {one.said}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where to leave the results.")] = Path("build/demo"),
    dicom: Annotated[
        list[Path] | None,
        typer.Option(help="Folder(s) of DICOM to send; default: a generated chest CT phantom."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Send a chest CT by C-STORE through a whole node into an archive, and show what came back.

    Exit code 0 only if every series had its results, and they came back from the archive and are valid.
    """
    from node.demo import run_demo

    shown = run_demo(dicom or [], out, Console(stderr=as_json))
    if as_json:
        print(json.dumps([asdict(one) for one in shown], indent=2))
    raise typer.Exit(0 if shown and all(one.valid for one in shown) else 1)


@app.command(name="process")
def process_folder(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder with one CT series.")],
    out: Annotated[Path, typer.Option(help="Where to write the result set and summary.json.")],
    pipeline: Annotated[str, typer.Option(help="Which pipeline to run.")] = "chest_ct_pneumonia",
    config: OptionalConfig = None,
    as_json: JsonOption = False,
) -> None:
    """Run a pipeline on a folder, without DICOM networking."""
    from pipelines.load import dicom_files
    from pipelines.process import process
    from pipelines.registry import find_pipeline
    from pipelines.triton import InferenceClient

    loaded = load_config(config) if config is not None else NodeConfig()
    find_pipeline(pipeline)
    out.mkdir(parents=True, exist_ok=True)
    request = Request(
        pipeline=pipeline,
        paths=tuple(dicom_files(folder)),
        out=out,
        software_version=__version__,
        content_datetime=datetime.now(UTC).replace(microsecond=0),
        clinical_use=loaded.results.clinical_use,
        uid_root=loaded.results.uid_root,
    )
    timeout = loaded.triton.request_timeout_seconds
    with (
        _triton(loaded) as url,
        InferenceClient(url, timeout_seconds=timeout, access=loaded.triton.access()) as client,
        _StageBars() as bars,
    ):
        summary = process(request, client, bars.report)
    if as_json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    table = Table("modality", "SOP Class UID", "file")
    for result in summary["results"]:
        table.add_row(result["modality"], result["sop_class_uid"], str(out / result["path"]))
    console.print(table)
    _say(summary["conclusion"])
    for note in summary["notes"]:
        _say(f"note: {note}")


class _StageBars:
    """A progress bar a stage, on a terminal; nothing is drawn where stderr isn't one."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description:>10}"), BarColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=errors, disable=not errors.is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _StageBars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def report(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=None)
        if total:
            self._progress.update(self._tasks[stage], completed=done, total=total)


@app.command()
def explain(
    what: Annotated[
        str,
        typer.Argument(
            help="A DICOM file or folder; or, with --config, a study, series or instance UID, a job's id, or "
            "the AE title of a sender."
        ),
    ] = "",
    config: OptionalConfig = None,
    refused: Annotated[
        bool, typer.Option("--refused", help="Instead: what was turned away at the door.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say which routes match the series in a folder and why the others don't; and, by the node's database,
    what became of something, and why there is no result."""
    from node.explain_cli import explain_known, explain_path

    if bool(what) == refused:
        raise typer.BadParameter("either WHAT or --refused")
    path = Path(what)
    if what and path.exists():
        explain_path(path, config, as_json=as_json)
        return
    if config is None or "/" in what:
        raise typer.BadParameter(f"{what}: no such file or folder; anything else needs --config")
    explain_known(what, load_config(config), as_json=as_json)


@app.command()
def triton(config: OptionalConfig = None) -> None:
    """Run the embedded Triton alone (gRPC 8001, HTTP 8000, metrics 8002) until SIGTERM."""
    from node.triton_server import EmbeddedTriton

    loaded = load_config(config) if config is not None else NodeConfig()
    configure_logging(loaded.log)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    server = EmbeddedTriton(
        loaded.triton.model_repository,
        grpc_port=8001,
        http_port=8000,
        metrics_port=8002,
        start_timeout_seconds=loaded.triton.start_timeout_seconds,
    )
    with server:
        _say(f"Triton is ready: gRPC {server.url}, metrics {server.metrics_url}")
        while server.alive() and not stopping.wait(1.0):
            pass
        raise typer.Exit(0 if stopping.is_set() else 1)


@contextmanager
def _triton(config: NodeConfig) -> Iterator[str]:
    """The URL of the configured Triton, or of an embedded one for as long as the block lasts."""
    from node.triton_server import EmbeddedTriton

    if config.triton.url is not None:
        yield config.triton.url
        return
    with EmbeddedTriton(config.triton.model_repository) as server:
        yield server.url


def _say(line: str) -> None:
    console.print(line, soft_wrap=True)


def _complain(error: NodeError | PipelineError) -> None:
    errors.print(f"error: {error}", style="red", soft_wrap=True)
    if error.hint:
        errors.print(f"hint: {error.hint}", soft_wrap=True)


def main(arguments: list[str] | None = None) -> Any:
    """Entry point of ``pacsnode``."""
    configure_logging(LogConfig(level="warning"))  # standard output is for results
    try:
        app(args=arguments)
    except ConfigError as error:
        _complain(error)
        sys.exit(2)
    except (NodeError, PipelineError) as error:
        _complain(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
