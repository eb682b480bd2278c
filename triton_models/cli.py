"""Command line of the models: ``pacsnode models …`` and ``python -m triton_models``.

Torch and everything that needs it is imported inside the commands, so that ``list`` and ``evaluate`` work in
the runtime environment. Exit codes: 0 ok, 1 failed work, 2 bad usage.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from triton_models.evaluation.result import Evaluation
from triton_models.registry import MAIN, MODELS, REPOSITORY, ModelEntry, model, weights_sha256
from triton_models.training.settings import SEED, TrainSettings

app = typer.Typer(help="List, train, export and evaluate the served models.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Model name, see `list`.")]
Variant = Annotated[str, typer.Option(help="The model itself or one of its baselines.")]
Cache = Annotated[Path | None, typer.Option(help="Keep generated phantoms here between runs.")]
Networks = Annotated[
    int | None,
    typer.Option(
        min=1, max=16, help="Train so many from other seeds and average them, if not the model's own number."
    ),
]
Seed = Annotated[int, typer.Option(help="The same seed and data, the same weights.")]
Weights = Annotated[
    Path | None, typer.Option(help="A model.onnx or checkpoint.pt instead of the repository's.")
]
Phantoms = Annotated[int, typer.Option(min=1, max=200, help="Without --data: this many test phantoms.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DataFolders = Annotated[
    list[Path] | None, typer.Option("--data", help="Folder with axial CT DICOM files; may be repeated.")
]


def _entry(name: str) -> ModelEntry:
    try:
        return model(name)
    except KeyError as error:
        raise typer.BadParameter(str(error.args[0]), param_hint="NAME") from error


def _entry_with(name: str, variant: str) -> ModelEntry:
    entry = _entry(name)
    if variant not in entry.variants:
        raise typer.BadParameter(
            f"{variant!r} is none of {', '.join(entry.variants)}", param_hint="--variant"
        )
    return entry


def _need_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        typer.echo("this command needs the training packages: pip install 'pacsnode[train]'", err=True)
        raise typer.Exit(2)


def _fail(error: Exception) -> typer.Exit:
    typer.echo(str(error), err=True)
    return typer.Exit(1)


def _print(result: Evaluation, *, as_json: bool) -> None:
    if as_json:
        typer.echo(result.to_json())
        return
    table = Table("class", "metric", "value", "95 % interval", title=f"{result.model}, {result.n} cases")
    for class_name, metrics in result.metrics.items():
        for metric, one in metrics.items():
            table.add_row(class_name, metric, f"{one.value:.4f}", f"{one.low:.4f} to {one.high:.4f}")
    Console(width=None if Console().is_terminal else 100).print(table)


@app.command("list")
def list_models(*, as_json: AsJson = False) -> None:
    """Show the models of this release."""
    rows = [
        {
            "name": entry.name,
            "version": entry.version,
            "kind": entry.kind,
            "task": entry.task,
            "paper": entry.paper,
            "classes": list(entry.classes),
            "variants": list(entry.variants),
            "weights_licence": entry.weights_licence,
            "sha256": weights_sha256(entry) if entry.is_built else None,
        }
        for entry in MODELS.values()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    table = Table("name", "version", "task", "paper", "licence of weights", "sha256")
    for row in rows:
        shown = [row[key] for key in ("name", "version", "task", "paper", "weights_licence")]
        table.add_row(*map(str, shown), str(row["sha256"] or "not built"))
    Console(width=None if Console().is_terminal else 250).print(table)


@app.command()
def train(
    name: Name,
    *,
    out: Annotated[Path, typer.Option(help="Folder for checkpoint, history and curve.")],
    data: DataFolders = None,
    variant: Variant = MAIN,
    cache: Cache = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps, if not the model's own number.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(min=0.1, help="Stop after that long at most.")] = None,
    seed: Seed = SEED,
    networks: Networks = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from OUT's checkpoint.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model: on generated phantoms, with --data on real series too, or on labelled pictures alone."""
    entry = _entry_with(name, variant)
    _need_torch()
    from triton_models.training.loop import train as run  # noqa: PLC0415 - torch only when it is needed

    settings = TrainSettings(
        out=out,
        data=tuple(data or ()),
        cache=cache,
        steps=steps,
        minutes=minutes,
        variant=variant,
        seed=seed,
        networks=networks,
    )
    try:
        checkpoint = run(entry, settings, resume=resume)
    except (FileNotFoundError, ValueError) as error:
        raise _fail(error) from error
    typer.echo(json.dumps({"checkpoint": str(checkpoint)}) if as_json else checkpoint)


@app.command("cross-validate")
def cross_validate(
    name: Name,
    *,
    data: Annotated[
        list[Path], typer.Option(help="Folder with labelled pictures; others teach and aren't split.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for the parts' checkpoints; what it has isn't done again.")
    ],
    folds: Annotated[int, typer.Option(min=2, max=50, help="Number of parts.")] = 5,
    variant: Variant = MAIN,
    cache: Cache = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps a part, if not the model's own number.")
    ] = None,
    seed: Seed = SEED,
    networks: Networks = None,
    as_json: AsJson = False,
) -> None:
    """Train on all parts of labelled pictures but one and measure on that one, for each part.

    Pictures of one source (a paper, a patient) are never in two parts, where the data tells sources.
    """
    entry = _entry_with(name, variant)
    _need_torch()
    from triton_models.crossvalidate import cross_validate as run  # noqa: PLC0415 - torch only when needed

    settings = TrainSettings(
        out=out,
        data=tuple(data),
        cache=cache,
        steps=steps,
        variant=variant,
        seed=seed,
        networks=networks,
    )
    try:
        result = run(entry, settings, parts=folds)
    except (FileNotFoundError, ValueError) as error:
        raise _fail(error) from error
    _print(result, as_json=as_json)


