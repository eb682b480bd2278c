"""Command line of the models: ``pacsnode models …`` and ``python -m triton_models``.

Torch and everything that needs it is imported inside the commands, so that ``list`` and ``evaluate`` work in
the runtime environment. Exit codes: 0 ok, 1 failed work, 2 bad usage.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from triton_models.registry import MODELS, ModelEntry, model, weights_sha256

app = typer.Typer(help="List, train, export and evaluate the served models.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Model name, see `list`.")]
DataFolders = Annotated[
    list[Path] | None, typer.Option("--data", help="Folder with axial CT DICOM files; may be repeated.")
]


def _entry(name: str) -> ModelEntry:
    try:
        return model(name)
    except KeyError as error:
        raise typer.BadParameter(str(error.args[0]), param_hint="NAME") from error


def _need_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        typer.echo("this command needs the training packages: pip install 'pacsnode[train]'", err=True)
        raise typer.Exit(2)


def _fail(error: Exception) -> typer.Exit:
    typer.echo(str(error), err=True)
    return typer.Exit(1)


@app.command("list")
def list_models() -> None:
    """Show the models of this release."""
    table = Table("name", "version", "task", "paper", "licence of weights", "sha256")
    for entry in MODELS.values():
        sha256 = weights_sha256(entry) if entry.onnx_path.is_file() else "not exported"
        table.add_row(entry.name, entry.version, entry.task, entry.paper, entry.weights_licence, sha256)
    Console(width=None if Console().is_terminal else 250).print(table)


@app.command()
def train(
    name: Name,
    *,
    out: Annotated[Path, typer.Option(help="Folder for checkpoint, history and curve.")],
    data: DataFolders = None,
    cache: Annotated[Path | None, typer.Option(help="Keep generated phantoms here between runs.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps; the schedule spans them.")] = 1500,
    minutes: Annotated[float | None, typer.Option(min=0.1, help="Stop after that long at most.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from OUT's checkpoint.")] = False,
) -> None:
    """Train a model on generated phantoms and, with --data, on real series."""
    entry = _entry(name)
    _need_torch()
    from triton_models.training.loop import train as run  # noqa: PLC0415 - torch only when it is needed
    from triton_models.training.settings import settings_for  # noqa: PLC0415

    settings = settings_for(entry, out=out, data=tuple(data or ()), cache=cache, steps=steps, minutes=minutes)
    try:
        typer.echo(run(entry, settings, resume=resume))
    except FileNotFoundError as error:
        raise _fail(error) from error


@app.command()
def export(
    name: Name, checkpoint: Annotated[Path, typer.Option(help="checkpoint.pt of a training run.")]
) -> None:
    """Write a checkpoint's network into the model repository, with its config.pbtxt."""
    entry = _entry(name)
    _need_torch()
    from triton_models.export import export_model  # noqa: PLC0415 - torch only when it is needed
    from triton_models.training.loop import load_network  # noqa: PLC0415

    try:
        path = export_model(entry, load_network(entry, checkpoint))
    except FileNotFoundError as error:
        raise _fail(error) from error
    typer.echo(f"{path}\nsha256 {weights_sha256(entry)}")


@app.command()
def evaluate(
    name: Name,
    data: Annotated[Path | None, typer.Option(help="Folder with one axial CT series.")] = None,
    mask: Annotated[Path | None, typer.Option(help="NIfTI labels of that series.")] = None,
    phantoms: Annotated[
        int, typer.Option(min=1, max=100, help="Without --data: this many test phantoms.")
    ] = 12,
) -> None:
    """Measure the served model.onnx and print JSON: on --data with --mask, or on held-out phantoms."""
    entry = _entry(name)
    if (data is None) != (mask is None):
        raise typer.BadParameter("--data and --mask go together")
    from triton_models.data.slices import TEST_SEEDS  # noqa: PLC0415 - keeps `list` quick
    from triton_models.evaluate import evaluate_folder, evaluate_phantoms  # noqa: PLC0415

    seeds: Sequence[int] = range(TEST_SEEDS.start, TEST_SEEDS.start + phantoms)
    try:
        if data is not None and mask is not None:
            result = evaluate_folder(entry, data, mask)
        else:
            result = evaluate_phantoms(entry, seeds)
    except (FileNotFoundError, ValueError) as error:
        raise _fail(error) from error
    typer.echo(result.to_json())
