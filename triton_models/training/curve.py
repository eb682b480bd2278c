"""The validation curve as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from triton_models.registry import ModelEntry


def plot_history(entry: ModelEntry, history: Sequence[dict[str, float]], path: Path) -> None:
    """Write loss and validation Dice over the steps as a small PNG."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    loss_axis = figure.subplots()
    steps = [row["step"] for row in history]
    loss_axis.plot(steps, [row["loss"] for row in history], color="0.6", label="training loss (one batch)")
    loss_axis.set_xlabel("optimiser step")
    loss_axis.set_ylabel("training loss")
    dice_axis = loss_axis.twinx()
    for channel in entry.channels:
        dice_axis.plot(steps, [row[f"dice_{channel}"] for row in history], marker=".", label=channel)
    dice_axis.set_ylabel("Dice on validation phantoms")
    dice_axis.set_ylim(0, 1)
    dice_axis.legend(loc="lower right")
    loss_axis.set_title(entry.title, fontsize=8)
    figure.savefig(path, dpi=90)