@app.command()
def export(
    name: Name,
    *,
    checkpoint: Annotated[Path, typer.Option(help="checkpoint.pt of a training run.")],
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint's network into the model repository, with its config.pbtxt."""
    entry = _entry(name)
    _need_torch()
    from triton_models.export import export_model  # noqa: PLC0415 - torch only when it is needed
    from triton_models.training.loop import load_trained  # noqa: PLC0415

    try:
        trained = load_trained(entry, checkpoint)
        path = export_model(trained.entry, trained.network)
    except (FileNotFoundError, ValueError) as error:
        raise _fail(error) from error
    sha256 = weights_sha256(entry)
    if as_json:
        typer.echo(json.dumps({"model": str(path), "sha256": sha256}))
    else:
        typer.echo(f"{path}\nsha256 {sha256}")


@app.command()
def build(
    name: Name,
    *,
    checkpoint: Annotated[
        Path | None, typer.Option(help="checkpoint.pt of `train fusion`; the paper's seven networks without.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="List of pictures that the seven's head is solved on.")
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="Three light networks with seeded random weights.")
    ] = False,
    out: Annotated[Path, typer.Option(help="The model repository to write into.")] = REPOSITORY,
    as_json: AsJson = False,
) -> None:
    """Build an ensemble (`fusion`) in a model repository: its backbones, its head, and what joins them."""
    entry = _entry(name)
    if entry.name != "fusion":
        raise typer.BadParameter(f"{name} is no ensemble; see `export`", param_hint="NAME")
    _need_torch()
    from triton_models.fusion import build_fusion  # noqa: PLC0415 - torch only when it is needed

    try:
        folders = build_fusion(entry, out, checkpoint=checkpoint, data=data, small=small)
    except ImportError as error:
        typer.echo(f"this needs keras: pip install 'pacsnode[fusion]' ({error})", err=True)
        raise typer.Exit(2) from error
    except (FileNotFoundError, ValueError) as error:
        raise _fail(error) from error
    made = [str(folder) for folder in folders]
    typer.echo(json.dumps({"folders": made}) if as_json else "\n".join(made))
    if "seeded" in (folders[-1] / "config.pbtxt").read_text(encoding="utf-8"):
        typer.echo("some of its weights are seeded random numbers: it answers, and means nothing", err=True)


@app.command()
def evaluate(
    name: Name,
    *,
    data: Annotated[
        Path | None, typer.Option(help="Folder with one axial CT series, or with labelled pictures.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="NIfTI labels of that series.")] = None,
    weights: Weights = None,
    split: Annotated[
        str | None, typer.Option(help="Of listed pictures: this split; otherwise all but train.")
    ] = None,
    phantoms: Phantoms = 12,
    as_json: AsJson = False,
) -> None:
    """Measure a model on --data, or on held-out phantoms; 95 % intervals by bootstrap over the cases."""
    entry = _entry(name)
    if mask is not None and data is None:
        raise typer.BadParameter("--mask goes with --data")
    if weights is not None and weights.suffix != ".onnx":
        _need_torch()
    from triton_models.evaluation.evaluate import evaluate as run  # noqa: PLC0415 - keeps `list` quick
    from triton_models.evaluation.predictor import predictor_for  # noqa: PLC0415
    from triton_models.evaluation.source import Source  # noqa: PLC0415

    try:
        result = run(entry, predictor_for(entry, weights), Source(data, mask, phantoms, split))
    except (FileNotFoundError, ValueError) as error:
        raise _fail(error) from error
    _print(result, as_json=as_json)


@app.command()
def compare(
    name: Name,
    *,
    against: Annotated[Path, typer.Option(help="A model.onnx or checkpoint.pt, as of a baseline.")],
    weights: Weights = None,
    data: Annotated[Path | None, typer.Option(help="Folder with labelled pictures.")] = None,
    phantoms: Phantoms = 12,
    as_json: AsJson = False,
) -> None:
    """A classifier's metrics less another's on the same cases, 95 % intervals by paired bootstrap."""
    entry = _entry(name)
    if any(path is not None and path.suffix != ".onnx" for path in (weights, against)):
        _need_torch()
    from triton_models.evaluation.classification import compare as run  # noqa: PLC0415 - keeps `list` quick
    from triton_models.evaluation.predictor import predictor_for  # noqa: PLC0415
    from triton_models.evaluation.source import Source  # noqa: PLC0415

    try:
        predictors = (predictor_for(entry, weights), predictor_for(entry, against))
        result = run(entry, predictors, Source(data=data, phantoms=phantoms))
    except (FileNotFoundError, ValueError) as error:
        raise _fail(error) from error
    _print(result, as_json=as_json)
